"""Kind and queues of the quantizer's jobs, and names of what they make."""

from __future__ import annotations

from martlet_core.jobs import Job
from martlet_core.model_rules import published_name

from martlet_quantizer.config import QuantizationConfig

#: ``Job.kind`` of the quantizer's jobs.
QUANTIZATION = "quantization"


def queue_of(prefix: str, family: str) -> str:
    """The queue of a family of methods: its jobs run in an environment that other families can't use."""
    return f"{prefix}-{family}"


def quantized_name(job: Job, config: QuantizationConfig) -> str | None:
    """The name of the quantized model; None where no engine of ours serves the format (gguf)."""
    if config.method == "gguf":
        return None
    return published_name(config.model, job.tenant, config.suffix or config.method, job.id)
