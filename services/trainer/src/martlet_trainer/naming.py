"""Kinds of the trainer's jobs, and names of their checkpoints."""

from __future__ import annotations

from martlet_core.jobs import Job
from martlet_core.model_rules import published_name

from martlet_trainer.config import parse_training_config

#: ``Job.kind`` of the trainer's jobs.
TRAINING = "training"
MERGE = "merge"


def checkpoint_model_name(job: Job, step: int) -> str | None:
    """The name of a training job's checkpoint; None where a checkpoint can't be served (whole models)."""
    config = parse_training_config(job.spec)
    if config.tuner.facts.whole_model:
        return None
    return f"{published_name(config.base_model, job.tenant, config.suffix, job.id)}:ckpt-step-{step}"
