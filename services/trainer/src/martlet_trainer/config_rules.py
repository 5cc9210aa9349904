"""Fields that contradict one another, and fields that the rest of a request leaves without an effect: both are refused, with the remedy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from martlet_core.errors import FieldViolation
from pydantic import BaseModel

from martlet_trainer.recipes import RECIPES

if TYPE_CHECKING:
    from martlet_trainer.config import TrainingConfig

_MOST_DATASETS = 64
#: Fields of ``TunerConfig`` that only LoRA has.
_LORA_FIELDS = ("lora_rank", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "init_weights")


def combination_violations(config: TrainingConfig) -> Sequence[FieldViolation]:
    """What is wrong with a config whose fields are each right."""
    return [
        *_tuner_violations(config),
        *_number_violations(config),
        *_data_violations(config),
        *_dataset_violations(config),
    ]


def _dataset_violations(config: TrainingConfig) -> Iterator[FieldViolation]:
    samples = config.training_datasets
    if samples and samples[0].dataset != config.training_dataset:
        text = f"names {samples[0].dataset!r} first, and training_dataset is {config.training_dataset!r}; it must be the first of them"
        yield FieldViolation("training_datasets", text)
    if len(samples) > _MOST_DATASETS:
        yield FieldViolation("training_datasets", f"has {len(samples)} entries; at most {_MOST_DATASETS} are taken")
    for index, sample in enumerate(samples):
        if sample.count is not None and sample.share is not None:
            yield FieldViolation(
                f"training_datasets.{index}.share", "can't be given together with count; leave one out"
            )


def _tuner_violations(config: TrainingConfig) -> Iterator[FieldViolation]:
    tuner = config.tuner
    if tuner.kind == "full":
        for name in _chosen(tuner, *_LORA_FIELDS, "target_modules", "modules_to_save"):
            text = "has no meaning with tuner.kind full, which trains every module; leave it out"
            yield FieldViolation(f"tuner.{name}", text)
    elif not tuner.facts.low_rank:
        own = ", ".join(tuner.facts.options.model_fields) or "none"
        for name in _chosen(tuner, *_LORA_FIELDS):
            text = f"is LoRA's, and tuner.kind is {tuner.kind}; its own are under tuner.options: {own}"
            yield FieldViolation(f"tuner.{name}", text)
    if tuner.starts_inside_base and (tuner.kind == "qlora" or tuner.use_dora):
        text = f"is {tuner.init_weights}, which needs plain LoRA on unquantized weights; set tuner.kind to lora and use_dora to false"
        yield FieldViolation("tuner.init_weights", text)
    if tuner.kind != "qlora" and _chosen(tuner, "quantization"):
        text = f"has no meaning with tuner.kind {tuner.kind}; leave it out, or set tuner.kind to qlora"
        yield FieldViolation("tuner.quantization", text)
    if "all-linear" in tuner.target_modules and len(tuner.target_modules) > 1:
        yield FieldViolation("tuner.target_modules", "mixes all-linear with names; give either all-linear or the names")
    if tuner.use_dora and tuner.kind == "qlora" and tuner.quantization == "int8":
        text = "doesn't work on an int8 base; set tuner.quantization to nf4 or use_dora to false"
        yield FieldViolation("tuner.use_dora", text)


def _number_violations(config: TrainingConfig) -> Iterator[FieldViolation]:
    numbers = config.hyperparameters
    if numbers.learning_rate is not None and numbers.learning_rate_multiplier is not None:
        text = "can't be used together with learning_rate; give one of them"
        yield FieldViolation("hyperparameters.learning_rate_multiplier", text)
    if numbers.lora_plus_ratio is not None and not config.tuner.facts.low_rank:
        text = f"is LoRA's, and tuner.kind is {config.tuner.kind}; leave it out"
        yield FieldViolation("hyperparameters.lora_plus_ratio", text)
    if numbers.learning_rate_schedule == "constant" and _chosen(numbers, "warmup_ratio") and numbers.warmup_ratio:
        text = "has no meaning with learning_rate_schedule constant; leave it out, or set that to constant_with_warmup"
        yield FieldViolation("hyperparameters.warmup_ratio", text)
    if numbers.precision == "float16" and config.resources.device == "cpu":
        yield FieldViolation(
            "hyperparameters.precision", "is float16, which needs a GPU; use auto, float32 or bfloat16"
        )
    if not config.validation_dataset and config.data.validation_split == 0:
        for name in ("early_stopping_patience", "eval_steps"):
            if getattr(numbers, name) is not None:
                text = "needs validation rows; set validation_dataset or data.validation_split, or leave it out"
                yield FieldViolation(f"hyperparameters.{name}", text)


def _data_violations(config: TrainingConfig) -> Iterator[FieldViolation]:
    recipe = RECIPES.get(config.recipe)
    if recipe is not None and config.data.packing and not recipe.packs:
        packing = ", ".join(name for name, info in RECIPES.items() if info.packs)
        text = f"is for recipes whose rows stand alone ({packing}); set it to false"
        yield FieldViolation("data.packing", text)
    if recipe is not None and not recipe.chooses_targets and _chosen(config.data, "assistant_only_loss"):
        text = f"has no meaning with recipe {config.recipe}, which knows what carries loss; leave it out"
        yield FieldViolation("data.assistant_only_loss", text)
    if config.data.validation_split > 0 and config.validation_dataset is not None:
        text = "can't be used together with validation_dataset; give one of them"
        yield FieldViolation("data.validation_split", text)


def _chosen(part: BaseModel, *names: str) -> list[str]:
    """Those of the fields that were set to something else than their default."""
    fields = type(part).model_fields
    return [name for name in names if name in part.model_fields_set and getattr(part, name) != fields[name].default]
