"""Where the gateway is deployed: ``MARTLET_*`` variables beside those of every service."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from martlet_core.settings import CoreSettings
from pydantic import Field

MIB = 1024 * 1024

RoutingPolicy = Literal["affinity", "least-busy", "round-robin"]


class GatewaySettings(CoreSettings):
    """Settings of the gateway. Sizes are in bytes, times in seconds."""

    http_host: str = Field("127.0.0.1", description="Address that REST listens on.")
    http_port: int = Field(8000, ge=0, le=65535, description="Port that REST listens on; 0 picks a free one.")
    trainer_address: str = Field("127.0.0.1:50052", description="Address of the trainer's gRPC API.")
    quantizer_address: str = Field("", description="Address of the quantizer's gRPC API; empty: there is none.")
    evaluator_address: str = Field("", description="Address of the evaluator's gRPC API; empty: there is none.")
    upload_dir: Path = Field(Path(".martlet/work/uploads"), description="Where bodies are kept until they are stored.")
    max_file_bytes: int = Field(512 * MIB, ge=1, description="Largest file of POST /v1/files.")
    max_upload_bytes: int = Field(
        8 * 1024 * MIB, ge=1, description="Largest file of POST /v1/uploads, all parts together."
    )
    max_part_bytes: int = Field(64 * MIB, ge=1, description="Largest part of an upload.")
    max_request_bytes: int = Field(16 * MIB, ge=1, description="Largest JSON body; the contract carries no more.")
    upload_ttl_seconds: float = Field(
        3600, gt=0, description="Life of an upload that isn't completed, and of presigned URLs."
    )
    key_cache_seconds: float = Field(
        10.0,
        ge=0,
        description="How long a key that was looked up is believed: so long a revoked key may still work.",
    )
    name_cache_seconds: float = Field(15.0, ge=0, description="How long a resolved model name is believed.")
    retry_window_seconds: float = Field(
        900.0, gt=0, description="How long a repeated POST without a key finds what the first one made."
    )
    replica_lease_seconds: float = Field(
        10.0, gt=0, description="Lease of an inference replica; it renews at a third of it."
    )
    replica_refresh_seconds: float = Field(0.5, gt=0, description="How often the list of replicas is read.")
    replica_settle_seconds: float = Field(
        5.0,
        ge=0,
        description="How long after its start the gateway waits for replicas to report before it says that none takes a model.",
    )
    routing: RoutingPolicy = Field(
        "affinity",
        description="How a replica is chosen: affinity (by adapter and prompt, unless it is busy), least-busy or round-robin.",
    )
    placement_timeout_seconds: float = Field(
        240.0, gt=0, description="Longest a request waits for a model to be placed on a replica before it gets 503."
    )
    stage_timeout_seconds: float = Field(30.0, gt=0, description="Deadline of a call to a job stage.")
    reconcile_seconds: float = Field(5.0, gt=0, description="Time between two rounds of the runs' reconciler.")
    lingering_seconds: float = Field(
        2.0,
        ge=0,
        description="How long the rest of a refused body is read and thrown away, so that the client sees the answer.",
    )
    first_api_key: str = Field(
        "", description="Secret of the key that `init` registers, an operator's of the tenant default; empty: none."
    )
    access_log: bool = Field(False, description="Log one line a REST request.")
