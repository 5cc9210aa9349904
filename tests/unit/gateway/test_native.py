"""/v1/models, Martlet's own routes, and the description of the API."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openai
import pytest
from martlet.common.v1 import job_pb2
from martlet_core.artifacts.types import PublishedModel
from martlet_gateway.testing.replica import scripted


async def test_base_models_are_registered_by_the_tenant_that_asks(gateway: Any, tools: Any) -> None:
    async with gateway.http() as acme, gateway.http(gateway.other_key) as other:
        asked = {"name": "mine", "source": "org/model", "revision": "v1", "chat_template": "chatml"}
        made = (await acme.post("/v1/martlet/models", json=asked)).json()
        assert made == {
            "id": "mine",
            "object": "model",
            "name": "mine",
            "source": "org/model@v1",
            "chat_template": "chatml",
        }
        assert (await acme.get("/v1/martlet/models")).json()["data"] == [made]
        assert (await acme.get("/v1/martlet/models/mine")).json() == made
        assert (await other.get("/v1/martlet/models")).json()["data"] == []
        assert (await other.delete("/v1/martlet/models/mine")).status_code == 404
        taken = await acme.post("/v1/martlet/models", json={"name": tools.base, "source": "org/model@v1"})
        assert (taken.status_code, taken.json()["error"]["code"]) == (409, "name_taken")
        assert (await acme.delete("/v1/martlet/models/mine")).json()["deleted"]
        assert (await acme.get("/v1/martlet/models/mine")).status_code == 404


async def test_models_are_listed_and_read_with_slashes(gateway: Any, start_replica: Any, tools: Any) -> None:
    await start_replica()
    name = "ft:org/base:acme::12345678"
    gateway.stores.models.publish(
        PublishedModel(name, "adapter", "acme", "a1", tools.base, 8, "j1", create_time=1700000000.0)
    )
    client = gateway.openai()
    models = {model.id: model async for model in client.models.list()}
    assert list(models) == [name, tools.base, "qwen-tiny"]
    assert models[name].martlet["kind"] == "adapter"
    assert models[name].martlet["answers_now"]
    assert not models[name].martlet["loaded"]
    assert models[tools.base].martlet["loaded"]
    assert models["qwen-tiny"].martlet["license"] == "Apache-2.0"
    one = await client.models.retrieve(name)
    assert (one.id, one.created, one.owned_by) == (name, 1700000000, "acme")
    raw = await gateway.http().get(f"/v1/models/{name}")
    assert raw.json()["id"] == name
    with pytest.raises(openai.NotFoundError):
        await gateway.openai(gateway.other_key).models.delete(name)
    assert (await client.models.delete(name)).deleted
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve(name)


async def test_a_model_names_the_replicas_that_have_it_or_may_be_given_it(
    gateway: Any, start_replica: Any, tools: Any
) -> None:
    await start_replica()
    [view] = gateway.server.context.replicas.snapshot.replicas.values()
    gateway.stores.models.publish(PublishedModel("merged-1", "whole", "acme", "a1"))
    gateway.stores.models.publish(PublishedModel("ft:x", "adapter", "acme", "a2", tools.base, lora_rank=8))

    async def shown(name: str) -> Any:
        return (await gateway.http().get(f"/v1/models/{name}")).json()["martlet"]["replicas"]

    mine = {"name": view.proto.name, "engine": "echo"}
    assert await shown(tools.base) == [mine | {"loaded": True}]
    assert await shown("ft:x") == await shown("merged-1") == [mine | {"loaded": False}]
    async with scripted(gateway, "b", models=["merged-1"]):
        replicas = await shown("merged-1")
        assert [(entry["engine"], entry["loaded"]) for entry in replicas] == [("script", True), ("echo", False)]
        assert await shown("ft:x") == [mine | {"loaded": False}], "the other keeps the model that it has"


async def test_training_jobs_field_by_field(gateway: Any, tools: Any) -> None:
    http = gateway.http()
    spec = {"base_model": tools.base, "training_dataset": "artifacts/d1", "tuner": {"lora_rank": 4}}
    made = (await http.post("/v1/martlet/jobs", json={"spec": spec, "display_name": "x", "labels": {"a": "b"}})).json()
    assert made["name"] == f"trainingJobs/{made['id']}"
    assert made["state"] == "QUEUED"
    assert made["spec"]["tuner"]["lora_rank"] == 4
    assert made["labels"] == {"a": "b"}
    flat = (await http.post("/v1/martlet/jobs", json=spec)).json()
    listed = (await http.get("/v1/martlet/jobs", params={"limit": 1})).json()
    assert ([job["id"] for job in listed["data"]], listed["has_more"]) == ([flat["id"]], True)
    rest = (await http.get("/v1/martlet/jobs", params={"after": listed["last_id"]})).json()
    assert [job["id"] for job in rest["data"]] == [made["id"]]
    assert (await http.get(f"/v1/martlet/jobs/{made['id']}")).json() == made
    assert (await http.get(f"/v1/martlet/jobs/ftjob-{made['id']}")).json() == made
    for verb, state in (("pause", "PAUSED"), ("resume", "QUEUED"), ("cancel", "CANCELLED")):
        assert (await http.post(f"/v1/martlet/jobs/{made['id']}/{verb}")).json()["state"] == state
    final = (await http.get("/v1/martlet/jobs", params={"state": "cancelled"})).json()
    assert [job["id"] for job in final["data"]] == [made["id"]]


async def test_events_and_watch(gateway: Any, tools: Any) -> None:
    http = gateway.http()
    made = (
        await http.post("/v1/martlet/jobs", json={"base_model": tools.base, "training_dataset": "artifacts/d"})
    ).json()
    gateway.trainer.say(
        made["id"],
        job_pb2.JobEvent(message="a", level=job_pb2.EVENT_LEVEL_INFO),
        job_pb2.JobEvent(message="b", metrics=job_pb2.MetricsReport(step=1, values={"loss": 0.5})),
    )
    url = f"/v1/martlet/jobs/{made['id']}"
    events = (await http.get(f"{url}/events")).json()["data"]
    assert [event["message"] for event in events] == ["a", "b"]
    assert events[1]["metrics"] == {"step": 1, "values": {"loss": 0.5}}
    behind = (await http.get(f"{url}/events", params={"after": events[0]["id"]})).json()["data"]
    assert behind == events[1:]
    blocks = (await http.get(f"{url}/watch")).text.strip().split("\n\n")
    assert [json.loads(block.split("data: ", 1)[1])["id"] for block in blocks[:-1]] == [e["id"] for e in events]
    assert blocks[-1] == "data: [DONE]"
    resumed = await http.get(f"{url}/watch", headers={"last-event-id": events[0]["id"]})
    assert resumed.text.count("data: {") == 1


async def test_merge_jobs(gateway: Any) -> None:
    http = gateway.http()
    made = (await http.post("/v1/martlet/merge/jobs", json={"adapter": "ft:x", "precision": "float32"})).json()
    assert made["spec"]["adapter"] == "ft:x"
    assert (await http.get(f"/v1/martlet/merge/jobs/{made['id']}")).json() == made
    assert [job["id"] for job in (await http.get("/v1/martlet/merge/jobs")).json()["data"]] == [made["id"]]
    assert "merging" in (await http.get(f"/v1/martlet/merge/jobs/{made['id']}/watch")).text
    assert (await http.post(f"/v1/martlet/merge/jobs/{made['id']}/cancel")).json()["state"] == "CANCELLED"
    missing = await http.get("/v1/martlet/merge/jobs/nothing")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "job_not_found")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"spec": {"tuner": {"lora_rnk": 1}}}, "spec.tuner.lora_rnk"),
        ({"spec": {"seed": "x"}}, "spec.seed"),
        ({"spec": {"hyperparameters": {"epoch_count": True}}}, "spec.hyperparameters.epoch_count"),
        ({"spec": {"resources": {"device_count": 1.5}}}, "spec.resources.device_count"),
        ({"spec": {"data": {"on_long_rows": "drop"}}}, "spec.data.on_long_rows"),
        ({"nonsense": 1}, "nonsense"),
        ({"spec": {}, "base_model": "x"}, "base_model"),
    ],
)
async def test_wrong_fields_are_named(gateway: Any, body: dict[str, Any], param: str) -> None:
    answer = await gateway.http().post("/v1/martlet/jobs", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


async def test_artifacts(gateway: Any, tmp_path: Path) -> None:
    directory = tmp_path / "adapter"
    (directory / "sub").mkdir(parents=True)
    (directory / "adapter_config.json").write_bytes(b"{}")
    (directory / "sub" / "weights.bin").write_bytes(b"w" * 100_000)
    artifact = gateway.stores.artifacts.put_directory(directory, kind="adapter", tenant="acme", metadata={"rank": 8})
    http = gateway.http()
    listed = (await http.get("/v1/martlet/artifacts", params={"kind": "adapter"})).json()
    assert [item["id"] for item in listed["data"]] == [artifact.id]
    shown = (await http.get(f"/v1/martlet/artifacts/{artifact.id}")).json()
    assert shown["size_bytes"] == 100_002
    assert [file["path"] for file in shown["files"]] == ["adapter_config.json", "sub/weights.bin"]
    content = await http.get(f"/v1/martlet/artifacts/{artifact.id}/files/sub/weights.bin")
    assert content.content == b"w" * 100_000
    assert content.headers["x-martlet-sha256"] == shown["files"][1]["sha256"]
    other = gateway.http(gateway.other_key)
    for path in ("", "/files/adapter_config.json"):
        assert (await other.get(f"/v1/martlet/artifacts/{artifact.id}{path}")).status_code == 404
    gateway.stores.models.publish(PublishedModel("ft:x", "adapter", "acme", artifact.id, "b", lora_rank=8))
    refused = await http.delete(f"/v1/martlet/artifacts/{artifact.id}")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "artifact_in_use")
    gateway.stores.models.delete("ft:x", tenant="acme")
    assert (await http.delete(f"/v1/martlet/artifacts/{artifact.id}")).json()["deleted"]


async def test_replicas_are_shown_loaded_and_pinned(gateway: Any, start_replica: Any, tools: Any) -> None:
    replica = await start_replica()
    tools.publish(gateway, replica, PublishedModel("ft:x", "adapter", "acme", "a1", tools.base, lora_rank=8))
    http = gateway.http()
    assert (await http.post("/v1/martlet/replicas/load", json={"model": "ft:x"})).json()["name"] == "ft:x"
    await tools.until(gateway, lambda views: any("ft:x" in view.adapters for view in views))
    (shown,) = (await http.get("/v1/martlet/replicas")).json()["data"]
    assert shown["address"] == replica.address
    assert {model["name"] for model in shown["models"]} == {"ft:x", tools.base}
    (others,) = (await gateway.http(gateway.other_key).get("/v1/martlet/replicas")).json()["data"]
    assert {model["name"] for model in others["models"]} == {tools.base}
    assert (await http.post("/v1/martlet/replicas/pin", json={"model": "ft:x"})).json()["replicas"] == 1
    pinned = await http.post("/v1/martlet/replicas/unload", json={"model": "ft:x"})
    assert pinned.status_code == 409
    await http.post("/v1/martlet/replicas/pin", json={"model": "ft:x", "pinned": False})
    assert (await http.post("/v1/martlet/replicas/unload", json={"model": "ft:x"})).status_code == 200
    missing = await http.post("/v1/martlet/replicas/unload", json={"model": "qwen-tiny"})
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_loaded")


async def test_health_says_what_is_wrong(gateway: Any) -> None:
    http = gateway.http()
    assert (await http.get("/healthz")).json() == {"status": "ok"}
    ready = (await http.get("/readyz")).json()
    assert ready["status"] == "ready"
    assert ready["checks"]["trainer"] == "ok"
    assert ready["checks"]["replicas"] == {"known": 0, "ready": 0}


async def test_openapi_names_every_route(gateway: Any) -> None:
    schema = (await gateway.http().get("/openapi.json")).json()
    for path in (
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/files",
        "/v1/uploads/{upload_id}/parts",
        "/v1/fine_tuning/jobs",
        "/v1/fine_tuning/jobs/{fine_tuning_job_id}/events",
        "/v1/models/{model}",
        "/v1/martlet/jobs",
        "/v1/martlet/merge/jobs/{job_id}/cancel",
        "/v1/martlet/artifacts/{artifact_id}/files/{path}",
        "/v1/martlet/replicas/load",
        "/readyz",
    ):
        assert path in schema["paths"], path


async def test_metrics_count_by_route_not_by_path(gateway: Any) -> None:
    http = gateway.http()
    for _ in range(2):
        await http.get("/v1/fine_tuning/jobs/ftjob-nothing")
    text = (await http.get("/metrics")).text
    assert 'route="/v1/fine_tuning/jobs/{fine_tuning_job_id}",status="404"} 2.0' in text
    assert "ftjob-nothing" not in text


async def test_request_id_of_the_client_runs_through(gateway: Any) -> None:
    answer = await gateway.http().get("/v1/fine_tuning/jobs", headers={"x-request-id": "trace-1"})
    assert answer.headers["x-request-id"] == "trace-1"
    assert gateway.trainer.calls[-1].request_id == "trace-1"
    odd = await gateway.http().get("/v1/fine_tuning/jobs", headers={"x-request-id": "no spaces allowed"})
    assert odd.headers["x-request-id"].startswith("req-")
