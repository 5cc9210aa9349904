"""/healthz, /readyz and /metrics; no key is asked for."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any

import grpc.aio
from fastapi import APIRouter
from grpc_health.v1 import health_pb2, health_pb2_grpc
from martlet_core.errors import MartletError, Unavailable
from martlet_core.jobs import QueueLoad
from starlette.responses import Response

from martlet_gateway.clients import StageClient
from martlet_gateway.context import Gateway, GatewayContext, Json, in_thread
from martlet_gateway.metrics import CONTENT_TYPE
from martlet_gateway.runs.records import STAGE as RUNS_STAGE

router = APIRouter(tags=["health"])
log = logging.getLogger(__name__)

_PROBE_SECONDS = 3.0
_NEEDED = ("redis", "object_store")


@router.get("/healthz")
async def healthz() -> Json:
    """The process answers."""
    return Json({"status": "ok"})


@router.get("/readyz")
async def readyz(gateway: Gateway) -> Json:
    """The stores answer (else 503). Job stages and replicas are reported too, but chats don't wait for the ones,
    nor uploads for the others.
    """
    stages = gateway.stages.all()
    names = ("redis", "object_store", *(stage.stage for stage in stages))
    outcomes = await asyncio.gather(
        _probe(gateway.replica_store.all()),
        _probe(in_thread(gateway.stores.objects.list, "keys/", limit=1)),
        *(_probe(_serving(stage)) for stage in stages),
    )
    checks: dict[str, Any] = dict(zip(names, outcomes, strict=True))
    ready = all(checks[name] == "ok" for name in _NEEDED)
    replicas = gateway.replicas.snapshot.replicas.values()
    checks["replicas"] = {"known": len(replicas), "ready": sum(view.usable for view in replicas)}
    return Json({"status": "ready" if ready else "not ready", "checks": checks}, status_code=200 if ready else 503)


@router.get("/metrics")
async def metrics(gateway: Gateway) -> Response:
    """Prometheus metrics. The numbers of jobs are asked for now; where the job store doesn't answer, they are left out."""
    requests: Counter[str] = Counter()
    for view in gateway.replicas.snapshot.replicas.values():
        requests[view.own_model] += view.load
    gateway.metrics.show_replicas(requests)
    gateway.metrics.show_jobs(await _loads(gateway))
    return Response(gateway.metrics.render(), media_type=CONTENT_TYPE)


async def _loads(gateway: GatewayContext) -> Mapping[str, Sequence[QueueLoad]] | None:
    stages = (*(stage.stage for stage in gateway.stages.all()), RUNS_STAGE)
    try:
        async with asyncio.timeout(_PROBE_SECONDS):
            loads = await asyncio.gather(*(in_thread(gateway.stores.jobs.queue_loads, stage) for stage in stages))
    except (TimeoutError, MartletError) as error:
        log.warning("The job store doesn't say how many jobs there are: %s", error or "no answer in time")
        return None
    return dict(zip(stages, loads, strict=True))


async def _probe(check: Awaitable[Any]) -> str:
    try:
        async with asyncio.timeout(_PROBE_SECONDS):
            await check
    except TimeoutError:
        return f"no answer in {_PROBE_SECONDS:g} s"
    except MartletError as error:
        return error.message
    except grpc.aio.AioRpcError as error:
        return f"{error.code().name}: {error.details()}"
    return "ok"


async def _serving(stage: StageClient) -> None:
    stub: Any = health_pb2_grpc.HealthStub(stage.channel)
    answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=_PROBE_SECONDS)
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        raise Unavailable("not serving")
