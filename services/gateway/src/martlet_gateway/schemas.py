"""Bodies of requests, as OpenAI's clients send them. Unknown fields are refused: a setting that is ignored in silence
is worse than an error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

SUFFIX_PATTERN = r"^[A-Za-z0-9._-]{1,64}$"
MAX_SEED = 2**31 - 1


class Body(BaseModel):
    """Base of all bodies."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


def _auto_or_integer(low: int, high: int) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and low <= value <= high):
            return value
        raise ValueError(f'must be "auto" or an integer from {low} to {high}; got {value!r:.60}.')

    return check


def _auto_or_number(low: float, high: float | None = None) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if value == "auto" or (number and low < value and (high is None or value <= high)):
            return value
        limit = "" if high is None else f" and at most {high:g}"
        raise ValueError(f'must be "auto" or a number greater than {low:g}{limit}; got {value!r:.60}.')

    return check


def _metadata(value: Any) -> Any:
    if value is None:
        return None
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise ValueError("must be an object whose values are strings.")
    if len(value) > 16:
        raise ValueError(f"must have at most 16 keys; got {len(value)}.")
    for key, text in value.items():
        if not 0 < len(key) <= 64 or len(text) > 512:
            raise ValueError(f"keys have 1 to 64 characters and values at most 512; `{key:.64}` doesn't fit.")
    return value


AutoEpochs = Annotated[int | Literal["auto"], BeforeValidator(_auto_or_integer(1, 50))]
AutoBatchSize = Annotated[int | Literal["auto"], BeforeValidator(_auto_or_integer(1, 256))]
AutoInterval = Annotated[int | Literal["auto"], BeforeValidator(_auto_or_integer(1, 1 << 31))]
AutoMultiplier = Annotated[float | Literal["auto"], BeforeValidator(_auto_or_number(0))]
AutoBeta = Annotated[float | Literal["auto"], BeforeValidator(_auto_or_number(0, 2))]
Metadata = Annotated[dict[str, str] | None, BeforeValidator(_metadata)]


class Hyperparameters(Body):
    """OpenAI's hyperparameters; ``auto`` leaves a number to the recipe."""

    n_epochs: AutoEpochs | None = None
    batch_size: AutoBatchSize | None = Field(None, description="Rows of one optimizer step, over all devices.")
    learning_rate_multiplier: AutoMultiplier | None = None


class DpoHyperparameters(Hyperparameters):
    """The same, for preference training."""

    beta: AutoBeta | None = None


class TextFormat(Body):
    """What answers look like: text alone, as nothing constrains them while a model is trained."""

    type: Literal["text"]


class RunGrader(Body):
    """Body of POST /v1/fine_tuning/alpha/graders/run."""

    grader: dict[str, Any]
    model_sample: str = Field(description="The answer to grade.")
    item: dict[str, Any] = Field(default_factory=dict, description="The row that `item.` names.")


class ValidateGrader(Body):
    """Body of POST /v1/fine_tuning/alpha/graders/validate."""

    grader: dict[str, Any]


class Supervised(Body):
    """Supervised fine-tuning."""

    hyperparameters: Hyperparameters | None = None


class Dpo(Body):
    """Preference training."""

    hyperparameters: DpoHyperparameters | None = None


class ReinforcementHyperparameters(Hyperparameters):
    """The same, for learning from a grader's rewards."""

    compute_multiplier: Literal["auto", 1] | None = Field(
        None,
        description="Only what is done anyway; answers to a question are `martlet.recipe_options.num_generations`.",
    )
    eval_interval: AutoInterval | None = Field(None, description="Steps between validations; needs `validation_file`.")
    eval_samples: Literal["auto", 1] | None = Field(
        None, description="Only what is done anyway: a validation answers each question once, by the likeliest tokens."
    )
    reasoning_effort: Literal["default"] | None = Field(None, description="Only what is done anyway: models have none.")


class Reinforcement(Body):
    """Learning from a grader's rewards."""

    grader: dict[str, Any] = Field(
        description="string_check, text_similarity (fuzzy_match) or multi, as OpenAI has them."
    )
    hyperparameters: ReinforcementHyperparameters | None = None
    response_format: TextFormat | None = None


class Method(Body):
    """How to train."""

    type: Literal["supervised", "dpo", "reinforcement"]
    supervised: Supervised | None = None
    dpo: Dpo | None = None
    reinforcement: Reinforcement | None = None


class WandbIntegration(Body):
    """A run in Weights & Biases."""

    project: str = Field(min_length=1)
    name: str | None = None
    entity: str | None = None
    tags: list[str] | None = None


class Integration(Body):
    """A tool that is told of the training. OpenAI has one; others go by ``martlet.trackers``."""

    type: Literal["wandb"]
    wandb: WandbIntegration


class CreateFineTuningJob(Body):
    """Body of POST /v1/fine_tuning/jobs."""

    model: str = Field(min_length=1, description="Base model by name, hub id, `artifacts/{id}`, or a fine-tuned model.")
    training_file: str = Field(description="`file-...` of rows to train on.")
    validation_file: str | None = Field(None, description="`file-...` of rows to validate on.")
    hyperparameters: Hyperparameters | None = Field(
        None, description="Use `method`.", json_schema_extra={"deprecated": True}
    )
    method: Method | None = None
    suffix: Annotated[str, Field(pattern=SUFFIX_PATTERN)] | None = Field(
        None, description="Part of the fine-tuned model's name: 1 to 64 of A-Z a-z 0-9 . _ -"
    )
    seed: Annotated[int, Field(ge=0, le=MAX_SEED, strict=True)] | None = None
    metadata: Metadata = None
    integrations: list[Integration] | None = None
    martlet: dict[str, Any] | None = Field(
        None,
        description="What OpenAI has no field for: `recipe`, `tuner`, `hyperparameters`, `data`, `resources`, "
        "`checkpoints`, `recipe_options`, `trackers`, `display_name`, each as in martlet.trainer.v1.TrainingSpec; single settings "
        "may stand without their group (`lora_rank`).",
    )


class ExpiresAfter(Body):
    """When a file goes by itself."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=3600, le=2592000)]


class CreateUpload(Body):
    """Body of POST /v1/uploads."""

    filename: str = Field(min_length=1, max_length=512)
    purpose: str
    bytes: Annotated[int, Field(ge=1)]
    mime_type: str
    expires_after: ExpiresAfter | None = None


class CompleteUpload(Body):
    """Body of POST /v1/uploads/{id}/complete."""

    part_ids: Annotated[list[str], Field(min_length=1, max_length=10_000)]
    md5: str | None = None


class ModelBody(Body):
    """Body that names a model for /v1/martlet/replicas."""

    model: str = Field(min_length=1)
    pin: bool = False


class PinBody(Body):
    """Body of POST /v1/martlet/replicas/pin."""

    model: str = Field(min_length=1)
    pinned: bool = True


class CreateEval(Body):
    """Body of POST /v1/evals."""

    data_source_config: dict[str, Any] = Field(
        description="`{type: custom, item_schema, include_sample_schema}`: what a row's item looks like."
    )
    testing_criteria: list[dict[str, Any]] = Field(
        min_length=1,
        max_length=50,
        description="Graders: string_check, text_similarity, label_model, score_model, multi.",
    )
    name: Annotated[str, Field(max_length=256)] | None = None
    metadata: Metadata = None


class UpdateEval(Body):
    """Body of POST /v1/evals/{id}; what isn't given stays."""

    name: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    metadata: Metadata = None


class CreateEvalRun(Body):
    """Body of POST /v1/evals/{id}/runs."""

    data_source: dict[str, Any] = Field(
        description="`{type: completions|responses|jsonl, source, model, input_messages, sampling_params}`."
    )
    name: Annotated[str, Field(max_length=256)] | None = None
    metadata: Metadata = None
    martlet: dict[str, Any] | None = Field(
        None,
        description="What OpenAI has no field for: `max_rows`, `concurrency`, `category_field`, `resources`, as in "
        "martlet.evaluator.v1.EvaluationSpec.",
    )
