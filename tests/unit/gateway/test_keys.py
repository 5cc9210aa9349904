"""Keys: what they may do, and that asking the store about them neither holds up nor is held up by anything."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from martlet.gateway.v1 import artifact_service_pb2, artifact_service_pb2_grpc
from martlet.inference.v1 import inference_service_pb2 as service_pb
from martlet.inference.v1 import inference_service_pb2_grpc
from martlet_core.api_keys import OPERATOR, ApiKey, ApiKeyStore
from martlet_core.artifacts.types import PublishedModel
from martlet_core.errors import FailedPrecondition, InvalidArgument, Unauthenticated, Unavailable
from martlet_core.rpc.client import error_from_rpc
from martlet_core.service_tokens import make_service_token
from martlet_core.testing.object_store import MemoryObjectStore
from martlet_gateway.auth import Authenticator
from martlet_gateway.lookups import LookupThreads

UNLOAD = {"model": "ft:x"}


@pytest.mark.parametrize("route", ["load", "unload", "pin"])
async def test_replicas_are_changed_by_operators_only(gateway: Any, route: str) -> None:
    answer = await gateway.http(gateway.other_key).post(f"/v1/martlet/replicas/{route}", json=UNLOAD)
    assert answer.status_code == 403
    error = answer.json()["error"]
    assert (error["type"], error["code"]) == ("permission_error", "permission_denied")
    assert "martlet keys create --operator" in error["message"]
    answer = await gateway.http().post(f"/v1/martlet/replicas/{route}", json=UNLOAD)
    assert answer.status_code == 404, "an operator gets to hear about the model"
    assert (await gateway.http(gateway.other_key).get("/v1/martlet/replicas")).status_code == 200


@pytest.mark.parametrize("method", ["LoadModel", "UnloadModel", "PinModel"])
async def test_replicas_are_changed_by_operators_only_over_grpc(gateway: Any, method: str) -> None:
    stub: Any = inference_service_pb2_grpc.InferenceServiceStub(gateway.channel())
    request = getattr(service_pb, f"{method}Request")(model="ft:x")
    codes = []
    for key in (gateway.other_key, gateway.key):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await getattr(stub, method)(request, metadata=gateway.metadata(key))
        codes.append((error_from_rpc(caught.value).code, error_from_rpc(caught.value).reason))
    assert codes == [("PERMISSION_DENIED", "PERMISSION_DENIED"), ("NOT_FOUND", "MODEL_NOT_FOUND")]


class WatchedStore:
    """Counts what the gateway reads of keys and models, and lets it fail."""

    def __init__(self, gateway: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reads: list[str] = []
        self.error: Exception | None = None
        read = gateway.stores.objects.get

        def get(key: str) -> bytes:
            if key.startswith(("keys/", "models/")):
                self.reads.append(key)
                if self.error is not None:
                    raise self.error
            return read(key)

        monkeypatch.setattr(gateway.stores.objects, "get", get)

    def count(self, prefix: str) -> int:
        return sum(key.startswith(prefix) for key in self.reads)


async def test_keys_don_t_queue_behind_files(gateway: Any) -> None:
    gateway.stores.models.publish(PublishedModel("ft:a", "adapter", "acme", "a1", "b", lora_rank=8))
    loop, busy = asyncio.get_running_loop(), threading.Event()
    stores = [loop.run_in_executor(None, busy.wait, 20) for _ in range(64)]  # as if so many files were being stored
    try:
        assert (await gateway.http().get("/v1/models/ft:a", timeout=5)).status_code == 200
    finally:
        busy.set()
        await asyncio.gather(*stores)


async def test_a_store_that_is_away_locks_nobody_out(gateway: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who was here lately goes on; who wasn't is told to come again."""
    gateway.stores.models.publish(PublishedModel("ft:a", "adapter", "acme", "a1", "b", lora_rank=8))
    http = gateway.http()
    assert (await http.get("/v1/models/ft:a")).status_code == 200
    store = WatchedStore(gateway, monkeypatch)
    store.error = Unavailable("The object store doesn't answer.", retry_after_seconds=1.0)
    deadline = asyncio.get_running_loop().time() + 10
    while store.count("keys/") < 3 or store.count("models/") < 2:  # far beyond what is believed without asking
        assert (await http.get("/v1/models/ft:a")).status_code == 200
        assert asyncio.get_running_loop().time() < deadline
    answer = await gateway.http(gateway.other_key).get("/v1/models")
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    store.error = None
    assert (await gateway.http(gateway.other_key).get("/v1/models")).status_code == 200


def test_scopes_of_keys() -> None:
    objects = MemoryObjectStore()
    keys = ApiKeyStore(objects)
    secret, key = keys.create("acme")
    assert key.scope == "user"
    assert keys.register(secret, "acme", scope=OPERATOR).scope == "operator"
    assert keys.verify(secret) == ApiKey(key.id, "acme", hint=key.hint, create_time=key.create_time, scope="operator")
    with pytest.raises(InvalidArgument, match="scope"):
        keys.create("acme", scope="root")
    with pytest.raises(FailedPrecondition):
        keys.register(secret, "globex", scope=OPERATOR)


def test_keys_of_earlier_versions_are_users() -> None:
    objects = MemoryObjectStore()
    keys = ApiKeyStore(objects)
    secret, _ = keys.create("acme")
    path = objects.list("keys/")[0]
    objects.put(path, objects.get(path).replace(b', "scope": "user"', b""))
    assert keys.verify(secret).scope == "user"


async def test_our_own_services_ask_models_for_a_tenant(gateway: Any, tools: Any, start_replica: Any) -> None:
    await start_replica()
    gateway.stores.models.publish(PublishedModel("ft:a", "adapter", "acme", "a1", "b", lora_rank=8))
    body = {"model": tools.base, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 1}
    http = gateway.http(make_service_token(tools.token, "acme"))
    assert (await http.post("/v1/chat/completions", json=body)).json()["choices"][0]["message"]["content"] == "hello"
    assert (await http.get("/v1/models/ft:a")).status_code == 200
    other = gateway.http(make_service_token(tools.token, "globex"))
    assert (await other.get("/v1/models/ft:a")).status_code == 404, "another tenant's model doesn't exist"


@pytest.mark.parametrize(
    "token",
    [
        make_service_token("another token", "acme"),
        make_service_token("internal-token", "acme", -1),
        make_service_token("internal-token", "acme") + "x",
        make_service_token("internal-token", ""),
        "internal-token",
        "mst-",
    ],
)
async def test_a_wrong_service_token_is_nobodys(gateway: Any, token: str) -> None:
    answer = await gateway.http(token).get("/v1/models/ft:a")
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/models"),
        ("DELETE", "/v1/models/ft:a"),
        ("GET", "/v1/files"),
        ("POST", "/v1/files"),
        ("POST", "/v1/fine_tuning/jobs"),
        ("GET", "/v1/martlet/replicas"),
        ("POST", "/v1/martlet/replicas/load"),
    ],
)
async def test_our_own_services_may_do_nothing_else(gateway: Any, tools: Any, method: str, path: str) -> None:
    token = make_service_token(tools.token, "acme")
    assert (await gateway.http(token).request(method, path, json={})).status_code == 401


async def test_a_service_token_is_no_key_for_grpc(gateway: Any, tools: Any) -> None:
    stub: Any = inference_service_pb2_grpc.InferenceServiceStub(gateway.channel())
    metadata = gateway.metadata(make_service_token(tools.token, "acme"))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.LoadModel(service_pb.LoadModelRequest(model="ft:x"), metadata=metadata)
    assert error_from_rpc(caught.value).code == "UNAUTHENTICATED"


def of_stage(token: str, *tenant: str) -> tuple[tuple[str, str], ...]:
    return (("x-martlet-internal-token", token), *(("x-martlet-tenant", name) for name in tenant))


async def test_a_stage_reads_artifacts_of_the_tenant_it_names(gateway: Any, tools: Any, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("{}")
    artifact = gateway.stores.artifacts.put_directory(tmp_path, kind="dataset", tenant="acme")
    stub: Any = artifact_service_pb2_grpc.ArtifactServiceStub(gateway.channel())
    request = artifact_service_pb2.GetArtifactRequest(name=f"artifacts/{artifact.id}")
    found = await stub.GetArtifact(request, metadata=of_stage(tools.token, "acme"))
    assert [file.path for file in found.files] == ["rows.jsonl"]
    for metadata, code in (
        (of_stage(tools.token, "globex"), "NOT_FOUND"),
        (of_stage("another token", "acme"), "UNAUTHENTICATED"),
        (of_stage("", "acme"), "UNAUTHENTICATED"),
        (of_stage(tools.token), "INVALID_ARGUMENT"),
        (of_stage(tools.token, "no tenant!"), "INVALID_ARGUMENT"),
        ((*of_stage(tools.token, "acme"), *gateway.metadata(gateway.other_key)), "NOT_FOUND"),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetArtifact(request, metadata=metadata)
        assert caught.value.code().name == code, metadata


async def test_a_stage_may_do_nothing_else_over_grpc(gateway: Any, tools: Any) -> None:
    artifacts: Any = artifact_service_pb2_grpc.ArtifactServiceStub(gateway.channel())
    inference: Any = inference_service_pb2_grpc.InferenceServiceStub(gateway.channel())
    for method, request in (
        (artifacts.ListArtifacts, artifact_service_pb2.ListArtifactsRequest()),
        (artifacts.DeleteArtifact, artifact_service_pb2.DeleteArtifactRequest(name="artifacts/a")),
        (inference.LoadModel, service_pb.LoadModelRequest(model="ft:x")),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await method(request, metadata=of_stage(tools.token, "acme"))
        assert caught.value.code().name == "UNAUTHENTICATED"


async def test_without_an_internal_token_nobody_is_a_stage() -> None:
    threads = LookupThreads()
    auth = Authenticator(lambda secret: None, threads, internal_token="")
    metadata = {"x-martlet-internal-token": "", "x-martlet-tenant": "acme"}
    with pytest.raises(Unauthenticated):
        await auth.grpc_tenant("/martlet.gateway.v1.ArtifactService/GetArtifact", metadata)
