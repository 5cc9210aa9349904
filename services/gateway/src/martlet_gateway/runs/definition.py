"""A run's definition as values: what ``spec`` makes of a text, and what everything else works with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class StepDefinition:
    """A step.

    Attributes:
        id: unique in the run.
        kind: ``train``, ``merge``, ``quantize``, ``evaluate``, ``gate`` or ``deploy``.
        needs: steps that must have succeeded before, those that references imply among them; in the text's order.
        options: what is under ``with``, inputs filled in, references to steps as they were written.
        reuse: whether an earlier result of the same work may stand for it.
    """

    id: str
    kind: str
    needs: Sequence[str] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    reuse: bool = False


@dataclass(frozen=True)
class RunDefinition:
    """A run.

    Attributes:
        name: for people.
        steps: in the text's order.
    """

    name: str
    steps: Sequence[StepDefinition]

    def step(self, step_id: str) -> StepDefinition:
        """A step by its id. KeyError if there is none."""
        for step in self.steps:
            if step.id == step_id:
                return step
        raise KeyError(step_id)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; ``definition_from_dict`` is its inverse."""
        return {"name": self.name, "steps": [asdict(step) for step in self.steps]}


def definition_from_dict(values: Mapping[str, Any]) -> RunDefinition:
    """The definition that ``RunDefinition.to_dict`` described."""
    return RunDefinition(values["name"], [StepDefinition(**step) for step in values["steps"]])
