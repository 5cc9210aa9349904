"""What a training or merge job asks for, as frozen values that mirror ``TrainingSpec`` and ``MergeSpec``.

Everything about a request that can be known without opening its data or its model is checked here, so that a wrong request is refused
at submission. This module imports no ML library: the ``serve`` process uses it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le
from martlet_core.addresses import is_allowed
from martlet_core.config import (
    MODEL_PATTERN,
    Config,
    Float,
    Int,
    QueueConfig,
    dataset_violations,
    model_violations,
    parse_config,
    plain_enum,
    refuse,
    suffix_violations,
)
from martlet_core.errors import FieldViolation, InvalidArgument, PermissionDenied
from martlet_core.model_rules import parse_hub_id
from martlet_core.reward_graders import asks_models
from martlet_inputs.rows.kinds import RowKind
from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from martlet_trainer.config_rules import answers_violations, combination_violations
from martlet_trainer.recipes import RECIPES
from martlet_trainer.recipes.options import AnswersOptions, DistillOptions, RewardServiceOptions, RolloutOptions
from martlet_trainer.trackers import TrackerConfig, tracker_violations
from martlet_trainer.tuners.kinds import KINDS, TunerKind
from martlet_trainer.tuners.options import LongloraOptions, regular_expression

#: Longest row in tokens where the request doesn't say; less where the model's context is shorter.
DEFAULT_MAX_LENGTH = 2048


OnBadRows = Annotated[Literal["fail", "skip"], BeforeValidator(plain_enum("ON_BAD_ROWS_"))]
OnLongRows = Annotated[Literal["truncate", "refuse"], BeforeValidator(plain_enum("ON_LONG_ROWS_"))]
Device = Annotated[Literal["auto", "cpu", "cuda"], BeforeValidator(plain_enum("DEVICE_"))]
Precision = Literal["auto", "float32", "bfloat16", "float16"]
Schedule = Literal["linear", "cosine", "constant", "constant_with_warmup"]
Optimizer = Literal[
    "adamw_torch",
    "adamw_torch_fused",
    "adamw_bnb_8bit",
    "paged_adamw_32bit",
    "paged_adamw_8bit",
    "adafactor",
    "sgd",
    "galore_adamw",
    "apollo_adamw",
]


def _known_kind(name: str) -> str:
    if name not in KINDS:
        raise ValueError(f"is {name!r}; must be one of: {', '.join(KINDS)}")
    return name


class TunerConfig(Config):
    """Which weights are trained."""

    kind: Annotated[str, AfterValidator(_known_kind)] = "lora"
    lora_rank: Annotated[Int, Ge(1), Le(512)] = 8
    lora_alpha: Annotated[Float, Gt(0), Le(65536)] | None = Field(default=None, description="Default: 2 x lora_rank.")
    lora_dropout: Annotated[Float, Ge(0), Le(0.9)] = 0.0
    target_modules: tuple[str, ...] = ("all-linear",)
    target_regex: Annotated[str, AfterValidator(regular_expression)] | None = Field(
        default=None, description="Modules to adapt, by a pattern that their whole name must match."
    )
    modules_to_save: tuple[str, ...] = ()
    use_rslora: bool = False
    use_dora: bool = False
    quantization: Literal["nf4", "int8"] = "nf4"
    options: dict[str, Any] = Field(default_factory=dict)
    init_weights: Literal["default", "gaussian", "orthogonal", "pissa", "olora", "eva", "lora_ga", "loftq"] = "default"

    @property
    def facts(self) -> TunerKind:
        """What is known of its kind."""
        return KINDS[self.kind]

    @property
    def starts_inside_base(self) -> bool:
        """Whether LoRA begins as something else than nothing; what it writes then has twice the rank."""
        return self.init_weights in ("pissa", "olora", "lora_ga", "loftq")

    @property
    def written_rank(self) -> int:
        """LoRA rank of the adapters that a training writes; 0 for other kinds."""
        return (2 if self.starts_inside_base else 1) * self.lora_rank if self.facts.low_rank else 0

    @property
    def context_factor(self) -> float:
        """How much longer the model's context becomes."""
        options = parse_tuner_options(self)
        return options.factor if isinstance(options, LongloraOptions) else 1.0

    @model_validator(mode="before")
    @classmethod
    def _empty_targets_are_default(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("target_modules") in ([], ()):
            return {key: value for key, value in values.items() if key != "target_modules"}
        return values


class Hyperparameters(Config):
    """Numbers of a training."""

    epoch_count: Annotated[Float, Gt(0), Le(10000)] = 3.0
    max_steps: Annotated[Int, Ge(1)] | None = None
    per_device_batch_size: Annotated[Int, Ge(1), Le(65536)] = 8
    gradient_accumulation_steps: Annotated[Int, Ge(1), Le(65536)] = 1
    learning_rate: Annotated[Float, Gt(0), Le(10)] | None = Field(
        default=None, description="Default: by recipe and tuner, see RecipeInfo."
    )
    learning_rate_multiplier: Annotated[Float, Gt(0), Le(1000)] | None = None
    learning_rate_schedule: Schedule = "cosine"
    warmup_ratio: Annotated[Float, Ge(0), Le(1)] = 0.03
    weight_decay: Annotated[Float, Ge(0), Le(10)] = 0.0
    max_grad_norm: Annotated[Float, Ge(0)] = 1.0
    eval_steps: Annotated[Int, Ge(1)] | None = Field(default=None, description="Default: at each epoch's end.")
    early_stopping_patience: Annotated[Int, Ge(1)] | None = None
    optimizer: Optimizer = "adamw_torch"
    precision: Precision = "auto"
    gradient_checkpointing: bool | None = Field(default=None, description="Default: off on CPU, on on GPU.")
    lora_plus_ratio: Annotated[Float, Ge(1), Le(1000)] | None = Field(
        default=None, description="Learning rate of LoRA's B beside A's (LoRA+, arXiv 2402.12354). Default: the same."
    )
    projection_rank: Annotated[Int, Ge(1), Le(65536)] = Field(
        default=128,
        description="Of galore_adamw and apollo_adamw: rank of their states; wider matrices alone are projected.",
    )
    projection_interval: Annotated[Int, Ge(1)] = Field(
        default=200, description="Of the same: steps after which the projection is chosen anew."
    )
    projection_scale: Annotated[Float, Gt(0), Le(1000)] | None = Field(
        default=None,
        description="Of the same: factor on the updates. Default: 0.25 for galore_adamw, 1 for apollo_adamw.",
    )
    use_liger_kernel: bool = Field(
        default=False, description="Liger's kernels for norms, rotary positions and feed-forward parts; needs a GPU."
    )
    neftune_noise_alpha: Annotated[Float, Gt(0), Le(1000)] | None = Field(
        default=None, description="Noise on embeddings while training (NEFTune, arXiv 2310.05914). Default: none."
    )


class DataConfig(Config):
    """How rows are read."""

    keep_empty: ClassVar[frozenset[str]] = frozenset({"system"})

    max_length: Annotated[Int, Ge(8), Le(1 << 24)] | None = Field(
        default=None, description="Default: the model's context, at most 2048."
    )
    packing: bool = False
    on_bad_rows: OnBadRows = "fail"
    on_long_rows: OnLongRows = "truncate"
    validation_split: Annotated[Float, Ge(0), Le(0.5)] = 0.0
    assistant_only_loss: bool = True
    last_round_only: bool = Field(
        default=False, description="Loss on what follows the user's last turn alone (SWIFT's loss_scale last_round)."
    )
    system: str | None = Field(default=None, description="Default: what the model's chat template does by itself.")


class ResourceConfig(QueueConfig):
    """Where a training runs."""

    device: Device = "auto"
    device_count: Annotated[Int, Ge(1), Le(64)] = 1
    sharding: Literal["none", "zero2", "zero3"] = Field(
        default="none",
        description="What of the training is spread over its devices: nothing but the rows; gradients and optimizer; the weights too.",
    )


class CheckpointConfig(Config):
    """When checkpoints are taken; whichever interval ends first counts."""

    interval_steps: Annotated[Int, Ge(1)] | None = Field(default=None, description="Default: by time only.")
    interval_seconds: Annotated[Float, Ge(1)] = 300.0


class DatasetSample(Config):
    """One of several data sets, and how many of its rows an epoch has."""

    dataset: str
    count: Annotated[Int, Ge(1), Le(1 << 40)] | None = Field(default=None, description="Default: all rows.")
    share: Annotated[Float, Gt(0), Le(1000)] | None = Field(default=None, description="Default: all rows.")
    name: str | None = Field(default=None, description="Default: the data set's own.")

    @property
    def samples(self) -> bool:
        """Whether its rows are drawn, and not just taken."""
        return self.count is not None or self.share is not None


class TrainingConfig(Config):
    """One training, as asked for; mirrors ``martlet.trainer.v1.TrainingSpec``."""

    base_model: str
    training_dataset: str
    training_datasets: tuple[DatasetSample, ...] = ()
    validation_dataset: str | None = None
    recipe: str = "sft"
    tuner: TunerConfig = Field(default_factory=TunerConfig)
    hyperparameters: Hyperparameters = Field(default_factory=Hyperparameters)
    data: DataConfig = Field(default_factory=DataConfig)
    resources: ResourceConfig = Field(default_factory=ResourceConfig)
    checkpoints: CheckpointConfig = Field(default_factory=CheckpointConfig)
    suffix: str | None = None
    recipe_options: dict[str, Any] = Field(default_factory=dict)
    seed: Annotated[Int, Ge(0), Le(2**31 - 1)] = 42
    trackers: tuple[TrackerConfig, ...] = ()

    @property
    def sources(self) -> Mapping[str, DatasetSample]:
        """The data sets to train on, by the name of their directory among the inputs."""
        samples = self.training_datasets or (DatasetSample(dataset=self.training_dataset),)
        first = "training_dataset"
        return {first if index == 0 else f"{first}_{index + 1}": sample for index, sample in enumerate(samples)}

    def resolved(self) -> TrainingConfig:
        """The same config with the defaults filled in that follow from other fields; doing it twice changes nothing.

        What depends on the device or the model (precision, gradient checkpointing, max_length) stays unset: only the recipe can know it.
        """
        tuner, numbers = self.tuner, self.hyperparameters
        if tuner.lora_alpha is None and tuner.facts.low_rank:
            tuner = tuner.model_copy(update={"lora_alpha": 2.0 * tuner.lora_rank})
        if numbers.learning_rate is None:
            rates = RECIPES[self.recipe].learning_rates
            rate = rates["full" if tuner.facts.whole_model else "adapter"] * tuner.facts.rate_factor
            rate *= numbers.learning_rate_multiplier or 1.0
            numbers = numbers.model_copy(update={"learning_rate": rate, "learning_rate_multiplier": None})
        return self.model_copy(update={"tuner": tuner, "hyperparameters": numbers})


class MergeConfig(Config):
    """One merge, as asked for; mirrors ``martlet.trainer.v1.MergeSpec``."""

    adapter: str
    precision: Precision = "auto"
    suffix: str | None = None
    max_logprob_difference: Annotated[Float, Gt(0), Le(100)] | None = Field(
        default=None, description="Nats. Default: 0.02 for 32-bit storage, 0.15 for 16-bit storage."
    )


def parse_training_config(values: Mapping[str, Any], prefix: str = "spec") -> TrainingConfig:
    """Read a training config from plain values.

    Args:
        values: keys as in ``TrainingSpec``; enums by proto name or plain word; None and "" mean "not set".
        prefix: path put in front of field names in violations; empty for none.

    Raises:
        InvalidArgument: with one violation for every field at fault.
    """
    config = parse_config(TrainingConfig, values, prefix)
    refuse([*_name_violations(config), *combination_violations(config), *tracker_violations(config.trackers)], prefix)
    refuse(list(answers_violations(config, answers_options(config))), prefix)
    return config


def parse_merge_config(values: Mapping[str, Any], prefix: str = "spec") -> MergeConfig:
    """Read a merge config from plain values; see ``parse_training_config``.

    Raises:
        InvalidArgument: with one violation for every field at fault.
    """
    config = parse_config(MergeConfig, values, prefix)
    violations = []
    if not MODEL_PATTERN.fullmatch(config.adapter):
        violations.append(
            FieldViolation("adapter", f"is {config.adapter!r}; give a fine-tuned model's name or artifacts/<id>")
        )
    refuse([*violations, *suffix_violations(config.suffix)], prefix)
    return config


def resolve_max_length(asked: int | None, context: int) -> int:
    """The longest row in tokens.

    Raises:
        InvalidArgument: more was asked for than the model's context holds.
    """
    if asked is not None and asked > context:
        raise InvalidArgument.field(
            "spec.data.max_length", f"is {asked}, more than the model's context of {context} tokens"
        )
    return asked or min(context, DEFAULT_MAX_LENGTH)


def parse_recipe_options(config: TrainingConfig) -> Config:
    """The options of the config's recipe, typed.

    Raises:
        InvalidArgument: the recipe isn't known, or doesn't know an option.
    """
    return parse_config(_options_model(config.recipe), config.recipe_options, "recipe_options")


def answers_options(config: TrainingConfig) -> AnswersOptions:
    """Where the config's recipe has answers drawn."""
    options = parse_recipe_options(config)
    return options.rollouts if isinstance(options, (RolloutOptions, DistillOptions)) else AnswersOptions()


def judging_graders(config: TrainingConfig) -> Sequence[Mapping[str, Any]]:
    """The graders of the config's recipe that ask models."""
    options = parse_recipe_options(config)
    return [grader for grader in options.graders if asks_models(grader)] if isinstance(options, RolloutOptions) else []


def reward_services(config: TrainingConfig) -> Sequence[RewardServiceOptions]:
    """The services that the config's recipe asks for rewards."""
    options = parse_recipe_options(config)
    return options.reward_services if isinstance(options, RolloutOptions) else ()


def require_allowed(services: Sequence[RewardServiceOptions], allowed: Sequence[str]) -> None:
    """Refuse services that the operator didn't allow.

    Raises:
        PermissionDenied: naming the first one.
    """
    for index, service in enumerate(services):
        if not is_allowed(service.where, allowed):
            raise PermissionDenied(
                f"spec.recipe_options.reward_services.{index}: {service.where} is not among the services that the operator allowed"
                " (MARTLET_ALLOWED_REWARD_SERVICES)",
                reason="REWARD_SERVICE_NOT_ALLOWED",
            )


def row_kind(config: TrainingConfig) -> RowKind[Any]:
    """What the config's data sets are made of."""
    return RECIPES[config.recipe].row_kind(parse_recipe_options(config))


def parse_tuner_options(tuner: TunerConfig) -> Config:
    """The options of the config's tuner, typed.

    Raises:
        InvalidArgument: the tuner doesn't know an option.
    """
    return parse_config(tuner.facts.options, tuner.options, "tuner.options")


def _options_model(recipe: str) -> type[Config]:
    if recipe not in RECIPES:
        raise InvalidArgument.field("recipe", f"is {recipe!r}; must be one of: {', '.join(RECIPES)}")
    return RECIPES[recipe].options


def _dataset_violations(field: str, name: str | None) -> Sequence[FieldViolation]:
    hub = parse_hub_id(name or "")
    if hub is None:
        return dataset_violations(field, name)
    if hub.revision:
        return []
    text = f"is {name!r}; give a hub's data set with its commit or tag, {name}@<commit>, so that it goes on having the same rows"
    return [FieldViolation(field, text)]


def _name_violations(config: TrainingConfig) -> Sequence[FieldViolation]:
    found = model_violations("base_model", config.base_model)
    named = {"training_dataset": config.training_dataset, "validation_dataset": config.validation_dataset}
    named |= {f"training_datasets.{i}.dataset": sample.dataset for i, sample in enumerate(config.training_datasets)}
    for field, name in named.items():
        found += _dataset_violations(field, name)
    found += suffix_violations(config.suffix)
    for parse in (lambda: parse_recipe_options(config), lambda: parse_tuner_options(config.tuner)):
        try:
            parse()
        except InvalidArgument as error:
            found += error.violations
    return found
