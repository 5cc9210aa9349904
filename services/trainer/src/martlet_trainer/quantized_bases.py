"""What can be done with a base model that is quantized already: which ones adapters train on, and into which they merge. Imports no ML
library: ``serve`` asks it at submission, and the worker once more, for models that only it could fetch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from martlet_core.errors import FailedPrecondition, InvalidArgument
from martlet_inputs.base_models.model_files import ModelFiles, Quantization

from martlet_trainer.config import TunerConfig

_REASON = "BASE_IS_QUANTIZED"
#: More of it is in the README.
_NEEDS_GPTQMODEL = "it is read by GPTQModel alone, whose requirements the trainer's environment can't hold"


@dataclass(frozen=True)
class Rule:
    """What the trainer does with one way of quantizing.

    Attributes:
        made_by: methods of our quantizer whose results are stored so.
        trains: whether adapters train on it, and merge into it.
        why: what stands against it; empty where it trains.
    """

    made_by: tuple[str, ...] = ()
    trains: bool = False
    why: str = ""


#: ``Quantization.method`` -> what is done with it. A method that isn't here is refused.
RULES: Mapping[str, Rule] = {
    "bitsandbytes": Rule(("bnb-nf4", "bnb-int8"), trains=True),
    "gptq": Rule(("gptq",), why=_NEEDS_GPTQMODEL),
    "awq": Rule(("awq",), why=_NEEDS_GPTQMODEL),
    "compressed-tensors": Rule(
        ("w8a8-int8", "w4a16", "fp8-dynamic"),
        why="the trainer has no library that reads it, and its layers are made for inference",
    ),
    "gguf": Rule(("gguf",), why="transformers reads its blocks for inference only"),
}
_OTHER = Rule(why="the trainer knows no gradients through layers that are quantized in this way")


def check_trainable(tuner: TunerConfig, name: str, base: ModelFiles, *, underneath: str = "") -> None:
    """Refuse a training that the base model's storage doesn't allow.

    Args:
        tuner: as asked for, before defaults were filled in.
        name: of the base model, as the request has it.
        base: the whole model's files.
        underneath: name of the whole model, where ``name`` is an adapter on it.

    Raises:
        FailedPrecondition: no adapter trains on weights that are quantized so.
        InvalidArgument: one would, but not with this tuner.
    """
    found = base.quantization
    if found is None:
        return
    subject = f"{name} is an adapter on {underneath}, which" if underneath else name
    rule = RULES.get(found.method, _OTHER)
    parent = base.made_from or "the model that it was made from"
    if not rule.trains:
        raise FailedPrecondition(
            f"spec.base_model: {subject} is quantized by {found}, and adapters can't be trained on that: {rule.why}."
            f" Train on {parent}, or on what the quantizer makes of that one by {_trainable_methods()}.",
            reason=_REASON,
        )
    if tuner.facts.whole_model:
        raise InvalidArgument.field(
            "spec.tuner.kind",
            f"is {tuner.kind}, but {subject} is quantized by {found}, and such weights can't move; set it to lora, or train {parent}",
            reason=_REASON,
        )
    if not tuner.facts.low_rank:
        raise InvalidArgument.field(
            "spec.tuner.kind",
            f"is {tuner.kind}, but {subject} is quantized by {found}, on which LoRA alone is trained; set it to lora, or train {parent}",
            reason=_REASON,
        )
    _check_storage(tuner, found)


def check_readable(field: str, model: ModelFiles) -> None:
    """Refuse a model to learn from that can't be loaded here.

    Raises:
        FailedPrecondition: names ``field`` and what to do instead.
    """
    found = model.quantization
    if found is None or RULES.get(found.method, _OTHER).trains:
        return
    parent = model.made_from or "the model that it was made from"
    raise FailedPrecondition(
        f"{field}: is quantized by {found}, which the trainer can't load. Give {parent}, or what the quantizer makes of that one by"
        f" {_trainable_methods()}.",
        reason=_REASON,
    )


def check_mergeable(base_name: str, base: ModelFiles) -> None:
    """Refuse merging into weights that can't be made ordinary ones again.

    Raises:
        FailedPrecondition: with what to do instead.
    """
    found = base.quantization
    if found is None or RULES.get(found.method, _OTHER).trains:
        return
    parent = base.made_from or "the unquantized model"
    raise FailedPrecondition(
        f"spec.adapter: its base model {base_name} is quantized by {found}, and the trainer can't make ordinary weights of that, which"
        f" merging needs. Serve the adapter on that base as it is, or train it on {parent} and merge the result.",
        reason=_REASON,
    )


def _check_storage(tuner: TunerConfig, found: Quantization) -> None:
    """A base that was quantized beforehand stays as it is; a request for something else is refused."""
    if tuner.kind == "qlora" and "quantization" in tuner.model_fields_set and tuner.quantization != found.scheme:
        text = f"is {tuner.quantization}, but the base model is stored as {found.scheme}; leave it out"
        raise InvalidArgument.field("spec.tuner.quantization", text)
    if tuner.starts_inside_base:
        text = f"is {tuner.init_weights}, which needs unquantized weights, but the base model is quantized by {found}; leave it out"
        raise InvalidArgument.field("spec.tuner.init_weights", text)
    if tuner.use_dora and found.scheme == "int8":
        text = "doesn't work on an int8 base, as which the base model is stored; set it to false, or take an nf4 base"
        raise InvalidArgument.field("spec.tuner.use_dora", text)


def _trainable_methods() -> str:
    return " or ".join(name for rule in RULES.values() if rule.trains for name in rule.made_by)


def table() -> str:
    """The rules as the README has them."""
    head = (
        "| `quant_method` of the base model | made by | LoRA trains on it | an adapter merges into it | why not |\n"
        "|---|---|---|---|---|\n"
    )
    rows = [(f"`{method}`", rule) for method, rule in RULES.items()]
    return head + "".join(_row(*row) for row in [*rows, ("any other", _OTHER)])


def _row(method: str, rule: Rule) -> str:
    made_by = ", ".join(f"`{name}`" for name in rule.made_by)
    trains = "yes" if rule.trains else "no"
    return f"| {method} | {made_by} | {trains} | {trains} | {rule.why} |\n"
