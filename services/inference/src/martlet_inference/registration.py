"""Makes a replica known to the gateway, and keeps what the gateway knows of it fresh."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from martlet.gateway.v1 import replica_pb2
from martlet.gateway.v1 import replica_service_pb2 as service_pb
from martlet.gateway.v1 import replica_service_pb2_grpc as service_grpc
from martlet_core.errors import MartletError, NotFound
from martlet_core.rpc.client import call_metadata, open_channel, translate_errors

log = logging.getLogger(__name__)

CALL_TIMEOUT_SECONDS = 5.0
#: Least time between two reports, in seconds: many changes at once make one.
LEAST_INTERVAL_SECONDS = 0.02


class Registration:
    """Registers a replica, renews its lease with its present models and load, and registers again when forgotten.

    Args:
        gateway_address: ``host:port`` of the gateway's gRPC side.
        describe: makes the message about the replica; its argument is the name the gateway gave it, empty before.
        renew_seconds: interval of the reports; ``changed`` sends one at once.
        internal_token: token that the gateway asks for.
    """

    def __init__(
        self,
        gateway_address: str,
        describe: Callable[[str], Awaitable[replica_pb2.Replica]],
        *,
        renew_seconds: float,
        internal_token: str = "",
    ) -> None:
        self._gateway_address = gateway_address
        self._describe = describe
        self._renew_seconds = renew_seconds
        self._metadata = call_metadata(internal_token=internal_token)
        self._channel = open_channel(gateway_address)
        self._stub = service_grpc.ReplicaServiceStub(self._channel)
        self._name = ""
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._failing = False

    @property
    def name(self) -> str:
        """``replicas/{id}`` while registered, else empty."""
        return self._name

    def start(self) -> None:
        """Begin to register and renew in the background."""
        self._task = asyncio.create_task(self._run(), name="registration")

    def changed(self) -> None:
        """Report at once: a model came or went, or the replica's readiness changed."""
        self._news.set()

    async def report(self) -> None:
        """Register or renew now.

        Raises:
            MartletError: the gateway doesn't answer or refuses.
        """
        replica = await self._describe(self._name)
        if self._name:
            try:
                async with translate_errors():
                    await self._stub.RenewReplica(
                        service_pb.RenewReplicaRequest(replica=replica),
                        timeout=CALL_TIMEOUT_SECONDS,
                        metadata=self._metadata,
                    )
                return
            except NotFound:
                log.warning(
                    "the gateway no longer knows this replica; registering again", extra={"replica": self._name}
                )
                self._name = replica.name = ""
        async with translate_errors():
            registered: replica_pb2.Replica = await self._stub.RegisterReplica(
                service_pb.RegisterReplicaRequest(replica=replica),
                timeout=CALL_TIMEOUT_SECONDS,
                metadata=self._metadata,
            )
        self._name = registered.name
        log.info("registered with the gateway", extra={"replica": self._name, "address": replica.address})

    async def stop(self) -> None:
        """Stop reporting and take the replica off the gateway's list; without an answer the lease lapses."""
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._name:
            try:
                async with translate_errors():
                    await self._stub.DeregisterReplica(
                        service_pb.DeregisterReplicaRequest(name=self._name),
                        timeout=CALL_TIMEOUT_SECONDS,
                        metadata=self._metadata,
                    )
            except MartletError as exc:
                log.warning("could not deregister; the lease will lapse", extra={"error": exc.message})
            self._name = ""
        await self._channel.close()

    async def _run(self) -> None:
        while True:
            self._news.clear()
            try:
                await self.report()
                self._failing = False
            except MartletError as exc:
                if not self._failing:  # once an outage, not once an interval
                    log.warning(
                        "the gateway can't be reached; trying again",
                        extra={"gateway": self._gateway_address, "error": exc.message},
                    )
                self._failing = True
            await asyncio.sleep(LEAST_INTERVAL_SECONDS)
            try:
                await asyncio.wait_for(self._news.wait(), self._renew_seconds)
            except TimeoutError:
                continue
