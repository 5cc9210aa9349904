"""``merge``: an adapter folded into its base model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from martlet_gateway.job_kinds import MERGE
from martlet_gateway.runs.steps.base import JobStep

_NUMBERS = ("mean_logprob_difference", "max_logprob_difference", "top1_agreement", "positions")


class MergeStep(JobStep):
    """``with`` is a ``martlet.trainer.v1.MergeSpec``."""

    kind = "merge"
    title = "Fold an adapter into its base model."
    jobs = MERGE
    required = ("adapter",)
    outputs: ClassVar[Mapping[str, str]] = {
        "model": "Name of the merged model, for inference and for other steps.",
        "artifact": "The merged model, as artifacts/{id}.",
    }
    known_metrics = frozenset(_NUMBERS)

    def outputs_of(self, job: Any) -> dict[str, str]:
        """See JobStep."""
        return {"model": job.result.merged_model, "artifact": job.result.model_artifact}

    def numbers_of(self, job: Any) -> dict[str, float]:
        """See JobStep."""
        return {name: float(getattr(job.result, name)) for name in _NUMBERS}

    def summary_of(self, job: Any, metrics: Mapping[str, float]) -> str:
        """How far merged and unmerged model differ."""
        return f"top1_agreement {metrics['top1_agreement']:.4g}"
