"""Kinds of jobs, and names of what they make: ``ft:<base>:<tenant>:<suffix or empty>:<last 8 of the job's id>``."""

from __future__ import annotations

from martlet_core.jobs import Job

from martlet_trainer.config import parse_training_config

#: ``Job.kind`` of the trainer's jobs.
TRAINING = "training"
MERGE = "merge"


def fine_tuned_name(base_model: str, tenant: str, suffix: str | None, job_id: str) -> str:
    """The name of what a training or merge job makes.

    Args:
        base_model: as the job's spec names it; its short form goes into the name.
        tenant: owner.
        suffix: what the user chose; None for nothing.
        job_id: the job.
    """
    return f"ft:{_short(base_model)}:{tenant}:{suffix or ''}:{job_id[-8:]}"


def checkpoint_model_name(job: Job, step: int) -> str | None:
    """The name of a training job's checkpoint; None where a checkpoint can't be served (whole models)."""
    config = parse_training_config(job.spec)
    if config.tuner.kind == "full":
        return None
    return f"{fine_tuned_name(config.base_model, job.tenant, config.suffix, job.id)}:ckpt-step-{step}"


def _short(base_model: str) -> str:
    """``org/model@revision`` -> ``model``, ``file:///a/b`` -> ``b``, ``ft:base:...`` -> ``base``, others as they
    are.
    """
    if base_model.startswith("ft:"):
        return base_model.split(":")[1]
    return base_model.rstrip("/").rsplit("/", 1)[-1].partition("@")[0]
