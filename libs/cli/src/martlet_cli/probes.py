"""Does it serve? One quick question each; the answer is yes or no, never an exception."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import httpx
from grpc_health.v1 import health_pb2, health_pb2_grpc
from martlet_core.errors import MartletError
from martlet_core.local_servers import wait_s3, wait_valkey

Probe = Callable[[], bool]
_TIMEOUT_SECONDS = 2.0


def valkey(url: str) -> Probe:
    """Valkey answers PING."""

    def probe() -> bool:
        try:
            wait_valkey(url, timeout_seconds=0)
        except MartletError:
            return False
        return True

    return probe


def object_store(url: str, access_key: str, secret_key: str, bucket: str) -> Probe:
    """The object store stores an object; makes the bucket."""

    def probe() -> bool:
        try:
            wait_s3(url, access_key, secret_key, bucket, timeout_seconds=0)
        except MartletError:
            return False
        return True

    return probe


def http(url: str) -> Probe:
    """A GET is answered with a status under 400."""

    def probe() -> bool:
        try:
            return httpx.get(url, timeout=_TIMEOUT_SECONDS).status_code < 400
        except httpx.HTTPError:
            return False

    return probe


def grpc_health(address: str, service: str = "") -> Probe:
    """The standard health service says SERVING (``service`` empty: for the server as a whole)."""

    def probe() -> bool:
        with grpc.insecure_channel(address) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)  # its methods are made at run time
            try:
                answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=_TIMEOUT_SECONDS)
            except grpc.RpcError:
                return False
            return answer.status == health_pb2.HealthCheckResponse.SERVING

    return probe
