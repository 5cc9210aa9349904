"""``martlet.gateway.v1.ArtifactService``: artifacts for those who have no key to the object store."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from google.protobuf import json_format
from google.protobuf.empty_pb2 import Empty
from google.protobuf.timestamp_pb2 import Timestamp
from martlet.common.v1 import artifact_pb2
from martlet.gateway.v1 import artifact_service_pb2 as pb
from martlet.gateway.v1 import artifact_service_pb2_grpc
from martlet_core.artifacts.layout import blob_key
from martlet_core.artifacts.types import Artifact, ArtifactFile
from martlet_core.errors import InvalidArgument, NotFound
from martlet_core.ids import ID_PATTERN
from martlet_core.rpc.context import call_context

from martlet_gateway.context import GatewayContext
from martlet_gateway.services.paging import page_size

_PREFIX = "artifacts/"
_KIND_PREFIX = "ARTIFACT_KIND_"


class ArtifactServicer(artifact_service_pb2_grpc.ArtifactServiceServicer):
    """The service on top of the artifact store."""

    def __init__(self, context: GatewayContext) -> None:
        self._store = context.stores.artifacts
        self._objects = context.stores.objects
        self._uploads = context.artifact_uploads
        self._use = context.use
        self._ttl_seconds = int(context.settings.upload_ttl_seconds)

    async def CreateArtifactUpload(self, request: pb.CreateArtifactUploadRequest, context: Any) -> pb.ArtifactUpload:
        draft = _draft(request.artifact, call_context().tenant)
        announced, urls = await asyncio.to_thread(self._uploads.announce, call_context().tenant, draft)
        return pb.ArtifactUpload(
            name=f"artifactUploads/{announced.id}",
            puts=[pb.FileUrl(path=path, url=url) for path, url in urls.items()],
            expire_time=_timestamp(announced.expires_at),
        )

    async def CommitArtifact(self, request: pb.CommitArtifactRequest, context: Any) -> artifact_pb2.Artifact:
        artifact = await asyncio.to_thread(self._uploads.commit, call_context().tenant, request.name)
        return self._to_proto(artifact)

    async def GetArtifact(self, request: pb.GetArtifactRequest, context: Any) -> artifact_pb2.Artifact:
        return self._to_proto(await self._get(request.name))

    async def ListArtifacts(self, request: pb.ListArtifactsRequest, context: Any) -> pb.ListArtifactsResponse:
        page = await asyncio.to_thread(
            self._store.list,
            tenant=call_context().tenant,
            kind=_kind(request.kind),
            page_size=page_size(request),
            page_token=request.page_token,
        )
        artifacts = [self._to_proto(artifact, with_files=False) for artifact in page.artifacts]
        return pb.ListArtifactsResponse(artifacts=artifacts, next_page_token=page.next_page_token)

    async def CreateArtifactDownload(
        self, request: pb.CreateArtifactDownloadRequest, context: Any
    ) -> pb.ArtifactDownload:
        artifact = await self._get(request.name)
        gets = [
            pb.FileUrl(path=f.path, url=self._objects.presign_get(blob_key(f.sha256), self._ttl_seconds))
            for f in artifact.files
        ]
        expires = _timestamp(time.time() + self._ttl_seconds)
        return pb.ArtifactDownload(artifact=self._to_proto(artifact), gets=gets, expire_time=expires)

    async def DeleteArtifact(self, request: pb.DeleteArtifactRequest, context: Any) -> Empty:
        artifact = await self._get(request.name)
        await self._use.refuse_if_needed(artifact.id)
        await asyncio.to_thread(self._store.delete, artifact.id, tenant=call_context().tenant)
        return Empty()

    async def _get(self, name: str) -> Artifact:
        return await asyncio.to_thread(self._store.get, _bare(name), tenant=call_context().tenant)

    def _to_proto(self, artifact: Artifact, *, with_files: bool = True) -> artifact_pb2.Artifact:
        message = artifact_pb2.Artifact(
            name=_PREFIX + artifact.id,
            kind=_KIND_PREFIX + artifact.kind.upper(),
            display_name=artifact.display_name,
            uri=self._objects.uri(f"artifacts/{artifact.id}/manifest.json"),
            sha256=artifact.sha256,
            size_bytes=artifact.size_bytes,
            create_time=_timestamp(artifact.create_time),
            labels=dict(artifact.labels),
            source_job=artifact.source_job,
            parents=[_PREFIX + parent for parent in artifact.parents],
        )
        if artifact.metadata:
            json_format.ParseDict(dict(artifact.metadata), message.metadata)
        if with_files:
            for file in artifact.files:
                message.files.add(path=file.path, sha256=file.sha256, size_bytes=file.size_bytes)
        return message


def _draft(message: artifact_pb2.Artifact, tenant: str) -> Artifact:
    kind = _kind(message.kind)
    if kind is None:
        raise InvalidArgument.field("artifact.kind", "is required.")
    if len(message.labels) > 16 or any(not 0 < len(k) <= 64 or len(v) > 512 for k, v in message.labels.items()):
        raise InvalidArgument.field(
            "artifact.labels", "has at most 16 keys of at most 64 and values of at most 512 characters."
        )
    return Artifact(
        id="",
        kind=kind,
        tenant=tenant,
        files=[ArtifactFile(f.path, f.sha256, f.size_bytes) for f in message.files],
        display_name=message.display_name,
        labels=dict(message.labels),
        metadata=json_format.MessageToDict(message.metadata),
        parents=[_bare(parent) for parent in message.parents],
    )


def _kind(number: int) -> str | None:
    if number == artifact_pb2.ARTIFACT_KIND_UNSPECIFIED:
        return None
    value = artifact_pb2.ArtifactKind.DESCRIPTOR.values_by_number.get(number)
    if value is None:
        raise InvalidArgument.field("kind", f"{number} is not a kind of artifact.")
    return value.name.removeprefix(_KIND_PREFIX).lower()


def _bare(name: str) -> str:
    bare = name.removeprefix(_PREFIX)
    if not name.startswith(_PREFIX) or not ID_PATTERN.fullmatch(bare):
        raise NotFound(
            f"There is no artifact {name:.100}; names look like artifacts/{{id}}.", reason="ARTIFACT_NOT_FOUND"
        )
    return bare


def _timestamp(seconds: float) -> Timestamp:
    stamp = Timestamp()
    stamp.FromNanoseconds(int(seconds * 1e9))
    return stamp
