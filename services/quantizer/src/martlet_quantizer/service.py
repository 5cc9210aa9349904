"""The quantizer's ``serve`` process, put together."""

from __future__ import annotations

from collections.abc import Sequence

from martlet.quantizer.v1 import quantization_service_pb2_grpc
from martlet_core.job_service import JobService
from martlet_core.rpc.server import Service
from martlet_core.stage_server import StageServer, serve_until_told
from martlet_core.stores import Stores

from martlet_quantizer.jobs import Submissions
from martlet_quantizer.servicer import QUANTIZATION_SERVICE, QuantizationServicer
from martlet_quantizer.settings import QuantizerSettings
from martlet_quantizer.worker import STAGE, build_handlers


def build_services(jobs: JobService, stores: Stores, settings: QuantizerSettings) -> Sequence[Service]:
    """The gRPC service of ``martlet.quantizer.v1``."""
    submissions = Submissions(
        stores.artifacts,
        stores.models,
        model_roots=settings.allowed_roots,
        models_dir=settings.models_dir,
        scratch_dir=settings.work_dir / "quantizer-serve",
        max_json_bytes=settings.max_json_bytes,
    )
    servicer = QuantizationServicer(jobs, submissions, settings.family_queue)
    add = quantization_service_pb2_grpc.add_QuantizationServiceServicer_to_server
    return [Service(add, servicer, QUANTIZATION_SERVICE)]


def serve(settings: QuantizerSettings) -> int:
    """Serve until SIGTERM; returns the exit code."""
    return serve_until_told(
        lambda: StageServer(
            STAGE,
            settings,
            lambda jobs, stores: build_services(jobs, stores, settings),
            lambda stores: build_handlers(stores, settings),
        )
    )
