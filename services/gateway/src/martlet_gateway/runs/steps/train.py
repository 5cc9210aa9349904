"""``train``: a training job."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from martlet_gateway.job_kinds import TRAINING
from martlet_gateway.runs.steps.base import JobStep

_SHOWN = ("valid_loss", "train_loss", "loss")


class TrainStep(JobStep):
    """``with`` is a ``martlet.trainer.v1.TrainingSpec``."""

    kind = "train"
    title = "Train a model, or an adapter on it."
    jobs = TRAINING
    required = ("base_model", "training_dataset")
    outputs: ClassVar[Mapping[str, str]] = {
        "model": "Name of the fine-tuned model, for inference and for other steps.",
        "adapter": "The adapter, or the whole model if all weights were trained, as artifacts/{id}.",
        "artifact": "The same as `adapter`.",
        "metrics": "Table of the metrics, as artifacts/{id}.",
    }

    def outputs_of(self, job: Any) -> dict[str, str]:
        """See JobStep."""
        result = job.result
        return {
            "model": result.fine_tuned_model,
            "adapter": result.model_artifact,
            "artifact": result.model_artifact,
            "metrics": result.metrics_artifact,
        }

    def numbers_of(self, job: Any) -> dict[str, float]:
        """See JobStep."""
        result = job.result
        numbers = {
            "train_seconds": result.train_seconds,
            "trained_tokens": float(result.trained_tokens),
            "peak_memory_bytes": float(result.peak_memory_bytes),
        }
        return dict(result.metrics) | {name: value for name, value in numbers.items() if value}

    def summary_of(self, job: Any, metrics: Mapping[str, float]) -> str:
        """Loss on the validation rows, else on the training rows."""
        return next((f"{name} {metrics[name]:.4g}" for name in _SHOWN if name in metrics), "")
