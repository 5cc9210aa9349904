"""A job stage's ``serve`` process, put together: gRPC server, job service, reconciler, housekeeper."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Sequence

from martlet_core.housekeeping import Housekeeper, store_chores
from martlet_core.job_bus import CeleryBell
from martlet_core.job_handler import JobHandler
from martlet_core.job_service import JobService
from martlet_core.reconciler import Reconciler, ReconcilerOptions
from martlet_core.rpc.server import GrpcServer, Service
from martlet_core.stage_settings import StageSettings
from martlet_core.stores import Stores, open_stores

_GRACE_SECONDS = 10.0


class StageServer:
    """Answers a stage's contract, keeps its jobs moving and the deployment's stores tidy.

    Args:
        stage: ``trainer``, ``quantizer``, ``evaluator``.
        settings: the stage's.
        services: makes the gRPC services from the stage's jobs and the stores.
        handlers: makes one handler for each kind of job.

    Attributes:
        port: where it listens, once started.
    """

    def __init__(
        self,
        stage: str,
        settings: StageSettings,
        services: Callable[[JobService, Stores], Sequence[Service]],
        handlers: Callable[[Stores], Sequence[JobHandler]],
    ) -> None:
        stores = open_stores(settings)
        self._bell = CeleryBell(settings.redis_url)
        self._server = GrpcServer(
            settings.grpc_address,
            services(JobService(stage, stores, self._bell), stores),
            internal_token=settings.internal_token,
        )
        self._reconciler = Reconciler(
            stage,
            stores,
            self._bell,
            handlers(stores),
            owner=f"{socket.gethostname()}-{os.getpid()}",
            options=ReconcilerOptions(
                interval_seconds=settings.reconcile_seconds,
                keep_events_seconds=settings.keep_events_days * 24 * 3600,
            ),
        )
        self._housekeeper = Housekeeper(stores.jobs, store_chores(stores, [stage]), settings.housekeeping_hours * 3600)
        self.port = 0

    async def start(self) -> None:
        """Begin to serve. FailedPrecondition if the address is taken."""
        self.port = await self._server.start()
        self._reconciler.start()
        self._housekeeper.start()

    async def stop(self) -> None:
        """End watches and calls, then the reconciler and the housekeeper."""
        await self._server.stop(_GRACE_SECONDS)
        await asyncio.to_thread(self._reconciler.stop)
        await asyncio.to_thread(self._housekeeper.stop)
        self._bell.close()


def serve_until_told(build: Callable[[], StageServer]) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code."""

    async def run() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        server = build()
        await server.start()
        await stop.wait()
        await server.stop()

    asyncio.run(run())
    return 0
