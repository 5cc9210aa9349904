"""What a job may ask of a tracker, and which trackers a deployment offers. Imports no tracker's library."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from martlet_core.config import Config, parse_config
from martlet_core.errors import FieldViolation, InvalidArgument
from pydantic import AfterValidator, Field

#: Kinds of trackers; each is a file of ``tracking/tools``.
KINDS = ("tensorboard", "wandb", "mlflow")
_MOST_TAGS = 32


def _matching(pattern: str, words: str) -> AfterValidator:
    def check(value: str) -> str:
        if re.fullmatch(pattern, value) is None:
            raise ValueError(f"is {value[:100]!r}; use {words}")
        return value

    return AfterValidator(check)


# Names become folders and parts of addresses: no separators, and nothing that begins with a dot.
_Name = Annotated[
    str,
    _matching(
        r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,127}",
        "1 to 128 letters, digits, spaces, dots, underscores or hyphens, a letter or digit first",
    ),
]
_Entity = Annotated[str, _matching(r"[A-Za-z0-9_-]{1,64}", "1 to 64 letters, digits, underscores or hyphens")]
_Tag = Annotated[str, _matching(r"[A-Za-z0-9 ._:/=-]{1,64}", "1 to 64 letters, digits, spaces or any of . _ : / = -")]


class TrackerConfig(Config):
    """A tracker of one training; mirrors ``martlet.trainer.v1.TrackerConfig``."""

    kind: Literal["tensorboard", "wandb", "mlflow"]
    project: _Name = "martlet"
    run_name: _Name | None = Field(default=None, description="Default: the job's id.")
    entity: _Entity | None = Field(default=None, description="Of wandb; default: that of the deployment's key.")
    tags: Annotated[tuple[_Tag, ...], Field(max_length=_MOST_TAGS)] = ()


def parse_trackers(spec: Mapping[str, Any]) -> Sequence[TrackerConfig]:
    """The trackers of a training's spec, which was checked when the job was made."""
    return [parse_config(TrackerConfig, values, "trackers") for values in spec.get("trackers") or ()]


def tracker_violations(trackers: Sequence[TrackerConfig]) -> list[FieldViolation]:
    """What is wrong with trackers that are each right."""
    found = []
    for index, tracker in enumerate(trackers):
        if tracker.kind in [other.kind for other in trackers[:index]]:
            found.append(FieldViolation(f"trackers.{index}.kind", f"is {tracker.kind} again; give each kind once"))
        if tracker.entity is not None and tracker.kind != "wandb":
            text = f"is wandb's, and the kind is {tracker.kind}; leave it out"
            found.append(FieldViolation(f"trackers.{index}.entity", text))
    return found


def parse_offered(text: str) -> tuple[str, ...]:
    """The kinds in ``MARTLET_TRACKERS``, such as ``tensorboard,mlflow``.

    Raises:
        InvalidArgument: one of them isn't known.
    """
    kinds = tuple(kind.strip() for kind in text.split(",") if kind.strip())
    for kind in kinds:
        if kind not in KINDS:
            raise InvalidArgument.field("MARTLET_TRACKERS", f"{kind!r} isn't known; known are {', '.join(KINDS)}")
    return kinds


def check_offered(trackers: Sequence[TrackerConfig], offered: Sequence[str]) -> None:
    """Refuse a tracker that nobody would serve.

    Raises:
        InvalidArgument: with the trackers that are offered.
    """
    for index, tracker in enumerate(trackers):
        if tracker.kind not in offered:
            there = f"offered are {', '.join(offered)}" if offered else "none is offered"
            text = (
                f"is {tracker.kind}, which this deployment doesn't offer ({there}); leave it out, or have its operator "
                "add it to MARTLET_TRACKERS"
            )
            raise InvalidArgument.field(f"spec.trackers.{index}.kind", text, reason="TRACKER_NOT_OFFERED")
