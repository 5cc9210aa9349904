"""/v1/martlet/artifacts: what jobs made and what was uploaded."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from martlet_core.artifacts.types import Artifact
from martlet_core.errors import NotFound
from martlet_core.ids import ID_PATTERN
from starlette.concurrency import iterate_in_threadpool
from starlette.responses import StreamingResponse

from martlet_gateway.context import Gateway, GatewayContext, Json, in_thread, tenant
from martlet_gateway.routes.files import page

router = APIRouter(prefix="/v1/martlet/artifacts", tags=["martlet artifacts"])

Kind = Literal["dataset", "adapter", "checkpoint", "model", "merged_model", "quantized_model", "report"]


@router.get("")
async def list_artifacts(
    gateway: Gateway,
    kind: Kind | None = None,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> Json:
    """The tenant's artifacts, newest first."""
    token = _bare(after) if after else ""
    found = await in_thread(
        gateway.stores.artifacts.list, tenant=tenant(), kind=kind, page_size=limit, page_token=token
    )
    return Json(page([to_json(gateway, artifact) for artifact in found.artifacts], bool(found.next_page_token)))


@router.get("/{artifact_id}")
async def retrieve_artifact(artifact_id: str, gateway: Gateway) -> Json:
    """One artifact with its files."""
    return Json(to_json(gateway, await _get(gateway, artifact_id)))


@router.get("/{artifact_id}/files/{path:path}")
async def artifact_file(artifact_id: str, path: str, gateway: Gateway) -> StreamingResponse:
    """The bytes of one file; the connection breaks off if they don't match their sha256."""
    artifact = await _get(gateway, artifact_id)
    files = [file for file in artifact.files if file.path == path]
    if not files:
        raise NotFound(
            f"artifacts/{artifact.id} has no file {path:.200}.",
            reason="ARTIFACT_FILE_NOT_FOUND",
            metadata={"param": "path"},
        )
    chunks = await in_thread(gateway.stores.artifacts.open_file, artifact, path)
    headers = {"content-length": str(files[0].size_bytes), "x-martlet-sha256": files[0].sha256}
    return StreamingResponse(iterate_in_threadpool(chunks), media_type="application/octet-stream", headers=headers)


@router.delete("/{artifact_id}")
async def delete_artifact(artifact_id: str, gateway: Gateway) -> Json:
    """Delete an artifact. 409 while a job that isn't over or a published model needs it."""
    artifact = await _get(gateway, artifact_id)
    await gateway.use.refuse_if_needed(artifact.id)
    await in_thread(gateway.stores.artifacts.delete, artifact.id, tenant=tenant())
    return Json({"id": artifact.id, "object": "artifact", "deleted": True})


def to_json(gateway: GatewayContext, artifact: Artifact) -> dict[str, Any]:
    """An artifact as JSON, named as in the protos."""
    return {
        "id": artifact.id,
        "object": "artifact",
        "name": f"artifacts/{artifact.id}",
        "kind": artifact.kind,
        "display_name": artifact.display_name,
        "uri": gateway.stores.objects.uri(f"artifacts/{artifact.id}/manifest.json"),
        "sha256": artifact.sha256,
        "size_bytes": artifact.size_bytes,
        "files": [{"path": f.path, "sha256": f.sha256, "size_bytes": f.size_bytes} for f in artifact.files],
        "create_time": artifact.create_time,
        "labels": dict(artifact.labels),
        "metadata": dict(artifact.metadata),
        "source_job": artifact.source_job,
        "parents": list(artifact.parents),
    }


async def _get(gateway: GatewayContext, artifact_id: str) -> Artifact:
    bare = _bare(artifact_id)
    try:
        return await in_thread(gateway.stores.artifacts.get, bare, tenant=tenant())
    except NotFound as error:
        raise _no_such_artifact(artifact_id) from error


def _bare(artifact_id: str) -> str:
    bare = artifact_id.removeprefix("artifacts/").removeprefix("file-")
    if not ID_PATTERN.fullmatch(bare):
        raise _no_such_artifact(artifact_id)
    return bare


def _no_such_artifact(artifact_id: str) -> NotFound:
    return NotFound(
        f"No such artifact: {artifact_id:.100}", reason="ARTIFACT_NOT_FOUND", metadata={"param": "artifact_id"}
    )
