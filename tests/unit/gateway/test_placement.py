"""Whole models: which replica takes one, who waits for it, and what happens when it was swapped out just now."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from martlet.gateway.v1 import replica_pb2
from martlet.inference.v1 import inference_pb2
from martlet_core.artifacts.types import PublishedModel
from martlet_core.errors import FailedPrecondition, MartletError, NotFound, Unavailable
from martlet_gateway.testing.replica import scripted
from martlet_inference.testing import wait_until

MESSAGES: Any = [{"role": "user", "content": "one two"}]
READY = inference_pb2.MODEL_STATE_READY


async def ask(gateway: Any, model: str = "base", **fields: Any) -> Any:
    return await gateway.http().post("/v1/chat/completions", json={"model": model, "messages": MESSAGES, **fields})


async def test_whole_model_is_placed_once_for_all_who_wait(gateway: Any) -> None:
    gateway.stores.models.publish(PublishedModel("merged-1", "whole", "acme", "a1"))
    async with scripted(gateway, "a", accepts_placement=True) as a:
        a.gate.clear()
        asked = [asyncio.create_task(ask(gateway, "merged-1")) for _ in range(3)]
        await wait_until(lambda: a.loads)
        a.gate.set()
        assert [(await task).json() for task in asked] == [{"from": "a"}] * 3
        assert a.loads == ["merged-1"]
        await gateway.server.context.replicas.refresh()  # the store still says "base"
        assert (await ask(gateway, "merged-1")).status_code == 200
        assert a.loads == ["merged-1"]


async def test_real_replica_comes_back_to_a_model_that_only_it_knows(
    gateway: Any, start_replica: Any, tools: Any, tmp_path: Any
) -> None:
    (tmp_path / "config.json").write_text("{}")
    replica = await start_replica("mine", model_dir=tmp_path)
    replica.source.models.clear()
    tools.publish(gateway, replica, PublishedModel("merged-1", "whole", "acme", "a1"))
    tools.publish(gateway, replica, PublishedModel("ft:x", "adapter", "acme", "a2", "mine", lora_rank=8))
    for model in ("ft:x", "merged-1", "ft:x", "merged-1", "mine"):
        answer = await gateway.openai().chat.completions.create(model=model, messages=MESSAGES, max_tokens=1)
        assert answer.model == model
    await gateway.http().post("/v1/martlet/replicas/unload", json={"model": "mine"})
    answer = await gateway.openai().chat.completions.create(model="ft:x", messages=MESSAGES, max_tokens=1)
    assert answer.model == "ft:x"


async def test_real_replica_swaps_its_engine(gateway: Any, start_replica: Any, tools: Any) -> None:
    replica = await start_replica()
    tools.publish(gateway, replica, PublishedModel("merged-1", "whole", "acme", "a1"))
    answer = await gateway.openai().chat.completions.create(model="merged-1", messages=MESSAGES, max_tokens=1)
    assert answer.model == "merged-1"
    back = await gateway.openai().chat.completions.create(model=tools.base, messages=MESSAGES, max_tokens=1)
    assert back.model == tools.base


async def test_a_name_that_a_later_attempt_took_is_loaded_anew(
    gateway: Any, start_replica: Any, tools: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = await start_replica()
    for artifact in ("a1", "a2"):
        replica.source.publish(PublishedModel("merged-1", "whole", "acme", artifact))
        if artifact == "a1":
            gateway.stores.models.publish(PublishedModel("merged-1", "whole", "acme", artifact))
        monkeypatch.setattr("martlet_inference.models.RECHECK_SECONDS", 0.0)
        answer = await gateway.openai().chat.completions.create(model="merged-1", messages=MESSAGES, max_tokens=1)
        assert answer.model == "merged-1"
        assert replica.replica.pool.whole.held.model.artifact_id == artifact


def gone(reason: str) -> MartletError:
    """What a replica says that gave its engine to another model since it last reported."""
    kind = NotFound if reason == "MODEL_NOT_LOADED" else FailedPrecondition
    return (Unavailable if reason == "MODEL_SWAPPING" else kind)("not here any more", reason=reason)


@pytest.mark.parametrize("reason", ["MODEL_NOT_LOADED", "BASE_MODEL_NOT_LOADED", "MODEL_SWAPPING"])
async def test_a_model_that_was_just_swapped_out_is_looked_for_elsewhere(gateway: Any, reason: str) -> None:
    gateway.stores.models.publish(PublishedModel("ft:x", "adapter", "acme", "a1", "base", lora_rank=8))
    model = "ft:x" if reason == "BASE_MODEL_NOT_LOADED" else "base"
    busy = inference_pb2.ReplicaLoad(active_requests=5)
    async with scripted(gateway, "a") as a, scripted(gateway, "b", load=busy) as b:
        a.errors = [gone(reason)]
        assert (await ask(gateway, model)).json() == {"from": "b"}
        assert (await ask(gateway, model)).json() == {"from": "b"}, "what it said is believed until it reports again"
        assert (a.calls, b.calls) == (1, 2)


@pytest.mark.parametrize("reason", ["MODEL_NOT_LOADED", "BASE_MODEL_NOT_LOADED", "MODEL_SWAPPING"])
async def test_a_model_that_was_just_swapped_out_is_placed_again(gateway: Any, reason: str) -> None:
    gateway.stores.models.publish(PublishedModel("ft:x", "adapter", "acme", "a1", "base", lora_rank=8))
    model = "ft:x" if reason == "BASE_MODEL_NOT_LOADED" else "base"
    async with scripted(gateway, "a", accepts_placement=True) as a:
        a.errors = [gone(reason)]
        assert (await ask(gateway, model)).json() == {"from": "a"}
        assert (a.loads, a.calls) == (["base"], 2)


async def test_a_replica_that_many_models_fight_for_is_503_with_retry_after(gateway: Any) -> None:
    gateway.stores.models.publish(PublishedModel("ft:x", "adapter", "acme", "a1", "base", lora_rank=8))
    async with scripted(gateway, "a", accepts_placement=True) as a:
        a.errors = [gone("BASE_MODEL_NOT_LOADED")] * 100
        answer = await ask(gateway, "ft:x")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_not_loaded")
        assert int(answer.headers["retry-after"]) >= 1
        assert "x-should-retry" not in answer.headers
        assert 2 <= a.calls <= 4


async def test_where_nothing_can_be_placed_a_swapped_out_model_is_503(gateway: Any) -> None:
    gateway.stores.models.publish(PublishedModel("ft:x", "adapter", "acme", "a1", "base", lora_rank=8))
    async with scripted(gateway, "a") as a:
        a.errors = [gone("BASE_MODEL_NOT_LOADED")]
        answer = await ask(gateway, "ft:x")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_not_loaded")
        assert answer.headers["retry-after"]
        assert "MARTLET_ACCEPTS_PLACEMENT" in answer.json()["error"]["message"]


async def test_without_any_replica_it_says_so_at_once(gateway: Any) -> None:
    gateway.stores.models.publish(PublishedModel("merged-1", "whole", "acme", "a1"))
    answer = await ask(gateway, "merged-1")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_not_loaded")
    assert int(answer.headers["retry-after"]) >= 1
    assert "MARTLET_GATEWAY_ADDRESS" in answer.json()["error"]["message"]


async def load(gateway: Any, model: str) -> Any:
    return await gateway.http().post("/v1/martlet/replicas/load", json={"model": model})


async def test_loading_by_hand_goes_round_a_swap_too_and_is_known_at_once(gateway: Any) -> None:
    gateway.stores.models.publish(PublishedModel("ft:x", "adapter", "acme", "a1", "base", lora_rank=8))
    busy = inference_pb2.ReplicaLoad(active_requests=5)
    async with scripted(gateway, "a") as a, scripted(gateway, "b", load=busy) as b:
        a.load_error = gone("BASE_MODEL_NOT_LOADED")
        assert (await load(gateway, "ft:x")).status_code == 200
        assert (a.loads, b.loads) == (["ft:x"], ["ft:x"])
        views = gateway.server.context.replicas.snapshot
        assert [view.address for view in views.by_model["ft:x"]] == [view.address for view in views.by_model["base"]]
        assert (await ask(gateway, "ft:x")).json() == {"from": "b"}


async def test_loading_a_whole_model_by_hand_takes_the_other_off_the_list(gateway: Any) -> None:
    gateway.stores.models.publish(PublishedModel("merged-1", "whole", "acme", "a1"))
    async with scripted(gateway, "a", accepts_placement=True) as a:
        assert (await load(gateway, "merged-1")).json()["name"] == "merged-1"
        assert set(gateway.server.context.replicas.snapshot.by_model) == {"merged-1"}
        assert (await ask(gateway, "merged-1")).status_code == 200
        assert set(a.loads) == {"merged-1"}


async def test_a_home_model_that_is_not_loaded_is_placed_where_it_is_at_home(gateway: Any) -> None:
    """Nobody published it and the trainer doesn't know it."""
    fields: dict[str, Any] = {"accepts_placement": True, "models": ["merged-1"]}
    async with scripted(gateway, "a", **fields) as a:
        missing = await ask(gateway, "mine")
        assert missing.status_code == 404
        async with scripted(gateway, "b", home_models=["mine"], **fields) as b:
            listed = (await gateway.http().get("/v1/models")).json()["data"]
            assert "mine" in [model["id"] for model in listed]
            assert (await ask(gateway, "mine")).json() == {"from": "b"}
            assert (a.loads, b.loads) == ([], ["mine"])


async def test_a_replica_without_a_model_is_asked_before_one_that_has_one(gateway: Any) -> None:
    gateway.stores.models.publish(PublishedModel("merged-1", "whole", "acme", "a1"))
    busy = inference_pb2.ReplicaLoad(active_requests=5)
    async with (
        scripted(gateway, "a", accepts_placement=True) as a,
        scripted(gateway, "b", accepts_placement=True, models=[], load=busy) as b,
    ):
        assert (await ask(gateway, "merged-1")).json() == {"from": "b"}
        assert (a.loads, b.loads) == ([], ["merged-1"])


async def test_a_pinned_replica_is_asked_last_and_its_refusal_is_not_the_end(gateway: Any) -> None:
    for name in ("merged-1", "merged-2"):
        gateway.stores.models.publish(PublishedModel(name, "whole", "acme", "a1"))
    busy = inference_pb2.ReplicaLoad(active_requests=5)
    async with (
        scripted(gateway, "a", accepts_placement=True) as a,
        scripted(gateway, "b", accepts_placement=True, load=busy) as b,
    ):
        a.load_error = FailedPrecondition("it is pinned", reason="MODEL_PINNED")
        assert (await ask(gateway, "merged-1")).json() == {"from": "b"}
        assert (a.loads, b.loads) == (["merged-1"], ["merged-1"])
        view = next(v for v in gateway.server.context.replicas.snapshot.replicas.values() if not v.reported)
        proto = replica_pb2.Replica()
        proto.CopyFrom(view.proto)
        proto.models[0].pinned = True
        await gateway.server.context.replicas.renew(proto)  # now it is known
        assert (await ask(gateway, "merged-2")).json() == {"from": "b"}
        assert a.loads == ["merged-1"]


async def test_a_base_that_no_replica_can_load_says_so(gateway: Any) -> None:
    gateway.stores.models.publish(PublishedModel("ft:x", "adapter", "acme", "a1", "nowhere", lora_rank=8))
    async with scripted(gateway, "a", accepts_placement=True) as a:
        a.load_error = NotFound("no such model", reason="MODEL_NOT_FOUND")
        answer = await ask(gateway, "ft:x")
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "base_model_not_available")
        assert "`nowhere`" in answer.json()["error"]["message"]
        assert "MARTLET_MODEL_DIR" in answer.json()["error"]["message"]


async def test_an_adapter_without_a_revision_runs_on_the_one_that_is_served(gateway: Any) -> None:
    for name, base in (("ft:any", "org/model"), ("ft:c2", "org/model@c2")):
        gateway.stores.models.publish(PublishedModel(name, "adapter", "acme", "a1", base, lora_rank=8))
    async with scripted(gateway, "a", models=["org/model@c1"]):
        assert (await ask(gateway, "ft:any")).json() == {"from": "a"}
        assert (await ask(gateway, "ft:c2")).status_code == 503
        assert (await ask(gateway, "org/model")).status_code == 404, "an alias is no name to ask for"


async def test_an_artifact_that_a_replica_serves_is_no_model_of_everyone(gateway: Any) -> None:
    gateway.stores.models.publish(PublishedModel("ft:x", "adapter", "acme", "a1", "artifacts/a9", lora_rank=8))
    async with scripted(gateway, "a", models=["artifacts/a9"]):
        assert (await ask(gateway, "ft:x")).json() == {"from": "a"}
        other = gateway.http(gateway.other_key)
        answer = await other.post("/v1/chat/completions", json={"model": "artifacts/a9", "messages": MESSAGES})
        assert answer.status_code == 404
        assert "artifacts/a9" not in (await other.get("/v1/models")).text
        assert "artifacts/a9" not in (await other.get("/v1/martlet/replicas")).text


async def test_an_adapter_that_must_be_merged_is_refused_before_anything_is_placed(gateway: Any) -> None:
    model = PublishedModel("ft:x", "adapter", "acme", "a1", "other", lora_rank=8, metadata={"use_dora": True})
    gateway.stores.models.publish(model)
    async with scripted(gateway, "a", accepts_placement=True) as a:
        answer = await ask(gateway, "ft:x")
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "adapter_needs_merge")
        assert "martlet merge ft:x" in answer.json()["error"]["message"]
        assert (a.loads, a.calls) == ([], 0)


async def test_placement_that_takes_too_long_is_503_with_retry_after(gateway: Any) -> None:
    gateway.stores.models.publish(PublishedModel("merged-1", "whole", "acme", "a1"))
    async with scripted(gateway, "a", accepts_placement=True) as a:
        a.gate.clear()
        started = time.monotonic()
        answer = await gateway.http().post(
            "/v1/chat/completions",
            json={"model": "merged-1", "messages": MESSAGES},
            headers={"x-stainless-read-timeout": "1.3"},
        )
        assert time.monotonic() - started < 5
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "model_not_loaded"
        assert int(answer.headers["retry-after"]) >= 1
        a.gate.set()


async def test_engine_on_its_way_is_waited_for(gateway: Any) -> None:
    async with scripted(gateway, "a", models=[]) as a:
        view = next(iter(gateway.server.context.replicas.snapshot.replicas.values()))
        proto = replica_pb2.Replica()
        proto.CopyFrom(view.proto)
        proto.ready = False
        proto.models.add(name="base", kind=inference_pb2.MODEL_KIND_WHOLE, state=inference_pb2.MODEL_STATE_LOADING)
        await gateway.server.context.replicas.renew(proto)
        asked = asyncio.create_task(ask(gateway))
        await wait_until(lambda: gateway.server.context.metrics.active._value.get() == 1)
        assert a.calls == 0
        proto.ready = True
        proto.models[0].state = READY
        await gateway.server.context.replicas.renew(proto)
        assert (await asked).json() == {"from": "a"}
