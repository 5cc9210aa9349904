"""What is too large is refused before it costs memory or disk: JSON bodies of every route, and artifacts over gRPC."""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
import orjson
import pytest
from martlet.common.v1 import artifact_pb2
from martlet.gateway.v1 import artifact_service_pb2, artifact_service_pb2_grpc
from martlet_core.rpc.client import error_from_rpc
from martlet_gateway.settings import GatewaySettings

LIMIT = 10_000
ROUTES = (
    "/v1/fine_tuning/jobs",
    "/v1/martlet/jobs",
    "/v1/martlet/merge/jobs",
    "/v1/uploads",
    "/v1/uploads/upload-x/complete",
    "/v1/martlet/replicas/load",
    "/v1/chat/completions",
)


@pytest.fixture
async def settings(tmp_path: Path, trainer: Any) -> GatewaySettings:
    """Small limits, so that going over them is quick."""
    return GatewaySettings(
        http_port=0,
        grpc_address="127.0.0.1:0",
        trainer_address=trainer[1],
        internal_token="internal-token",
        upload_dir=tmp_path / "uploads",
        cache_dir=tmp_path / "cache",
        max_request_bytes=LIMIT,
        max_upload_bytes=LIMIT,
        lingering_seconds=0.2,
    )


async def chunks(count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield b" " * 1000


@pytest.mark.parametrize("content_type", ["application/json", "multipart/form-data; boundary=b"])
@pytest.mark.parametrize("chunked", [False, True], ids=["declared", "chunked"])
@pytest.mark.parametrize("route", ROUTES)
async def test_bodies_have_a_limit(gateway: Any, route: str, chunked: bool, content_type: str) -> None:
    content: Any = chunks(LIMIT // 1000 + 1) if chunked else b" " * (LIMIT + 1)
    answer = await gateway.http().post(route, content=content, headers={"content-type": content_type})
    assert answer.status_code == 413
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == ("payload_too_large", None)
    assert "MARTLET_MAX_REQUEST_BYTES" in error["message"]
    assert answer.headers["x-should-retry"] == "false"
    assert not gateway.trainer.calls


async def test_who_has_no_key_sends_no_body(gateway: Any) -> None:
    answer = await gateway.http().post(
        ROUTES[0], content=b" " * (LIMIT + 1), headers={"authorization": "", "content-type": "application/json"}
    )
    assert answer.status_code == 401


async def test_bodies_that_nobody_reads_are_not_read(gateway: Any) -> None:
    http = gateway.http()
    http.headers.pop("authorization")
    answer = await http.request("GET", "/healthz", content=chunks(LIMIT // 1000 + 1))
    assert answer.status_code == 200


@pytest.mark.parametrize("chunked", [False, True], ids=["declared", "chunked"])
async def test_bodies_within_the_limit_arrive_whole(gateway: Any, tools: Any, chunked: bool) -> None:
    body = orjson.dumps({"model": tools.base, "training_file": await gateway.upload(), "metadata": {"k": "v" * 500}})
    body = body.ljust(LIMIT)

    async def halves() -> AsyncIterator[bytes]:
        yield body[: LIMIT // 2]
        yield body[LIMIT // 2 :]

    answer = await gateway.http().post(
        ROUTES[0], content=halves() if chunked else body, headers={"content-type": "application/json"}
    )
    assert answer.status_code == 200, answer.text
    assert answer.json()["metadata"] == {"k": "v" * 500}


async def announce(gateway: Any, size_bytes: int, data: bytes = b"") -> Any:
    stub: Any = artifact_service_pb2_grpc.ArtifactServiceStub(gateway.channel())
    file = artifact_pb2.ArtifactFile(path="a.bin", sha256=hashlib.sha256(data).hexdigest(), size_bytes=size_bytes)
    artifact = artifact_pb2.Artifact(kind=artifact_pb2.ARTIFACT_KIND_ADAPTER, files=[file])
    request = artifact_service_pb2.CreateArtifactUploadRequest(artifact=artifact)
    return await stub.CreateArtifactUpload(request, metadata=gateway.metadata())


async def test_artifacts_have_a_limit(gateway: Any) -> None:
    assert (await announce(gateway, LIMIT)).puts
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await announce(gateway, LIMIT + 1)
    error = error_from_rpc(caught.value)
    assert (error.code, error.reason) == ("RESOURCE_EXHAUSTED", "PAYLOAD_TOO_LARGE")
    assert "MARTLET_MAX_UPLOAD_BYTES" in error.message


async def test_what_was_announced_can_be_committed_in_its_time_only(
    gateway: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = b"weights"
    upload = await announce(gateway, len(data), data)
    gateway.stores.objects.put(f"artifact-uploads/acme/{upload.name.removeprefix('artifactUploads/')}/000000", data)
    later = time.time() + gateway.settings.upload_ttl_seconds + 1
    stub: Any = artifact_service_pb2_grpc.ArtifactServiceStub(gateway.channel())
    request = artifact_service_pb2.CommitArtifactRequest(name=upload.name)
    with monkeypatch.context() as patched:
        patched.setattr("martlet_gateway.artifact_uploads.time.time", lambda: later)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.CommitArtifact(request, metadata=gateway.metadata())
    error = error_from_rpc(caught.value)
    assert (error.code, error.reason) == ("FAILED_PRECONDITION", "UPLOAD_EXPIRED")
    assert (await stub.CommitArtifact(request, metadata=gateway.metadata())).size_bytes == len(data)
