"""The shape of an adapter that a training goes on from: rank, scale, where it sits. Training can't change it, so a request that asks for
another one is refused; and which kinds of adapters merge. Imports no ML library: ``serve`` uses it too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from martlet_core.config import refuse
from martlet_core.errors import FailedPrecondition, FieldViolation, InvalidArgument
from martlet_core.model_rules import BOTTLENECKS

from martlet_trainer.config import TrainingConfig, TunerConfig
from martlet_trainer.config_rules import combination_violations
from martlet_trainer.tuners.kinds import KINDS

#: Names of modules that a message lists.
_NAMED = 8
#: Fields of ``TunerConfig`` that an adapter has for good.
SHAPE_FIELDS = (
    "lora_rank",
    "lora_alpha",
    "target_modules",
    "target_regex",
    "modules_to_save",
    "use_rslora",
    "use_dora",
)


def require_shape(tuner: TunerConfig, adapter: str, shape: Mapping[str, Any]) -> None:
    """Refuse a tuner that asks for another shape than the adapter has; what it leaves open is the adapter's.

    Args:
        tuner: as asked for, before defaults were filled in.
        adapter: the adapter's name, for the message.
        shape: what is known of it, by the names of ``SHAPE_FIELDS``.

    Raises:
        InvalidArgument: with a violation for each field that contradicts.
    """
    violations = []
    if tuner.init_weights != "default":
        text = f"is how a new adapter starts, and {adapter} has been trained already; leave it out"
        violations.append(FieldViolation("spec.tuner.init_weights", text))
    for field in SHAPE_FIELDS:
        if field not in tuner.model_fields_set or field not in shape:
            continue
        asked, found = _plain(getattr(tuner, field)), _plain(shape[field])
        if asked != found:
            description = (
                f"is {_short(asked)}, but {adapter} has {_short(found)}, which training can't change; leave it out"
            )
            violations.append(FieldViolation(f"spec.tuner.{field}", description))
    if violations:
        text = "; ".join(f"{violation.field}: {violation.description}" for violation in violations)
        raise InvalidArgument(text, reason="ADAPTER_SHAPE", violations=tuple(violations))


def as_bottlenecks(config: TrainingConfig, options: Mapping[str, Any]) -> TrainingConfig:
    """The config of a training that goes on from bottlenecks: their kind and their options, which nothing in it contradicts.

    Args:
        config: as asked for, before defaults were filled in.
        options: the bottlenecks'; empty where they aren't known, and nothing is compared.

    Raises:
        InvalidArgument: with a violation for each field that contradicts, or has no meaning with them.
    """
    tuner = config.tuner
    if "kind" in tuner.model_fields_set and tuner.kind != BOTTLENECKS:
        text = f"is {tuner.kind}, but {config.base_model} is an adapter of kind {BOTTLENECKS}; leave it out"
        raise InvalidArgument.field("spec.tuner.kind", text, reason="ADAPTER_SHAPE")
    for name, value in tuner.options.items():
        if name in options and value != options[name]:
            text = f"is {value}, but {config.base_model} has {options[name]}, which training can't change; leave it out"
            raise InvalidArgument.field(f"spec.tuner.options.{name}", text, reason="ADAPTER_SHAPE")
    chosen = tuner.model_copy(update={"kind": BOTTLENECKS, "options": {**tuner.options, **options}})
    found = config.model_copy(update={"tuner": chosen})
    refuse(combination_violations(found), "spec")
    return found


def require_mergeable(kind: str) -> None:
    """Refuse to merge adapters that no weights could hold.

    Args:
        kind: the adapter's, by its metadata, its files or peft's name, which are the same for these.

    Raises:
        FailedPrecondition: reason ``ADAPTER_CANNOT_MERGE``.
    """
    found = KINDS.get(kind.lower())
    if found is not None and found.unmergeable:
        whose = "the trainer's own (tuners/bottleneck.py)" if kind.lower() == BOTTLENECKS else "peft"
        raise FailedPrecondition(
            f"spec.adapter: is of kind {kind.lower()}, {found.unmergeable}, which no weights of the base model can hold. Load it"
            f" with {whose} as it is, or train an adapter that merges (tuner.kind lora).",
            reason="ADAPTER_CANNOT_MERGE",
        )


def _plain(value: Any) -> Any:
    return sorted(map(str, value)) if isinstance(value, (list, tuple, set)) else value


def _short(value: Any) -> str:
    if not isinstance(value, list):
        return str(value)
    rest = len(value) - _NAMED
    return ", ".join(value[:_NAMED]) + (f" and {rest} more" if rest > 0 else "") if value else "none"
