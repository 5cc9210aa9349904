"""``merge``: an adapter folded into its base model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from martlet.trainer.v1 import merge_job_pb2, merge_service_pb2, merge_service_pb2_grpc

from martlet_gateway.runs.steps.base import JobStep


class MergeStep(JobStep):
    """``with`` is a ``martlet.trainer.v1.MergeSpec``."""

    kind = "merge"
    title = "Fold an adapter into its base model."
    stage = "trainer"
    stub = merge_service_pb2_grpc.MergeServiceStub
    messages = merge_service_pb2
    spec = merge_job_pb2.MergeSpec
    noun, field = "MergeJob", "merge_job"
    can_pause = False
    required = ("adapter",)
    outputs = {
        "model": "Name of the merged model, for inference and for other steps.",
        "artifact": "The merged model, as artifacts/{id}.",
    }
    known_metrics = frozenset({"mean_logprob_difference", "max_logprob_difference", "top1_agreement", "positions"})

    def outputs_of(self, job: Any) -> dict[str, str]:
        """See JobStep."""
        return {"model": job.result.merged_model, "artifact": job.result.model_artifact}

    def numbers_of(self, job: Any) -> dict[str, float]:
        """See JobStep."""
        return {name: float(getattr(job.result, name)) for name in sorted(self.known_metrics)}

    def summary_of(self, job: Any, metrics: Mapping[str, float]) -> str:
        """How far merged and unmerged model differ."""
        return f"top1_agreement {metrics['top1_agreement']:.4g}"
