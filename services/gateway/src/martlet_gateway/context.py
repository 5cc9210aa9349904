"""What the routes need, built once and handed down: no route reaches for a global."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import orjson
from fastapi import Depends, Request
from martlet_core.rpc.context import call_context
from martlet_core.stores import Stores
from starlette.responses import Response

from martlet_gateway.artifact_uploads import ArtifactUploads
from martlet_gateway.auth import Caller
from martlet_gateway.clients import Stages
from martlet_gateway.eval_store import EvalStore
from martlet_gateway.file_store import FileStore
from martlet_gateway.idempotency import RetryMemory
from martlet_gateway.lineage import Lineage
from martlet_gateway.metrics import Metrics
from martlet_gateway.model_names import ModelNames
from martlet_gateway.replica_store import ReplicaStore
from martlet_gateway.replicas import ReplicaRegistry
from martlet_gateway.router import Router
from martlet_gateway.runs.service import RunService
from martlet_gateway.settings import GatewaySettings
from martlet_gateway.upload_store import UploadStore
from martlet_gateway.usage import ArtifactUse


@dataclass(frozen=True)
class GatewayContext:
    """The gateway's parts."""

    settings: GatewaySettings
    stores: Stores
    files: FileStore
    evals: EvalStore
    uploads: UploadStore
    artifact_uploads: ArtifactUploads
    stages: Stages
    replica_store: ReplicaStore
    replicas: ReplicaRegistry
    names: ModelNames
    router: Router
    runs: RunService
    lineage: Lineage
    retries: RetryMemory
    use: ArtifactUse
    metrics: Metrics

    @property
    def scratch(self) -> Path:
        """Where bodies lie until they are stored."""
        return self.settings.upload_dir


def _context(request: Request) -> GatewayContext:
    return request.app.state.gateway


Gateway = Annotated[GatewayContext, Depends(_context)]


def _operators_only(request: Request) -> None:
    caller: Caller = request.state.caller
    caller.require_operator(f"{request.method} {request.url.path}")


#: For routes that only an operator's key may use: ``dependencies=[OPERATORS_ONLY]``.
OPERATORS_ONLY = Depends(_operators_only)


def tenant() -> str:
    """The tenant of the request being served."""
    return call_context().tenant


class Json(Response):
    """JSON by orjson: fast, and NaN becomes null instead of an error."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return orjson.dumps(content)


in_thread = asyncio.to_thread
