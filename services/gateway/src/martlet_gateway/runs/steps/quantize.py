"""``quantize``: a whole model made smaller."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from martlet_gateway.job_kinds import QUANTIZATION
from martlet_gateway.runs.steps.base import JobStep

_NUMBERS = (
    "size_bytes",
    "base_size_bytes",
    "size_ratio",
    "bits_per_weight",
    "quantize_seconds",
    "peak_memory_bytes",
    "perplexity",
    "base_perplexity",
    "perplexity_ratio",
    "top1_agreement",
    "positions",
)


class QuantizeStep(JobStep):
    """``with`` is a ``martlet.quantizer.v1.QuantizationSpec``."""

    kind = "quantize"
    title = "Make a whole model smaller."
    jobs = QUANTIZATION
    required = ("model", "method")
    outputs: ClassVar[Mapping[str, str]] = {
        "model": "Name of the quantized model, for inference and for other steps; empty for gguf.",
        "artifact": "The quantized model, as artifacts/{id}.",
        "report": "What it cost, as artifacts/{id}.",
    }
    known_metrics = frozenset(_NUMBERS)

    def outputs_of(self, job: Any) -> dict[str, str]:
        """See JobStep."""
        result = job.result
        return {
            "model": result.quantized_model,
            "artifact": result.model_artifact,
            "report": result.report_artifact,
        }

    def numbers_of(self, job: Any) -> dict[str, float]:
        """See JobStep."""
        return {name: float(getattr(job.result, name)) for name in _NUMBERS}

    def summary_of(self, job: Any, metrics: Mapping[str, float]) -> str:
        """How much smaller, and how much worse."""
        return f"size x{metrics['size_ratio']:.3g}, perplexity x{metrics['perplexity_ratio']:.4g}"
