"""The gateway's gRPC side: one port for every service."""

from __future__ import annotations

from collections.abc import Sequence

from martlet.gateway.v1 import (
    alias_service_pb2_grpc,
    artifact_service_pb2_grpc,
    model_service_pb2_grpc,
    replica_service_pb2_grpc,
    run_service_pb2_grpc,
)
from martlet.inference.v1 import inference_service_pb2_grpc
from martlet_core.rpc.server import Service

from martlet_gateway.auth import REPLICA_SERVICE
from martlet_gateway.clients import StageClient
from martlet_gateway.context import GatewayContext
from martlet_gateway.services.aliases import AliasServicer
from martlet_gateway.services.artifacts import ArtifactServicer
from martlet_gateway.services.inference import InferenceServicer
from martlet_gateway.services.models import ModelServicer
from martlet_gateway.services.proxy import add_proxy_to_server
from martlet_gateway.services.replicas import ReplicaServicer
from martlet_gateway.services.runs import RunServicer


def grpc_services(context: GatewayContext) -> Sequence[Service]:
    """All services that a client of the gateway finds at its gRPC address."""
    return (
        *_proxied(context.stages.trainer, "TrainingService", "MergeService"),
        *_proxied(context.stages.quantizer, "QuantizationService"),
        *_proxied(context.stages.evaluator, "EvaluationService"),
        Service(
            inference_service_pb2_grpc.add_InferenceServiceServicer_to_server,
            InferenceServicer(context.router, context.names),
            "martlet.inference.v1.InferenceService",
        ),
        Service(
            artifact_service_pb2_grpc.add_ArtifactServiceServicer_to_server,
            ArtifactServicer(context),
            "martlet.gateway.v1.ArtifactService",
        ),
        Service(
            model_service_pb2_grpc.add_ModelServiceServicer_to_server,
            ModelServicer(context.names),
            "martlet.gateway.v1.ModelService",
        ),
        Service(
            run_service_pb2_grpc.add_RunServiceServicer_to_server,
            RunServicer(context.runs),
            "martlet.gateway.v1.RunService",
        ),
        Service(
            alias_service_pb2_grpc.add_AliasServiceServicer_to_server,
            AliasServicer(context.names),
            "martlet.gateway.v1.AliasService",
        ),
        Service(
            replica_service_pb2_grpc.add_ReplicaServiceServicer_to_server,
            ReplicaServicer(context.replicas),
            REPLICA_SERVICE,
        ),
    )


def _proxied(stage: StageClient, first: str, *more: str) -> Sequence[Service]:
    """The services of a stage's package; one proxy serves them all. None where the deployment has no such stage."""
    if not stage.deployed:
        return ()
    names = [f"martlet.{stage.stage}.v1.{service}" for service in (first, *more)]
    others = [Service(lambda _servicer, _server: None, None, name) for name in names[1:]]
    return [Service(add_proxy_to_server, stage, names[0]), *others]
