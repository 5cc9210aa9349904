"""A gRPC server with what each of our services needs: limits, keepalive, health, reflection, errors, graceful stop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio  # pyright: ignore[reportAttributeAccessIssue]  # stubs lack it
from grpc_reflection.v1alpha import reflection

from martlet_core.errors import FailedPrecondition
from martlet_core.rpc.client import MESSAGE_OPTIONS
from martlet_core.rpc.interceptors import Authenticate, CallInterceptor

log = logging.getLogger(__name__)

_HEALTH_SERVICE = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name


@dataclass(frozen=True)
class Service:
    """A service to serve.

    Attributes:
        add_to_server: the generated ``add_<Name>Servicer_to_server``.
        servicer: its implementation; methods are ``async def`` or async generators.
        full_name: as in the proto (``martlet.trainer.v1.TrainingService``); used by health and reflection.
    """

    add_to_server: Callable[[Any, Any], None]
    servicer: Any
    full_name: str


class GrpcServer:
    """An aio server, bound to the event loop that starts it.

    Args:
        address: ``host:port``; port 0 picks a free one.
        services: what to serve; health and reflection come on top.
        internal_token: token that callers must show; empty turns the check off.
        interceptors: further interceptors, run inside ours (their MartletErrors become statuses too).
        authenticate: for a server that outsiders reach: finds the tenant from the metadata (see ``CallInterceptor``).
        connection_age_seconds: after this, clients are sent to resolve the name again, so that new replicas get their
            share. Running calls go on for up to an hour.
    """

    def __init__(
        self,
        address: str,
        services: Sequence[Service],
        *,
        internal_token: str = "",
        interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
        authenticate: Authenticate | None = None,
        connection_age_seconds: float = 300.0,
    ) -> None:
        self.address = address
        self._services = tuple(services)
        self._calls = CallInterceptor(internal_token=internal_token, authenticate=authenticate)
        self._interceptors = (self._calls, *interceptors)
        self._connection_age_seconds = connection_age_seconds
        self._serving = {"": True, **{service.full_name: True for service in self._services}}
        self._health = health_aio.HealthServicer()
        self._server: grpc.aio.Server | None = None

    async def start(self) -> int:
        """Start serving and return the port.

        Raises:
            FailedPrecondition: the address can't be listened on.
        """
        server = grpc.aio.server(interceptors=self._interceptors, options=self._options())
        for service in self._services:
            service.add_to_server(service.servicer, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = [service.full_name for service in self._services]
        reflection.enable_server_reflection([*names, _HEALTH_SERVICE, reflection.SERVICE_NAME], server)
        for name, serving in self._serving.items():
            await self._health.set(name, _health_status(serving))
        try:
            port = server.add_insecure_port(self.address)
        except RuntimeError as error:
            raise FailedPrecondition(
                f"Can't listen for gRPC on {self.address}: {error}. Another process may use the port; "
                "set MARTLET_GRPC_ADDRESS.",
                reason="ADDRESS_IN_USE",
            ) from error
        await server.start()
        self._server = server
        log.info("serving gRPC on port %d", port, extra={"services": names})
        return port

    async def stop(self, grace_seconds: float = 10.0) -> None:
        """Report NOT_SERVING, end Watch streams, let running calls end for up to ``grace_seconds``, then cut them."""
        if self._server is None:
            return
        await self._health.enter_graceful_shutdown()
        self._calls.end_watches()
        await self._server.stop(grace_seconds)

    def set_serving(self, service_name: str, serving: bool) -> asyncio.Future[None]:
        """Set what health checks hear about a service; ``""`` is the server as a whole. Call it on the server's loop.

        Returns:
            A future that is done when watchers were told; it need not be awaited.
        """
        self._serving[service_name] = serving
        return asyncio.ensure_future(self._health.set(service_name, _health_status(serving)))

    async def wait(self) -> None:
        """Wait until the server has stopped."""
        if self._server is not None:
            await self._server.wait_for_termination()

    def _options(self) -> list[tuple[str, Any]]:
        return [
            *MESSAGE_OPTIONS,
            ("grpc.so_reuseport", 0),  # two servers on one port is a mistake, not load balancing
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
            ("grpc.http2.max_ping_strikes", 2),
            ("grpc.max_connection_age_ms", int(self._connection_age_seconds * 1000)),
            ("grpc.max_connection_age_grace_ms", 3_600_000),
        ]


def _health_status(serving: bool) -> health_pb2.HealthCheckResponse.ServingStatus:
    return health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
