"""The trainer's ``serve`` process, put together: gRPC server, job service, reconciler, housekeeper."""

from __future__ import annotations

import asyncio
import os
import socket

from martlet.trainer.v1 import merge_service_pb2_grpc, training_service_pb2_grpc
from martlet_core.housekeeping import Housekeeper, store_chores
from martlet_core.job_bus import CeleryBell
from martlet_core.job_service import JobService
from martlet_core.reconciler import Reconciler, ReconcilerOptions
from martlet_core.rpc.server import GrpcServer, Service
from martlet_core.stores import open_stores

from martlet_trainer.jobs import Submissions
from martlet_trainer.servicer import MERGE_SERVICE, TRAINING_SERVICE, MergeServicer, TrainingServicer
from martlet_trainer.settings import TrainerSettings
from martlet_trainer.worker import build_handlers

STAGE = "trainer"
_GRACE_SECONDS = 10.0


class TrainerService:
    """Answers ``martlet.trainer.v1``, keeps the trainer's jobs moving and the deployment's stores tidy.

    Args:
        settings: see ``TrainerSettings``.

    Attributes:
        port: where it listens, once started.
    """

    def __init__(self, settings: TrainerSettings) -> None:
        stores = open_stores(settings)
        self._bell = CeleryBell(settings.redis_url)
        jobs = JobService(STAGE, stores, self._bell)
        submissions = Submissions(
            stores.artifacts,
            stores.models,
            model_roots=settings.allowed_roots,
            models_dir=settings.models_dir,
            scratch_dir=settings.work_dir / "trainer-serve",
            max_json_bytes=settings.max_json_bytes,
        )
        training = TrainingServicer(jobs, submissions, settings.queue)
        merge = MergeServicer(jobs, submissions, settings.queue)
        self._server = GrpcServer(
            settings.grpc_address,
            [
                Service(training_service_pb2_grpc.add_TrainingServiceServicer_to_server, training, TRAINING_SERVICE),
                Service(merge_service_pb2_grpc.add_MergeServiceServicer_to_server, merge, MERGE_SERVICE),
            ],
            internal_token=settings.internal_token,
        )
        self._reconciler = Reconciler(
            STAGE,
            stores,
            self._bell,
            build_handlers(stores, settings),
            owner=f"{socket.gethostname()}-{os.getpid()}",
            options=ReconcilerOptions(
                interval_seconds=settings.reconcile_seconds,
                keep_events_seconds=settings.keep_events_days * 24 * 3600,
            ),
        )
        self._housekeeper = Housekeeper(stores.jobs, store_chores(stores, [STAGE]), settings.housekeeping_hours * 3600)
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
