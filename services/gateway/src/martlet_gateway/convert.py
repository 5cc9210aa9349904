"""trainer.v1 -> OpenAI's fine-tuning objects: jobs, events, checkpoints, and their ids."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from martlet.common.v1 import job_pb2
from martlet.trainer.v1 import training_job_pb2
from martlet_core.errors import InvalidArgument, NotFound
from martlet_core.graders import whole_numbers
from martlet_core.ids import ID_PATTERN
from martlet_core.rpc.status import from_status

from martlet_gateway import proto_json
from martlet_gateway.file_store import PREFIX as FILE_PREFIX
from martlet_gateway.job_request import renamed

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


def to_job(job: training_job_pb2.TrainingJob, organization: str) -> dict[str, Any]:
    """The ``fine_tuning.job`` object. Fields that OpenAI's schema requires are never left out."""
    spec, result, final = job.spec, job.result, job.state in _FINAL
    succeeded = job.state == job_pb2.JOB_STATE_SUCCEEDED
    method = _method(job)
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
        "hyperparameters": method.get("supervised", {}).get("hyperparameters", {}),
        "method": method,
        "error": _job_error(job),
        "fine_tuned_model": result.fine_tuned_model if succeeded else None,
        "finished_at": job.end_time.seconds if final and job.HasField("end_time") else None,
        "trained_tokens": result.trained_tokens if succeeded else None,
        "estimated_finish": job.update_time.seconds + round(eta) if eta is not None else None,
        "integrations": _integrations(spec),
        "metadata": dict(job.labels) or None,
        "user_provided_suffix": spec.suffix or None,
        "martlet": _extension(job),
    }


def _integrations(spec: training_job_pb2.TrainingSpec) -> list[dict[str, Any]]:
    """The trackers that OpenAI has a word for; ``martlet.trackers`` has all."""
    return [
        {
            "type": "wandb",
            "wandb": {
                "project": tracker.project or "martlet",  # the contract's default; OpenAI's object is never without
                "name": tracker.run_name or None,
                "entity": tracker.entity or None,
                "tags": list(tracker.tags),
            },
        }
        for tracker in spec.trackers
        if tracker.kind == "wandb"
    ]


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
        "tuner": {"kind": "lora"} | {k: v for k, v in proto_json.to_json(spec.tuner).items() if v not in ("", [])},
        "trackers": [proto_json.to_json(tracker) for tracker in spec.trackers],
        "progress": progress,
        "queue_position": job.progress.queue_position or None,
        "eta_seconds": progress.get("eta_seconds"),
        "tokens_per_second": metrics.get("tokens_per_second"),
        "device": result.get("device") or None,
        "model_artifact": result.get("model_artifact") or None,
        "metrics_artifact": result.get("metrics_artifact") or None,
        "result": result,
        "start_time": job.start_time.ToJsonString() if job.HasField("start_time") else None,
        "end_time": job.end_time.ToJsonString() if job.HasField("end_time") else None,
        "update_time": job.update_time.ToJsonString() if job.HasField("update_time") else None,
    }


def _method(job: training_job_pb2.TrainingJob) -> dict[str, Any]:
    """OpenAI's ``method``: what its client would have asked for; recipes that it has no word for are supervised."""
    spec, numbers = job.spec, _openai_numbers(job)
    options = whole_numbers(proto_json.to_json(spec).get("recipe_options") or {})
    if spec.recipe == "dpo":
        return {"type": "dpo", "dpo": {"hyperparameters": {**numbers, "beta": options.get("beta", "auto")}}}
    graders = options.get("graders", [])
    if spec.recipe == "grpo" and len(graders) == 1:
        asked = spec.hyperparameters
        numbers["eval_interval"] = asked.eval_steps if asked.HasField("eval_steps") else "auto"
        return {"type": "reinforcement", "reinforcement": {"grader": graders[0], "hyperparameters": numbers}}
    return {"type": "supervised", "supervised": {"hyperparameters": numbers}}


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
    error = renamed(from_status(job.error))
    param = error.violations[0].field if error.violations else error.metadata.get("param")
    return {
        "code": error.metadata.get("code") or error.reason.lower(),
        "message": error.message,
        "param": param or None,
    }


def job_id(name: str) -> str:
    """``trainingJobs/{id}`` -> ``ftjob-{id}``."""
    return JOB_PREFIX + name.removeprefix("trainingJobs/")


def job_name(openai_id: str) -> str:
    """``ftjob-{id}`` -> ``trainingJobs/{id}``. NotFound for anything else."""
    bare = openai_id.removeprefix(JOB_PREFIX)
    if not openai_id.startswith(JOB_PREFIX) or not ID_PATTERN.fullmatch(bare):
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
    return FILE_PREFIX + artifact.removeprefix("artifacts/") if artifact.startswith("artifacts/") else artifact
