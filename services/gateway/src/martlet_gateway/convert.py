"""OpenAI's fine-tuning objects <-> trainer.v1."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from google.protobuf.struct_pb2 import Struct
from martlet.common.v1 import job_pb2
from martlet.trainer.v1 import training_job_pb2, training_service_pb2
from martlet_core.errors import FieldViolation, InvalidArgument, MartletError, NotFound, Unimplemented
from martlet_core.rpc.status import from_status

from martlet_gateway import proto_json
from martlet_gateway.file_store import PREFIX as FILE_PREFIX
from martlet_gateway.schemas import CreateFineTuningJob, DpoHyperparameters, Hyperparameters

JOB_PREFIX = "ftjob-"
EVENT_PREFIX = "ftevent-"
CHECKPOINT_PREFIX = "ftckpt-"

#: OpenAI's statuses. The last two rows are Martlet's truth where OpenAI's enum has no word; its client takes any
#: string.
STATUSES = {
    job_pb2.JOB_STATE_VALIDATING: "validating_files",
    job_pb2.JOB_STATE_QUEUED: "queued",
    job_pb2.JOB_STATE_RUNNING: "running",
    job_pb2.JOB_STATE_SUCCEEDED: "succeeded",
    job_pb2.JOB_STATE_FAILED: "failed",
    job_pb2.JOB_STATE_CANCELLED: "cancelled",
    job_pb2.JOB_STATE_PAUSING: "pausing",
    job_pb2.JOB_STATE_PAUSED: "paused",
    job_pb2.JOB_STATE_CANCELLING: "cancelling",
}
_FINAL = frozenset({job_pb2.JOB_STATE_SUCCEEDED, job_pb2.JOB_STATE_FAILED, job_pb2.JOB_STATE_CANCELLED})

#: Our metric names -> OpenAI's, beside which ours stay.
METRIC_NAMES = {
    "loss": "train_loss",
    "train_loss": "train_loss",
    "token_accuracy": "train_mean_token_accuracy",
    "train_token_accuracy": "train_mean_token_accuracy",
    "eval_loss": "valid_loss",
    "valid_loss": "valid_loss",
    "eval_token_accuracy": "valid_mean_token_accuracy",
    "valid_token_accuracy": "valid_mean_token_accuracy",
}
_LEVELS = {job_pb2.EVENT_LEVEL_WARN: "warn", job_pb2.EVENT_LEVEL_ERROR: "error"}

_GROUPS = ("tuner", "hyperparameters", "data", "resources", "checkpoints")
_WHOLE_KEYS = (*_GROUPS, "recipe", "recipe_options", "display_name")
_OPENAI_KEYS = {
    "base_model": "model",
    "training_dataset": "training_file",
    "validation_dataset": "validation_file",
    "suffix": "suffix",
    "seed": "seed",
}
_SPEC = training_job_pb2.TrainingSpec.DESCRIPTOR
_LEAVES = {leaf.name: group for group in _GROUPS for leaf in _SPEC.fields_by_name[group].message_type.fields}
_LARGEST_DEVICE_BATCH = 8


def job_request(body: CreateFineTuningJob, request_id: str) -> training_service_pb2.CreateTrainingJobRequest:
    """The trainer's request for a body; its files have been looked up already.

    Raises:
        InvalidArgument: fields that contradict one another, unknown keys under ``martlet``, wrong types there.
    """
    request = training_service_pb2.CreateTrainingJobRequest(request_id=request_id)
    job = request.training_job
    spec = job.spec
    spec.base_model = body.model
    spec.training_dataset = "artifacts/" + body.training_file.removeprefix(FILE_PREFIX)
    if body.validation_file:
        spec.validation_dataset = "artifacts/" + body.validation_file.removeprefix(FILE_PREFIX)
    if body.suffix:
        spec.suffix = body.suffix
    if body.seed is not None:
        spec.seed = body.seed
    job.labels.update(body.metadata or {})
    if body.integrations:
        raise InvalidArgument.field(
            "integrations", "is not supported; leave it out. Metrics are in the job's events and its result file."
        )
    job.display_name = _extend(spec, body.martlet or {})
    _method(spec, body)
    return request


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
        if method.type == "reinforcement":
            raise InvalidArgument.field(
                "method.type", "reinforcement is not offered by this deployment.", reason="UNSUPPORTED_METHOD"
            )
        chosen = method.supervised if method.type == "supervised" else method.dpo
        numbers = chosen.hyperparameters if chosen is not None else None
        recipe = {"supervised": "sft", "dpo": "dpo"}[method.type]
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
def rest_names(*, openai_numbers: bool = False) -> Iterator[None]:
    """Errors of the trainer leave the block with the names of fields that a REST client used."""
    try:
        yield
    except MartletError as error:
        raise _renamed(error, openai_numbers) from error


def _renamed(error: MartletError, openai_numbers: bool) -> MartletError:
    if error.violations:
        violations = [FieldViolation(rest_name(v.field, openai_numbers), v.description) for v in error.violations]
        message = error.message
        for old, new in zip(error.violations, violations, strict=True):
            message = message.replace(old.field, new.field, 1) if old.field else message
        error.violations, error.message = tuple(violations), message
    if isinstance(error, NotFound) and "param" not in error.metadata and not error.violations:
        error.metadata["param"] = _param_by_reason(error.reason)
    if isinstance(error, Unimplemented):
        error.retry_after_seconds = None
    return error


def rest_name(field: str, openai_numbers: bool = False) -> str:
    """``spec.base_model`` -> ``model``, ``spec.tuner.lora_rank`` -> ``martlet.tuner.lora_rank``."""
    path = field.removeprefix("training_job.").removeprefix("spec.")
    if openai_numbers and path in ("hyperparameters.epoch_count", "hyperparameters.learning_rate_multiplier"):
        return path.replace("epoch_count", "n_epochs")
    if openai_numbers and path in (
        "hyperparameters.per_device_batch_size",
        "hyperparameters.gradient_accumulation_steps",
    ):
        return "hyperparameters.batch_size"
    if path in _OPENAI_KEYS:
        return _OPENAI_KEYS[path]
    if path == "labels" or path.startswith("labels."):
        return path.replace("labels", "metadata", 1)
    head = path.split(".", 1)[0].split("[", 1)[0]
    return f"martlet.{path}" if head in _WHOLE_KEYS else path


def _param_by_reason(reason: str) -> str:
    if "DATASET" in reason or "FILE" in reason or "ARTIFACT" in reason:
        return "training_file"
    return "model" if "MODEL" in reason else ""


def to_job(job: training_job_pb2.TrainingJob, organization: str) -> dict[str, Any]:
    """The ``fine_tuning.job`` object. Fields that OpenAI's schema requires are never left out."""
    spec, result, final = job.spec, job.result, job.state in _FINAL
    succeeded = job.state == job_pb2.JOB_STATE_SUCCEEDED
    numbers = _openai_numbers(job)
    dpo = spec.recipe == "dpo"
    eta = job.progress.eta.ToNanoseconds() / 1e9 if job.progress.HasField("eta") and not final else None
    return {
        "id": job_id(job.name),
        "object": "fine_tuning.job",
        "created_at": job.create_time.seconds,
        "model": spec.base_model,
        "status": STATUSES.get(job.state, "queued"),
        "organization_id": organization,
        "result_files": [_file_id(result.metrics_artifact)] if result.metrics_artifact else [],
        "seed": spec.seed if spec.HasField("seed") else 42,
        "training_file": _file_id(spec.training_dataset),
        "validation_file": _file_id(spec.validation_dataset) if spec.validation_dataset else None,
        "hyperparameters": {} if dpo else numbers,
        "method": {"type": "dpo", "dpo": {"hyperparameters": numbers}}
        if dpo
        else {"type": "supervised", "supervised": {"hyperparameters": numbers}},
        "error": _job_error(job),
        "fine_tuned_model": result.fine_tuned_model if succeeded else None,
        "finished_at": job.end_time.seconds if final and job.HasField("end_time") else None,
        "trained_tokens": result.trained_tokens if succeeded else None,
        "estimated_finish": job.update_time.seconds + round(eta) if eta is not None else None,
        "integrations": [],
        "metadata": dict(job.labels) or None,
        "user_provided_suffix": spec.suffix or None,
        "martlet": _extension(job),
    }


def _extension(job: training_job_pb2.TrainingJob) -> dict[str, Any]:
    """What OpenAI has no field for."""
    spec, result = job.spec, proto_json.to_json(job.result)
    progress = proto_json.to_json(job.progress)
    metrics = progress.get("metrics", {})
    return {
        "name": job.name,
        "display_name": job.display_name,
        "state": proto_json.enum_name(job_pb2.JobState.DESCRIPTOR, job.state),
        "attempt": job.attempt,
        "recipe": spec.recipe or "sft",
        "tuner": proto_json.to_json(spec.tuner),
        "progress": progress,
        "queue_position": job.progress.queue_position or None,
        "eta_seconds": progress.get("eta_seconds"),
        "tokens_per_second": metrics.get("tokens_per_second"),
        "model_artifact": result.get("model_artifact") or None,
        "metrics_artifact": result.get("metrics_artifact") or None,
        "result": result,
        "start_time": job.start_time.ToJsonString() if job.HasField("start_time") else None,
        "update_time": job.update_time.ToJsonString() if job.HasField("update_time") else None,
    }


def _openai_numbers(job: training_job_pb2.TrainingJob) -> dict[str, Any]:
    """``n_epochs``, ``batch_size`` and ``learning_rate_multiplier``: as asked for, or as the recipe resolved them, else
    ``auto``.
    """
    asked = job.spec.hyperparameters
    resolved = proto_json.to_json(job.result).get("resolved_config", {}).get("hyperparameters", {})
    resolved = resolved if isinstance(resolved, dict) else {}

    def number(name: str) -> Any:
        return getattr(asked, name) if asked.HasField(name) else resolved.get(name)

    epochs, rows = number("epoch_count"), number("per_device_batch_size")
    multiplier = asked.learning_rate_multiplier if asked.HasField("learning_rate_multiplier") else "auto"
    batch = "auto"
    if rows is not None:
        batch = int(rows * (number("gradient_accumulation_steps") or 1) * (job.spec.resources.device_count or 1))
    if epochs is None or asked.HasField("max_steps"):
        epochs = "auto"
    return {
        "n_epochs": int(epochs) if epochs != "auto" and float(epochs).is_integer() else epochs,
        "batch_size": batch,
        "learning_rate_multiplier": multiplier,
    }


def _job_error(job: training_job_pb2.TrainingJob) -> dict[str, Any] | None:
    if job.state != job_pb2.JOB_STATE_FAILED or not job.HasField("error"):
        return None
    error = _renamed(from_status(job.error), openai_numbers=False)
    param = error.violations[0].field if error.violations else error.metadata.get("param")
    return {"code": error.reason.lower(), "message": error.message, "param": param or None}


def job_id(name: str) -> str:
    """``trainingJobs/{id}`` -> ``ftjob-{id}``."""
    return JOB_PREFIX + name.removeprefix("trainingJobs/")


def job_name(openai_id: str) -> str:
    """``ftjob-{id}`` -> ``trainingJobs/{id}``. NotFound for anything else."""
    bare = openai_id.removeprefix(JOB_PREFIX)
    if not openai_id.startswith(JOB_PREFIX) or not bare.isalnum():
        raise no_such_job(openai_id)
    return f"trainingJobs/{bare}"


def no_such_job(openai_id: str) -> NotFound:
    """The one answer for jobs that don't exist and jobs of other tenants."""
    metadata = {"param": "fine_tuning_job_id"}
    return NotFound(f"Could not find fine tune: {openai_id:.100}", reason="FINE_TUNE_NOT_FOUND", metadata=metadata)


def to_event(event: job_pb2.JobEvent, job: str) -> dict[str, Any]:
    """The ``fine_tuning.job.event`` object. ``job`` is the bare id: it makes the event's id unique beyond its job."""
    kind, data = "message", {}
    match event.WhichOneof("detail"):
        case "metrics":
            kind = "metrics"
            data = {"step": event.metrics.step, **openai_metrics(event.metrics.values)}
        case "state_change":
            data = proto_json.to_json(event.state_change)
        case "checkpoint":
            data = proto_json.to_json(event.checkpoint)
        case "log_line":
            data = proto_json.to_json(event.log_line)
    return {
        "id": f"{EVENT_PREFIX}{job}-{event.cursor}",
        "object": "fine_tuning.job.event",
        "created_at": event.create_time.seconds,
        "level": _LEVELS.get(event.level, "info"),
        "message": event.message,
        "type": kind,
        "data": data,
        "martlet": {"attempt": event.attempt, "kind": event.WhichOneof("detail") or "message"},
    }


def event_cursor(event_id: str, job: str) -> str:
    """The trainer's cursor of an event's id. InvalidArgument for the id of something else."""
    prefix = f"{EVENT_PREFIX}{job}-"
    if not event_id.startswith(prefix):
        raise InvalidArgument.field("after", f"`{event_id:.100}` is not the id of an event of this job.")
    return event_id.removeprefix(prefix)


def to_checkpoint(checkpoint: training_job_pb2.TrainingCheckpoint, job: str) -> dict[str, Any]:
    """The ``fine_tuning.job.checkpoint`` object."""
    return {
        "id": CHECKPOINT_PREFIX + checkpoint.artifact.removeprefix("artifacts/"),
        "object": "fine_tuning.job.checkpoint",
        "created_at": checkpoint.create_time.seconds,
        "fine_tuning_job_id": job,
        "fine_tuned_model_checkpoint": checkpoint.fine_tuned_model,
        "step_number": checkpoint.step,
        "metrics": {"step": checkpoint.step, **openai_metrics(checkpoint.metrics)},
        "martlet": {"artifact": checkpoint.artifact},
    }


def openai_metrics(values: Mapping[str, float]) -> dict[str, float]:
    """Metrics under our names and, where there is one, OpenAI's."""
    named = dict(values)
    named |= {METRIC_NAMES[name]: value for name, value in values.items() if name in METRIC_NAMES}
    return named


def _file_id(artifact: str) -> str:
    return FILE_PREFIX + artifact.removeprefix("artifacts/")
