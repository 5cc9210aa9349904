"""Fields that contradict one another, and fields that the rest of a request leaves without an effect: both are refused, with the remedy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from martlet_core.errors import FieldViolation
from pydantic import BaseModel

from martlet_trainer.recipes import RECIPES

if TYPE_CHECKING:
    from martlet_trainer.config import TrainingConfig
    from martlet_trainer.recipes.options import AnswersOptions

_MOST_DATASETS = 64
#: Fields of ``TunerConfig`` that only LoRA has.
_LORA_FIELDS = ("lora_rank", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "init_weights")
#: Tuners that train other weights from time to time.
_BY_TURNS = ("lisa", "badam")
#: Optimizers with states of low rank.
_PROJECTING = ("galore_adamw", "apollo_adamw")
#: Tuners and starts that recipes with a head don't go with.
_WITHOUT_HEADS = ("lisa", "badam", "llamapro", "longlora", "eva", "lora_ga", "loftq")
#: Tuners that wrap norms.
_OWN_NORMS = ("ln_tuning",)
#: Recipes whose loss may have no gradient.
_BY_REWARDS = ("grpo", "rloo")
#: Fields that choose modules.
_TARGET_FIELDS = ("target_modules", "target_regex", "modules_to_save")

#: Optimizers that compute on each number by itself, so that a part of a matrix has the states that it has in the whole.
_SHARDED_OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "sgd")


def combination_violations(config: TrainingConfig) -> Sequence[FieldViolation]:
    """What is wrong with a config whose fields are each right."""
    return [
        *_tuner_violations(config),
        *_number_violations(config),
        *_data_violations(config),
        *_sharding_violations(config),
        *_head_violations(config),
        *_dataset_violations(config),
    ]


def _head_violations(config: TrainingConfig) -> Iterator[FieldViolation]:
    """Tuners and starts that stand on next tokens, on a model's layers alone, or haven't been shown to train a new head."""
    recipe, tuner = RECIPES.get(config.recipe), config.tuner
    if recipe is None or recipe.task == "causal_lm":
        return
    if tuner.facts.virtual_tokens or tuner.kind in _WITHOUT_HEADS:
        text = f"is {tuner.kind}, which doesn't train what recipe {config.recipe} ends in; set it to lora or full"
        yield FieldViolation("tuner.kind", text)
    if tuner.init_weights in _WITHOUT_HEADS:
        text = f"is {tuner.init_weights}, which is for models that write text; leave it out with recipe {config.recipe}"
        yield FieldViolation("tuner.init_weights", text)


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
    if tuner.facts.whole_model:
        for name in _chosen(tuner, *_LORA_FIELDS, *_TARGET_FIELDS):
            text = f"has no meaning with tuner.kind {tuner.kind}, which trains the model's own weights; leave it out"
            yield FieldViolation(f"tuner.{name}", text)
        if tuner.kind in _BY_TURNS and config.resources.device_count > 1:
            text = f"must be 1 with tuner.kind {tuner.kind}: processes exchange the same gradients in every step; or use full"
            yield FieldViolation("resources.device_count", text)
    elif not tuner.facts.low_rank:
        own = ", ".join(tuner.facts.options.model_fields) or "none"
        for name in _chosen(tuner, *_LORA_FIELDS):
            text = f"is LoRA's, and tuner.kind is {tuner.kind}; its own are under tuner.options: {own}"
            yield FieldViolation(f"tuner.{name}", text)
        if not (tuner.facts.chooses_targets or tuner.facts.virtual_tokens):
            for name in _chosen(tuner, *_TARGET_FIELDS):
                text = f"has no meaning with tuner.kind {tuner.kind}, which has its places in every layer; leave it out"
                yield FieldViolation(f"tuner.{name}", text)
    if tuner.facts.virtual_tokens:
        yield from _virtual_token_violations(config)
    if tuner.init_weights == "loftq" and (tuner.kind != "qlora" or tuner.quantization != "nf4" or tuner.use_dora):
        text = "is loftq, which makes up for the rounding of an nf4 base; set tuner.kind to qlora, quantization to nf4 and use_dora to false"
        yield FieldViolation("tuner.init_weights", text)
    elif tuner.starts_inside_base and tuner.init_weights != "loftq" and (tuner.kind == "qlora" or tuner.use_dora):
        text = f"is {tuner.init_weights}, which needs plain LoRA on unquantized weights; set tuner.kind to lora and use_dora to false"
        yield FieldViolation("tuner.init_weights", text)
    if tuner.init_weights == "lora_ga" and config.recipe in _BY_REWARDS:
        text = (
            f"is lora_ga, which starts from the gradient of the first batches; {config.recipe} has none where a question's answers are"
            " worth the same; use eva"
        )
        yield FieldViolation("tuner.init_weights", text)
    if tuner.kind != "qlora" and _chosen(tuner, "quantization"):
        text = f"has no meaning with tuner.kind {tuner.kind}; leave it out, or set tuner.kind to qlora"
        yield FieldViolation("tuner.quantization", text)
    if tuner.target_regex is not None and _chosen(tuner, "target_modules"):
        yield FieldViolation("tuner.target_regex", "can't be used together with target_modules; give one of them")
    if "all-linear" in tuner.target_modules and len(tuner.target_modules) > 1:
        yield FieldViolation("tuner.target_modules", "mixes all-linear with names; give either all-linear or the names")
    if tuner.use_dora and tuner.kind == "qlora" and tuner.quantization == "int8":
        text = "doesn't work on an int8 base; set tuner.quantization to nf4 or use_dora to false"
        yield FieldViolation("tuner.use_dora", text)


def _virtual_token_violations(config: TrainingConfig) -> Iterator[FieldViolation]:
    kind = config.tuner.kind
    for name in _chosen(config.tuner, *_TARGET_FIELDS):
        text = f"has no meaning with tuner.kind {kind}, which trains tokens in front of each row; leave it out"
        yield FieldViolation(f"tuner.{name}", text)
    if config.data.packing:
        text = f"puts several rows behind one another, and {kind} needs its tokens in front of each; set it to false"
        yield FieldViolation("data.packing", text)
    if kind == "prefix_tuning" and config.hyperparameters.gradient_checkpointing:
        text = "computes layers anew, without the keys and values that prefix_tuning trains; leave it out"
        yield FieldViolation("hyperparameters.gradient_checkpointing", text)


def _number_violations(config: TrainingConfig) -> Iterator[FieldViolation]:
    numbers = config.hyperparameters
    if numbers.learning_rate is not None and numbers.learning_rate_multiplier is not None:
        text = "can't be used together with learning_rate; give one of them"
        yield FieldViolation("hyperparameters.learning_rate_multiplier", text)
    if numbers.lora_plus_ratio is not None and not config.tuner.facts.low_rank:
        text = f"is LoRA's, and tuner.kind is {config.tuner.kind}; leave it out"
        yield FieldViolation("hyperparameters.lora_plus_ratio", text)
    projects = numbers.optimizer in _PROJECTING
    for name in _chosen(numbers, "projection_rank", "projection_interval", "projection_scale"):
        if not projects:
            text = f"is for {' and '.join(_PROJECTING)}, and optimizer is {numbers.optimizer}; leave it out"
            yield FieldViolation(f"hyperparameters.{name}", text)
    if projects and not config.tuner.facts.whole_model:
        text = f"is {numbers.optimizer}, which saves memory on whole matrices; with tuner.kind {config.tuner.kind} use adamw_torch"
        yield FieldViolation("hyperparameters.optimizer", text)
    if numbers.learning_rate_schedule == "constant" and _chosen(numbers, "warmup_ratio") and numbers.warmup_ratio:
        text = "has no meaning with learning_rate_schedule constant; leave it out, or set that to constant_with_warmup"
        yield FieldViolation("hyperparameters.warmup_ratio", text)
    if numbers.precision == "float16" and config.resources.device == "cpu":
        yield FieldViolation(
            "hyperparameters.precision", "is float16, which needs a GPU; use auto, float32 or bfloat16"
        )
    if numbers.use_liger_kernel:
        if config.resources.device == "cpu":
            text = "is true, and its kernels need a GPU, but resources.device is cpu; leave it out"
            yield FieldViolation("hyperparameters.use_liger_kernel", text)
        if config.tuner.kind in _OWN_NORMS:
            text = f"would take the place of the norms that {config.tuner.kind} trains; leave it out, or use lora"
            yield FieldViolation("hyperparameters.use_liger_kernel", text)
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
    if recipe is not None and not recipe.chooses_targets:
        for name in _chosen(config.data, "assistant_only_loss", "last_round_only"):
            text = f"has no meaning with recipe {config.recipe}, which knows what carries loss; leave it out"
            yield FieldViolation(f"data.{name}", text)
    if config.data.last_round_only and not config.data.assistant_only_loss:
        text = "can't be used together with assistant_only_loss false, which trains on every token; give one of them"
        yield FieldViolation("data.last_round_only", text)
    if config.data.validation_split > 0 and config.validation_dataset is not None:
        text = "can't be used together with validation_dataset; give one of them"
        yield FieldViolation("data.validation_split", text)


def _sharding_violations(config: TrainingConfig) -> Iterator[FieldViolation]:
    kind, numbers = config.resources.sharding, config.hyperparameters
    if kind == "none":
        return
    field = "resources.sharding"
    if config.resources.device_count < 2:
        yield FieldViolation(
            field, f"is {kind}, which spreads a training over several devices; set device_count, or leave it out"
        )
    tuner = config.tuner
    if tuner.kind not in ("lora", "full") or _chosen(tuner, "options", "init_weights"):
        yield FieldViolation(
            field, "works with plain lora and full alone; set it to none, or tuner.kind to lora without options"
        )
    if numbers.optimizer in _PROJECTING:
        yield FieldViolation(
            field, f"isn't there for {numbers.optimizer}, which projects whole matrices; set it to none"
        )
    recipe = RECIPES.get(config.recipe)
    if recipe is not None and recipe.generates:
        yield FieldViolation(
            field, f"doesn't work with {config.recipe}, whose processes generate alone; set it to none"
        )
    if numbers.optimizer not in _SHARDED_OPTIMIZERS:
        text = f"is {numbers.optimizer}, whose states can't be spread; use {' or '.join(_SHARDED_OPTIMIZERS)}"
        yield FieldViolation("hyperparameters.optimizer", text)
    if numbers.precision == "float16":
        yield FieldViolation(
            "hyperparameters.precision", "is float16, which resources.sharding has no loss scaling for; use bfloat16"
        )


def answers_violations(config: TrainingConfig, answers: AnswersOptions) -> Iterator[FieldViolation]:
    """Tuners whose adapters no replica takes, where replicas are to answer for the model that is trained."""
    tuner = config.tuner
    if answers.via != "inference":
        return
    remedy = "or set recipe_options.rollouts.via to training"
    if not tuner.facts.low_rank:
        text = f"is {tuner.kind}, which no replica can be given while it trains; set it to lora, {remedy}"
        yield FieldViolation("tuner.kind", text)
    for name in ("use_dora", "modules_to_save"):
        if getattr(tuner, name):
            yield FieldViolation(f"tuner.{name}", f"makes adapters that no replica takes; leave it out, {remedy}")


def _chosen(part: BaseModel, *names: str) -> list[str]:
    """Those of the fields that were set to something else than their default."""
    fields = type(part).model_fields
    return [name for name in names if name in part.model_fields_set and getattr(part, name) != fields[name].default]
