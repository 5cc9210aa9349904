"""The trainer's ``serve`` process, put together."""

from __future__ import annotations

from collections.abc import Sequence

from martlet.trainer.v1 import merge_service_pb2_grpc, training_service_pb2_grpc
from martlet_core.job_service import JobService
from martlet_core.rpc.server import Service
from martlet_core.stage_server import StageServer, serve_until_told
from martlet_core.stores import Stores

from martlet_trainer.jobs import Submissions
from martlet_trainer.registrations import Registrations
from martlet_trainer.servicer import MERGE_SERVICE, TRAINING_SERVICE, MergeServicer, TrainingServicer
from martlet_trainer.settings import TrainerSettings
from martlet_trainer.worker import STAGE, build_handlers


def build_services(jobs: JobService, stores: Stores, settings: TrainerSettings) -> Sequence[Service]:
    """The gRPC services of ``martlet.trainer.v1``."""
    submissions = Submissions(
        stores.artifacts,
        stores.models,
        model_roots=settings.allowed_roots,
        models_dir=settings.models_dir,
        scratch_dir=settings.work_dir / "trainer-serve",
        max_json_bytes=settings.max_json_bytes,
        allowed_services=settings.allowed_services,
        trackers=settings.offered_trackers,
    )
    registrations = Registrations(stores.artifacts, stores.models)
    training = TrainingServicer(jobs, submissions, settings.queue, registrations)
    merge = MergeServicer(jobs, submissions, settings.queue)
    return [
        Service(training_service_pb2_grpc.add_TrainingServiceServicer_to_server, training, TRAINING_SERVICE),
        Service(merge_service_pb2_grpc.add_MergeServiceServicer_to_server, merge, MERGE_SERVICE),
    ]


def serve(settings: TrainerSettings) -> int:
    """Serve until SIGTERM; returns the exit code."""
    return serve_until_told(
        lambda: StageServer(
            STAGE,
            settings,
            lambda jobs, stores: build_services(jobs, stores, settings),
            lambda stores: build_handlers(stores, settings),
        )
    )
