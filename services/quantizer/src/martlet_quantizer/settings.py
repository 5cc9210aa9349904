"""Where the quantizer is deployed."""

from __future__ import annotations

from typing import Literal

from martlet_core.stage_settings import StageSettings
from pydantic import Field

from martlet_quantizer.naming import queue_of


class QuantizerSettings(StageSettings):
    """Settings of ``serve`` and ``work``, from ``MARTLET_*`` variables."""

    grpc_address: str = Field(
        "127.0.0.1:50054", description="Address this service listens on for gRPC; port 0 picks a free one."
    )
    queue: str = Field("quantizer", description="Beginning of the queues' names; each family of methods has its own.")
    quantizer_family: Literal["", "bnb", "llmcompressor", "gguf", "awq", "gptqmodel"] = Field(
        "", description="Family of methods that a worker runs in; --family overrules it."
    )
    quantizer_environments: str = Field(
        "",
        description="Directory of environments named quantizer-<family>, which a worker may ask to load what it wrote; "
        "empty: the directory that its own environment lies in.",
    )
    gateway_url: str = Field(
        "",
        description="The gateway's REST address, ending in /v1: replicas are asked there for finished models; empty: none.",
    )
    serving_checks: bool = Field(
        True,
        description="Whether a finished model is placed on a replica to see that its engine serves it; others wait meanwhile.",
    )
    serving_check_seconds: float = Field(600.0, gt=0, description="Longest that such a check may take.")

    def family_queue(self, family: str) -> str:
        """The queue of a family."""
        return queue_of(self.queue, family)
