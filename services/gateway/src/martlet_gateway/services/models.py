"""``martlet.gateway.v1.ModelService``: names that answer in inference requests."""

from __future__ import annotations

from typing import Any

from google.protobuf.empty_pb2 import Empty
from martlet.gateway.v1 import model_service_pb2 as pb
from martlet.gateway.v1 import model_service_pb2_grpc
from martlet_core.artifacts.types import PublishedModel
from martlet_core.rpc.context import call_context

from martlet_gateway.model_names import ModelNames
from martlet_gateway.services.paging import paged

_KINDS = {
    "base": pb.PUBLISHED_MODEL_KIND_BASE,
    "adapter": pb.PUBLISHED_MODEL_KIND_ADAPTER,
    "whole": pb.PUBLISHED_MODEL_KIND_WHOLE,
}


class ModelServicer(model_service_pb2_grpc.ModelServiceServicer):
    """The service on top of the names."""

    def __init__(self, names: ModelNames) -> None:
        self._names = names

    async def GetModel(self, request: pb.GetModelRequest, context: Any) -> pb.Model:
        return to_proto(await self._names.resolve(request.name, call_context().tenant))

    async def ListModels(self, request: pb.ListModelsRequest, context: Any) -> pb.ListModelsResponse:
        models, token = paged(await self._names.list(call_context().tenant), request, lambda model: model.name)
        return pb.ListModelsResponse(models=[to_proto(model) for model in models], next_page_token=token)

    async def DeleteModel(self, request: pb.DeleteModelRequest, context: Any) -> Empty:
        await self._names.delete(request.name, call_context().tenant)
        return Empty()


def to_proto(model: PublishedModel) -> pb.Model:
    """A published model as a message."""
    message = pb.Model(
        name=model.name,
        kind=_KINDS.get(model.kind, pb.PUBLISHED_MODEL_KIND_UNSPECIFIED),
        artifact=f"artifacts/{model.artifact_id}" if model.artifact_id else "",
        base_model=model.base_model,
        lora_rank=model.lora_rank,
        source_job=model.source_job,
        tenant=model.tenant,
    )
    if model.create_time:
        message.create_time.FromNanoseconds(int(model.create_time * 1e9))
    return message
