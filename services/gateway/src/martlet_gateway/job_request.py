"""OpenAI's request for a fine-tuning job -> trainer.v1, and the trainer's words for its fields -> the client's."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from google.protobuf.struct_pb2 import Struct
from martlet.trainer.v1 import training_job_pb2, training_service_pb2
from martlet_core.errors import FieldViolation, InvalidArgument, MartletError, NotFound
from martlet_core.reward_graders import reward_grader_violations

from martlet_gateway import proto_json
from martlet_gateway.file_store import PREFIX as FILE_PREFIX
from martlet_gateway.schemas import (
    CreateFineTuningJob,
    DpoHyperparameters,
    Hyperparameters,
    Reinforcement,
    ReinforcementHyperparameters,
)

_GROUPS = ("tuner", "hyperparameters", "data", "resources", "checkpoints")
_WHOLE_KEYS = (*_GROUPS, "recipe", "recipe_options", "trackers", "training_datasets", "display_name")
_OPENAI_KEYS = {
    "base_model": "model",
    "training_dataset": "training_file",
    "validation_dataset": "validation_file",
    "suffix": "suffix",
    "seed": "seed",
}
_SPEC: Any = training_job_pb2.TrainingSpec.DESCRIPTOR
_LEAVES = {leaf.name: group for group in _GROUPS for leaf in _SPEC.fields_by_name[group].message_type.fields}
_TRACKER_FIELDS = [field.name for field in _SPEC.fields_by_name["trackers"].message_type.fields]
_LARGEST_DEVICE_BATCH = 8
#: OpenAI's ``method.type`` -> the recipe that it means.
_RECIPES = {"supervised": "sft", "dpo": "dpo", "reinforcement": "grpo"}

#: A field of the trainer's request, as its messages name it.
_FIELD = re.compile(r"\bspec\.[a-z_]+(?:\.(?:[a-z_]+|\d+))*|^(?:base_model|training_dataset|validation_dataset)(?=:)")
#: Reasons for which OpenAI has one code: the rows can't be trained on.
_BAD_DATA = frozenset({"BAD_ROWS", "EMPTY_DATASET"})


def build(body: CreateFineTuningJob, request_id: str) -> training_service_pb2.CreateTrainingJobRequest:
    """The trainer's request for a body; its files have been looked up already.

    Raises:
        InvalidArgument: fields that contradict one another, unknown keys under ``martlet``, wrong types there.
    """
    request = training_service_pb2.CreateTrainingJobRequest(request_id=request_id)
    job = request.training_job
    spec = job.spec
    spec.base_model = body.model
    spec.training_dataset = _dataset(body.training_file)
    if body.validation_file:
        spec.validation_dataset = _dataset(body.validation_file)
    if body.suffix:
        spec.suffix = body.suffix
    if body.seed is not None:
        spec.seed = body.seed
    job.labels.update(body.metadata or {})
    for integration in body.integrations or ():
        wandb = integration.wandb
        spec.trackers.add(
            kind=integration.type, project=wandb.project, run_name=wandb.name, entity=wandb.entity, tags=wandb.tags
        )
    job.display_name = _extend(spec, body.martlet or {})
    for sample in spec.training_datasets:
        sample.dataset = _dataset(sample.dataset)
    _method(spec, body)
    return request


def _dataset(name: str) -> str:
    """``file-<id>`` as the trainer names it; a hub's data set, or an artifact, as it is."""
    return f"artifacts/{name.removeprefix(FILE_PREFIX)}" if name.startswith(FILE_PREFIX) or "/" not in name else name


def _extend(spec: training_job_pb2.TrainingSpec, extension: Mapping[str, Any]) -> str:
    """Put the ``martlet`` object into the spec; returns the display name."""
    display_name = ""
    groups: dict[str, Any] = {}
    violations: list[FieldViolation] = []
    for key, value in extension.items():
        if key in _OPENAI_KEYS:
            violations.append(FieldViolation(f"martlet.{key}", f"is OpenAI's `{_OPENAI_KEYS[key]}`; give it there."))
        elif key in _LEAVES:
            group = groups.setdefault(_LEAVES[key], {})
            if not isinstance(group, dict) or key in group:
                violations.append(
                    FieldViolation(f"martlet.{key}", f"is given twice: here and in `martlet.{_LEAVES[key]}`.")
                )
            else:
                group[key] = value
        elif key == "tuner" and isinstance(value, str):
            groups.setdefault("tuner", {})["kind"] = value
        elif key in _GROUPS and isinstance(value, Mapping):
            twice = set(value) & set(groups.get(key, {}))
            violations += [FieldViolation(f"martlet.{key}.{k}", "is given twice.") for k in sorted(twice)]
            groups.setdefault(key, {}).update(value)
        elif key == "display_name" and isinstance(value, str) and len(value) <= 128:
            display_name = value
        elif key == "display_name":
            violations.append(FieldViolation("martlet.display_name", "must be a string of at most 128 characters."))
        elif key in _WHOLE_KEYS:
            groups[key] = value
        else:
            hint = proto_json.close_hint(key, [*_WHOLE_KEYS, *_LEAVES])
            violations.append(FieldViolation(f"martlet.{key}", f"is not known.{hint}"))
    if violations:
        raise InvalidArgument(
            "; ".join(f"{v.field}: {v.description}" for v in violations),
            reason="UNKNOWN_PARAMETER",
            violations=violations,
        )
    proto_json.fill(spec, groups, "martlet")
    return display_name


def _method(spec: training_job_pb2.TrainingSpec, body: CreateFineTuningJob) -> None:
    method = body.method
    numbers: Hyperparameters | None = None
    recipe = "sft"
    if method is not None:
        others = {"supervised", "dpo", "reinforcement"} - {method.type}
        given = [name for name in sorted(others) if getattr(method, name) is not None]
        if given:
            raise InvalidArgument.field(f"method.{given[0]}", f"can't be given with method.type `{method.type}`.")
        chosen = getattr(method, method.type)
        numbers = chosen.hyperparameters if chosen is not None else None
        recipe = _RECIPES[method.type]
        if method.type == "reinforcement":
            _put_grader(spec, method.reinforcement)
    if body.hyperparameters is not None:
        if numbers is not None and numbers != body.hyperparameters:
            raise InvalidArgument.field("hyperparameters", "contradicts `method`; give the numbers there alone.")
        numbers = body.hyperparameters
    if spec.recipe and method is not None and spec.recipe != recipe:
        raise InvalidArgument.field(
            "martlet.recipe", f"`{spec.recipe}` contradicts method.type `{method.type}`; leave one out."
        )
    spec.recipe = spec.recipe or recipe
    if numbers is not None:
        _numbers(spec, numbers)


def _put_grader(spec: training_job_pb2.TrainingSpec, reinforcement: Reinforcement | None) -> None:
    at = "method.reinforcement.grader"
    if reinforcement is None:
        raise InvalidArgument.field(at, "is required with method.type `reinforcement`.")
    if found := reward_grader_violations(reinforcement.grader, at):
        raise InvalidArgument("; ".join(f"{v.field}: {v.description}" for v in found), violations=found)
    if "graders" in spec.recipe_options:
        raise InvalidArgument.field("martlet.recipe_options.graders", f"can't be given together with `{at}`.")
    options = Struct()
    options.update({"graders": [reinforcement.grader]})
    spec.recipe_options.MergeFrom(options)


def _numbers(spec: training_job_pb2.TrainingSpec, numbers: Hyperparameters) -> None:
    target = spec.hyperparameters
    if numbers.n_epochs not in (None, "auto"):
        _refuse_twice(target, "epoch_count", "n_epochs")
        target.epoch_count = float(numbers.n_epochs)  # type: ignore[arg-type]
    if numbers.learning_rate_multiplier not in (None, "auto"):
        _refuse_twice(target, "learning_rate_multiplier", "learning_rate_multiplier")
        target.learning_rate_multiplier = float(numbers.learning_rate_multiplier)  # type: ignore[arg-type]
    if isinstance(numbers.batch_size, int):
        _refuse_twice(target, "per_device_batch_size", "batch_size")
        _refuse_twice(target, "gradient_accumulation_steps", "batch_size")
        _batch_size(spec, numbers.batch_size)
    if isinstance(numbers, ReinforcementHyperparameters) and numbers.eval_interval not in (None, "auto"):
        _refuse_twice(target, "eval_steps", "eval_interval")
        target.eval_steps = int(numbers.eval_interval)  # type: ignore[arg-type]
    if isinstance(numbers, DpoHyperparameters) and numbers.beta not in (None, "auto"):
        options = Struct()
        options.update({"beta": numbers.beta})
        spec.recipe_options.MergeFrom(options)


def _batch_size(spec: training_job_pb2.TrainingSpec, batch_size: int) -> None:
    """OpenAI's batch is one optimizer step; ours is devices x rows a device x accumulation. Large ones are accumulated,
    to bound memory.
    """
    devices = spec.resources.device_count or 1
    if batch_size % devices:
        raise InvalidArgument.field(
            "hyperparameters.batch_size", f"{batch_size} can't be shared evenly by {devices} devices."
        )
    rows = batch_size // devices
    at_once = max(n for n in range(1, min(rows, _LARGEST_DEVICE_BATCH) + 1) if rows % n == 0)
    spec.hyperparameters.per_device_batch_size = at_once
    spec.hyperparameters.gradient_accumulation_steps = rows // at_once


def _refuse_twice(target: Any, name: str, openai_name: str) -> None:
    if target.HasField(name):
        raise InvalidArgument.field(
            f"martlet.hyperparameters.{name}", f"can't be given together with OpenAI's `{openai_name}`; leave one out."
        )


@contextmanager
def rest_names(body: CreateFineTuningJob) -> Iterator[None]:
    """Errors of the trainer leave the block with the names of fields that the body used."""
    names = dict(_OPENAI_KEYS)
    numbers = "hyperparameters"
    if body.method is not None:
        numbers = f"method.{body.method.type}.hyperparameters"
        names["recipe"] = "method.type"
        names["hyperparameters.eval_steps"] = f"{numbers}.eval_interval"
        names["recipe_options.graders.0"] = f"method.{body.method.type}.grader"
    if body.hyperparameters is not None or body.method is not None:
        names["hyperparameters.epoch_count"] = f"{numbers}.n_epochs"
        names["hyperparameters.learning_rate_multiplier"] = f"{numbers}.learning_rate_multiplier"
        names["hyperparameters.per_device_batch_size"] = f"{numbers}.batch_size"
        names["hyperparameters.gradient_accumulation_steps"] = f"{numbers}.batch_size"
    names |= _tracker_names(body)
    for key in _chosen_keys(body.martlet or {}):  # what was given under `martlet` is called so
        if key not in _OPENAI_KEYS:
            names.pop(key, None)
    try:
        yield
    except MartletError as error:
        raise renamed(error, names) from error


def _tracker_names(body: CreateFineTuningJob) -> dict[str, str]:
    """Names of the trainer's trackers: those of ``integrations`` come first, then those of ``martlet.trackers``."""
    names: dict[str, str] = {}
    count = len(body.integrations or ())
    for index in range(count):
        here, there = f"trackers.{index}", f"integrations[{index}]"
        names |= {f"{here}.kind": f"{there}.type", f"{here}.run_name": f"{there}.wandb.name"}
        names |= {f"{here}.{field}": f"{there}.wandb.{field}" for field in ("project", "entity", "tags")}
    more = (body.martlet or {}).get("trackers")
    for index in range(len(more) if isinstance(more, list) else 0):
        for field in _TRACKER_FIELDS:
            names[f"trackers.{count + index}.{field}"] = f"martlet.trackers[{index}].{field}"
    return names


def _chosen_keys(extension: Mapping[str, Any]) -> Iterator[str]:
    for key, value in extension.items():
        yield f"{_LEAVES[key]}.{key}" if key in _LEAVES else key
        if isinstance(value, Mapping):
            yield from (f"{key}.{inner}" for inner in value)


def renamed(error: MartletError, names: Mapping[str, str] = _OPENAI_KEYS) -> MartletError:
    """The error with its fields as a REST client knows them; changed in place."""
    named = _FIELD.search(error.message)
    error.message = _FIELD.sub(lambda found: rest_name(found[0], names), error.message)
    error.violations = tuple(FieldViolation(rest_name(v.field, names), v.description) for v in error.violations)
    if named is not None and not error.violations:
        error.metadata.setdefault("param", rest_name(named[0], names))
    if isinstance(error, NotFound) and "MODEL" in error.reason:
        error.metadata.setdefault("param", "model")
    param = error.violations[0].field if error.violations else error.metadata.get("param")
    if isinstance(error, NotFound) and param == "model":
        error.metadata["code"] = "model_not_found"
    if error.reason in _BAD_DATA and param in ("training_file", "validation_file"):
        error.metadata["code"] = f"invalid_{param}"
    if isinstance(error, NotFound) and param in ("training_file", "validation_file"):
        error.metadata["code"] = "file_not_found"
    return error


def rest_name(field: str, names: Mapping[str, str] = _OPENAI_KEYS) -> str:
    """``spec.base_model`` -> ``model``, ``spec.tuner.lora_rank`` -> ``martlet.tuner.lora_rank``."""
    path = field.removeprefix("training_job.").removeprefix("spec.")
    if path in names:
        return names[path]
    if path == "labels" or path.startswith("labels"):
        return path.replace("labels", "metadata", 1)
    head = path.split(".", 1)[0].split("[", 1)[0]
    return f"martlet.{path}" if head in _WHOLE_KEYS else path
