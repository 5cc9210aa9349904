"""``martlet.gateway.v1.ReplicaService``: where replicas make themselves known."""

from __future__ import annotations

from typing import Any

from google.protobuf.empty_pb2 import Empty
from martlet.gateway.v1 import replica_pb2, replica_service_pb2, replica_service_pb2_grpc

from martlet_gateway.replicas import ReplicaRegistry
from martlet_gateway.services.paging import paged


class ReplicaServicer(replica_service_pb2_grpc.ReplicaServiceServicer):
    """The service on top of the registry. ``Authenticator.grpc_tenant`` asks its callers for the internal token."""

    def __init__(self, replicas: ReplicaRegistry) -> None:
        self._replicas = replicas

    async def RegisterReplica(
        self, request: replica_service_pb2.RegisterReplicaRequest, context: Any
    ) -> replica_pb2.Replica:
        return await self._replicas.register(request.replica)

    async def RenewReplica(self, request: replica_service_pb2.RenewReplicaRequest, context: Any) -> replica_pb2.Replica:
        return await self._replicas.renew(request.replica)

    async def DeregisterReplica(self, request: replica_service_pb2.DeregisterReplicaRequest, context: Any) -> Empty:
        await self._replicas.deregister(request.name)
        return Empty()

    async def ListReplicas(
        self, request: replica_service_pb2.ListReplicasRequest, context: Any
    ) -> replica_service_pb2.ListReplicasResponse:
        page, token = paged(self._replicas.list(), request, lambda replica: replica.name)
        return replica_service_pb2.ListReplicasResponse(replicas=page, next_page_token=token)
