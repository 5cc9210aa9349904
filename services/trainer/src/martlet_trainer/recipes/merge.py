"""Merge: fold an adapter into its base model, and prove that the result answers like the two together.

The weights are added in 32 bit, stored in the asked-for type, and read back from disk; then the log-probabilities that both give to the next
token are compared on a few probe texts; of models that end in a head, what the head says (``merge_probes``). What is compared is what is
published. Storage in 16 bit rounds the sum of base and adapter, so small differences are natural; large ones mean a merge that went wrong,
and nothing is published.

An adapter that was trained on a base quantized by bitsandbytes is merged into what those weights stand for, made ordinary again:
that is the model it was trained on. The unquantized parent is another model, which the adapter has never seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from martlet_core.errors import FailedPrecondition
from martlet_core.recipe import OutputArtifact, RecipeResult, Report, ShouldStop, StopRequested
from martlet_inputs.base_models.model_files import ModelFiles, files_in
from peft import PeftConfig, PeftType
from peft.utils import ModulesToSaveWrapper

from martlet_trainer.adapter_shape import require_mergeable
from martlet_trainer.config import MergeConfig, parse_merge_config
from martlet_trainer.quantized_bases import check_mergeable
from martlet_trainer.recipes.merge_probes import Probe, encode_probes, probe
from martlet_trainer.training.heads import Head, head_in, with_padding, write_head
from martlet_trainer.training.models import dequantize, load_model, load_tokenizer, save_model
from martlet_trainer.tuners.continued import attach, own_adapter_config

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
#: Mean difference in nats that rounding explains, by bytes a stored weight.
_DEFAULT_LIMITS = {4: 0.02, 2: 0.15}
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Difference:
    """How far two models are apart on the probe texts; log-probabilities in nats, of the token that really follows. Of models that end in
    a head: the head's outputs, or of embeddings the cosines between the texts.

    Attributes:
        mean_logprob_difference: mean absolute difference.
        max_logprob_difference: largest absolute difference.
        top1_agreement: share of positions with the same most likely token, class, place among the texts, or nearest text; 0.0 to 1.0.
        positions: positions compared.
    """

    mean_logprob_difference: float
    max_logprob_difference: float
    top1_agreement: float
    positions: int


def run(config: Mapping[str, Any], workdir: Path, report: Report, should_stop: ShouldStop) -> RecipeResult:
    """Merge ``inputs/adapter`` into ``inputs/base_model``.

    Args:
        config: the fields of ``MergeSpec``, and ``base_model``, the name of the model underneath; ``task``, the recipe that made the
            adapter, where its models end in a head.
        workdir: see ``martlet_core.recipe``.
        report: how to speak.
        should_stop: ends the merge between its steps.

    Raises:
        FailedPrecondition: the base is quantized in a way that can't be undone, no weights can hold an adapter of this kind, or the merged
            model differs from the unmerged one by more than the limit.
        StopRequested: ``should_stop`` said so.
    """
    values = dict(config)
    base_name, task = str(values.pop("base_model")), values.pop("task", None)
    settings = parse_merge_config(values)
    base, adapter, output = (
        workdir / "inputs" / "base_model",
        workdir / "inputs" / "adapter",
        workdir / "output" / "model",
    )
    files = files_in(base, "spec.adapter")
    check_mergeable(base_name, files)
    own = own_adapter_config(adapter).get("tuner")
    require_mergeable(own or PeftType(PeftConfig.from_pretrained(str(adapter)).peft_type).value)
    dtype = _storage_type(settings, base)
    head, tokenizer = head_in(adapter), load_tokenizer(base)
    if head.task != "causal_lm":
        with_padding(tokenizer)
    probes = encode_probes(tokenizer)

    def step(name: str) -> None:
        if should_stop():
            raise StopRequested
        report.phase(name)

    step("loading")
    model = attach(_load_base(base, files, dtype, head, report.log), adapter, "spec.adapter")
    step("probing the unmerged model")
    before = probe(model, probes, head)
    step("merging")
    merged = _unwrapped(model.merge_and_unload(safe_merge=True))
    save_model(merged.to(dtype), output, base)
    write_head(head, merged, output)
    tokenizer.save_pretrained(output)
    del model, merged
    step("probing the merged model")
    difference = _compare(before, probe(load_model(output, dtype, _CPU, head=head).float(), probes, head))
    _judge(difference, settings, dtype, report.log)
    metadata = {"base_model": base_name, "precision": _name(dtype), **asdict(difference)}
    metadata |= {"task": task} if task else {}
    return RecipeResult(asdict(difference), {"model": OutputArtifact(output, "merged_model", metadata)})


def _load_base(directory: Path, files: ModelFiles, dtype: torch.dtype, head: Head, log: Callable[[str], None]) -> Any:
    model = load_model(directory, torch.float32, _CPU, head=head)
    if files.quantization is None:
        return model
    log(
        f"The base model is quantized by {files.quantization}; its weights are made ordinary ones again, and the merged model"
        f" is stored unquantized, in {_name(dtype)}."
    )
    return dequantize(model)


def _unwrapped(model: Any) -> Any:
    """The model with modules that were trained whole in their places, where peft 0.21 left both (``ln_tuning``)."""
    for name, module in list(model.named_modules()):
        if isinstance(module, ModulesToSaveWrapper):
            parent, _, child = name.rpartition(".")
            trained = module.unload_and_optionally_merge_module(merge=True, safe_merge=True, adapter_names=None)
            setattr(model.get_submodule(parent), child, trained)
    return model


def _storage_type(settings: MergeConfig, base: Path) -> torch.dtype:
    """The asked-for type; for ``auto`` the one that the base model's weights are stored in."""
    if settings.precision != "auto":
        return _DTYPES[settings.precision]
    from transformers import AutoConfig

    stored = AutoConfig.from_pretrained(base, trust_remote_code=False, local_files_only=True).dtype
    return stored if isinstance(stored, torch.dtype) and stored in _DTYPES.values() else torch.float32


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _compare(before: Probe, after: Probe) -> Difference:
    apart = (before.values - after.values).abs()
    return Difference(
        mean_logprob_difference=apart.mean().item(),
        max_logprob_difference=apart.max().item(),
        top1_agreement=(before.top1 == after.top1).float().mean().item(),
        positions=len(apart),
    )


def _judge(difference: Difference, settings: MergeConfig, dtype: torch.dtype, log: Callable[[str], None]) -> None:
    limit = settings.max_logprob_difference or _DEFAULT_LIMITS[dtype.itemsize]
    found = difference.mean_logprob_difference
    log(
        f"Merged and unmerged model differ by {found:.2g} nats on average over {difference.positions} positions"
        f" (limit {limit:g}); most likely token the same at {difference.top1_agreement:.1%}."
    )
    if not found <= limit:  # also refuses NaN
        raise FailedPrecondition(
            f"The merged model's log-probabilities differ from the unmerged model's by {found:.3g} nats on average, more than"
            f" max_logprob_difference = {limit:g}; nothing was published. Store it in a wider type (precision: float32) or"
            " raise the limit.",
            reason="MERGE_DIFFERS",
        )
