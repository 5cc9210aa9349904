"""``martlet.gateway.v1.AliasService``: names that may be moved."""

from __future__ import annotations

from typing import Any

from google.protobuf.empty_pb2 import Empty
from martlet.gateway.v1 import alias_service_pb2 as pb
from martlet.gateway.v1 import alias_service_pb2_grpc
from martlet_core.job_proto import time_to_proto
from martlet_core.rpc.context import call_context

from martlet_gateway.aliases import Alias
from martlet_gateway.model_names import ModelNames
from martlet_gateway.services.paging import paged

_PREFIX = "aliases/"


class AliasServicer(alias_service_pb2_grpc.AliasServiceServicer):
    """The service on top of the names."""

    def __init__(self, names: ModelNames) -> None:
        self._names = names

    async def GetAlias(self, request: pb.GetAliasRequest, context: Any) -> pb.Alias:
        return to_proto(await self._names.alias(_bare(request.name), call_context().tenant))

    async def ListAliases(self, request: pb.ListAliasesRequest, context: Any) -> pb.ListAliasesResponse:
        found, token = paged(await self._names.aliases(call_context().tenant), request, lambda alias: alias.name)
        return pb.ListAliasesResponse(aliases=[to_proto(alias) for alias in found], next_page_token=token)

    async def PutAlias(self, request: pb.PutAliasRequest, context: Any) -> pb.Alias:
        alias = request.alias
        moved = await self._names.put_alias(_bare(alias.name), alias.model, call_context().tenant, etag=request.etag)
        return to_proto(moved)

    async def RollbackAlias(self, request: pb.RollbackAliasRequest, context: Any) -> pb.Alias:
        return to_proto(await self._names.roll_back_alias(_bare(request.name), call_context().tenant))

    async def DeleteAlias(self, request: pb.DeleteAliasRequest, context: Any) -> Empty:
        await self._names.delete_alias(_bare(request.name), call_context().tenant)
        return Empty()


def to_proto(alias: Alias) -> pb.Alias:
    """An alias as a message."""
    return pb.Alias(
        name=f"{_PREFIX}{alias.name}",
        model=alias.model,
        etag=alias.etag,
        moves=[
            pb.AliasMove(
                model=move.model, move_time=time_to_proto(move.move_time), run=move.run, reason=move.reason.split()[0]
            )
            for move in alias.moves
        ],
        update_time=time_to_proto(alias.moves[0].move_time),
    )


def _bare(name: str) -> str:
    return name.removeprefix(_PREFIX)
