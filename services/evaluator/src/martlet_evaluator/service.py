"""The evaluator's ``serve`` process, put together."""

from __future__ import annotations

from collections.abc import Sequence

from martlet.evaluator.v1 import evaluation_service_pb2_grpc
from martlet_core.job_service import JobService
from martlet_core.rpc.server import Service
from martlet_core.stage_server import StageServer, serve_until_told
from martlet_core.stores import Stores

from martlet_evaluator.jobs import Submissions
from martlet_evaluator.servicer import EVALUATION_SERVICE, EvaluationServicer
from martlet_evaluator.settings import EvaluatorSettings
from martlet_evaluator.worker import STAGE, build_handlers


def build_services(jobs: JobService, stores: Stores, settings: EvaluatorSettings) -> Sequence[Service]:
    """The gRPC services of ``martlet.evaluator.v1``."""
    servicer = EvaluationServicer(jobs, Submissions(stores, settings), settings.queue)
    return [Service(evaluation_service_pb2_grpc.add_EvaluationServiceServicer_to_server, servicer, EVALUATION_SERVICE)]


def serve(settings: EvaluatorSettings) -> int:
    """Serve until SIGTERM; returns the exit code."""
    return serve_until_told(
        lambda: StageServer(
            STAGE,
            settings,
            lambda jobs, stores: build_services(jobs, stores, settings),
            lambda stores: build_handlers(stores, settings),
        )
    )
