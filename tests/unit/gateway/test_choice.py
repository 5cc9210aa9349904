"""In which order replicas are asked: by the adapter and the prompt's beginning that they have, and by their work."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from martlet.gateway.v1 import replica_pb2
from martlet.inference.v1 import inference_pb2
from martlet_core.artifacts.types import PublishedModel
from martlet_gateway.choice import SLACK, Choice
from martlet_gateway.prefixes import BLOCK_BYTES, MAX_BLOCKS, PrefixMemory, Prompt
from martlet_gateway.replicas import ReplicaView, Snapshot
from martlet_gateway.testing.replica import scripted

BASE = PublishedModel("base", "whole", "acme", "", "")
ADAPTER = PublishedModel("ft:x", "adapter", "acme", "a1", "base", lora_rank=8)
CHAT = inference_pb2.OPEN_AI_ROUTE_CHAT_COMPLETIONS
COMPLETIONS = inference_pb2.OPEN_AI_ROUTE_COMPLETIONS


def replica(name: str, adapters: Sequence[str] = (), max_requests: int = 0) -> ReplicaView:
    proto = replica_pb2.Replica(address=f"{name}:1", ready=True, max_lora_rank=16)
    proto.load.max_requests = max_requests
    proto.models.add(name="base", kind=inference_pb2.MODEL_KIND_WHOLE, state=inference_pb2.MODEL_STATE_READY)
    for adapter in adapters:
        proto.models.add(name=adapter, kind=inference_pb2.MODEL_KIND_ADAPTER, state=inference_pb2.MODEL_STATE_READY)
    view = ReplicaView(name, proto.address, replica_pb2.Replica())
    view.refresh(proto)
    return view


def snapshot(*views: ReplicaView) -> Snapshot:
    names = {name for view in views for name in (*view.whole, *view.adapters)}
    by_model = {name: tuple(v for v in views if name in (*v.whole, *v.adapters)) for name in names}
    return Snapshot({view.id: view for view in views}, by_model)


def chat(*contents: str, model: str = "base", route: Any = CHAT, **fields: Any) -> Prompt:
    messages = [{"role": "user", "content": content} for content in contents]
    body = json.dumps({**fields, "model": model, "messages": messages})
    return Prompt(inference_pb2.CallOpenAIRequest(route=route, model=model, body=body.encode()))


def text(seed: int, length: int = 2000) -> str:
    return "".join(random.Random(seed).choices("abcdefgh ", k=length))


def first(choice: Choice, views: Sequence[ReplicaView], prompt: Prompt | None, model: PublishedModel = BASE) -> str:
    return choice.order(snapshot(*views), model, prompt)[0].id


def test_what_begins_alike_goes_where_its_beginning_went() -> None:
    choice, views = Choice(), [replica("a"), replica("b"), replica("c")]
    by_id = {view.id: view for view in views}
    went: dict[int, set[str]] = {}
    for turn in range(5):
        for topic in range(6):
            prompt = chat(text(topic), f"question {turn}")
            name = first(choice, views, prompt)
            choice.note(by_id[name], prompt)
            went.setdefault(topic, set()).add(name)
    assert all(len(names) == 1 for names in went.values()), "each topic stays on one replica"
    spread = Counter(name for names in went.values() for name in names)
    assert sorted(spread.values()) == [2, 2, 2], "idle replicas share the topics evenly"


def test_longest_beginning_wins() -> None:
    choice, a, b = Choice(), replica("a"), replica("b")
    choice.note(a, chat(text(1)))
    choice.note(b, chat(text(1), text(2)))
    assert first(choice, [a, b], chat(text(1), text(2), "more")) == "b"


def test_much_busier_replica_loses_what_it_knows() -> None:
    choice, a, b = Choice(), replica("a"), replica("b")
    prompt = chat(text(1))
    choice.note(a, prompt)
    b.outstanding = 3
    a.outstanding = 2 * 3 + SLACK
    assert first(choice, [a, b], prompt) == "a"
    a.outstanding += 1
    assert first(choice, [a, b], prompt) == "b"


def test_popular_adapter_spreads_when_its_holder_is_busy() -> None:
    choice, a, b = Choice(), replica("a", ["ft:x"]), replica("b")
    a.outstanding = SLACK
    assert first(choice, [a, b], None, ADAPTER) == "a"
    a.outstanding += 1
    assert first(choice, [a, b], None, ADAPTER) == "b"


def test_new_adapter_goes_where_fewest_are() -> None:
    views = [replica("a", ["ft:1", "ft:2"]), replica("b", ["ft:3"])]
    assert first(Choice(), views, None, ADAPTER) == "b"


def test_short_common_beginning_does_not_keep_a_request_from_an_idle_replica() -> None:
    choice, a, b = Choice(), replica("a"), replica("b")
    choice.note(a, chat(text(1, 300)))
    a.outstanding = 1
    assert first(choice, [a, b], chat(text(1, 300), text(2, 8000))) == "b"


def test_full_and_silent_replicas_come_last_whatever_they_know() -> None:
    choice, a, b = Choice(), replica("a", max_requests=2), replica("b")
    prompt = chat(text(1))
    choice.note(a, prompt)
    a.outstanding = 2
    assert first(choice, [a, b], prompt) == "b"
    a.outstanding, a.avoid_until = 0, float("inf")
    assert first(choice, [a, b], prompt) == "b"


def test_models_do_not_share_beginnings() -> None:
    assert not set(chat(text(1)).blocks) & set(chat(text(1), model="ft:x").blocks)


def test_fields_beside_the_prompt_do_not_matter_and_tools_do() -> None:
    plain = chat(text(1)).blocks
    assert chat(text(1), temperature=0.3, seed=7).blocks == plain
    tools = [{"type": "function", "function": {"name": "f", "description": text(3)}}]
    assert not set(chat(text(1), tools=tools).blocks) & set(plain)


@pytest.mark.parametrize(
    "request_",
    [
        inference_pb2.CallOpenAIRequest(route=COMPLETIONS, model="base", body=json.dumps({"prompt": text(1)}).encode()),
        inference_pb2.GenerateRequest(model="base", prompt=text(1)),
        inference_pb2.GenerateRequest(
            model="base", conversation={"messages": [{"role": "user", "content": text(1)}, {"role": "assistant"}]}
        ),
        inference_pb2.CallOpenAIRequest(
            route=COMPLETIONS, model="base", body=json.dumps({"prompt": list(range(900))}).encode()
        ),
    ],
)
def test_every_kind_of_prompt_has_blocks(request_: Any) -> None:
    assert len(Prompt(request_).blocks) >= 2000 // BLOCK_BYTES


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"messages": 3}', b"{}"])
def test_malformed_bodies_have_none(body: bytes) -> None:
    assert list(Prompt(inference_pb2.CallOpenAIRequest(route=CHAT, model="base", body=body)).blocks) == []


def test_embeddings_have_none() -> None:
    assert list(chat(text(1), route=inference_pb2.OPEN_AI_ROUTE_EMBEDDINGS).blocks) == []


def test_long_prompts_are_looked_at_in_part() -> None:
    assert len(chat(text(1, BLOCK_BYTES * (MAX_BLOCKS + 50))).blocks) == MAX_BLOCKS


def test_memory_is_bounded_and_keeps_beginnings_longest() -> None:
    memory = PrefixMemory(capacity=10)
    memory.add([1, 2, 3, 4, 5, 6])
    memory.add([11, 12, 13, 14, 15, 16])
    assert len(memory) == 10
    assert memory.matched([11, 12, 13, 14, 15, 16]) == 6
    assert memory.matched([1, 2, 3, 4, 5, 6]) == 4


def test_another_model_on_a_replica_ends_what_was_remembered() -> None:
    choice, a = Choice(), replica("a")
    choice.note(a, chat(text(1)))
    assert len(a.prefixes) > 0
    proto = replica_pb2.Replica()
    proto.CopyFrom(a.proto)
    proto.models[0].name = "other"
    a.refresh(proto)
    assert len(a.prefixes) == 0


def test_least_busy_looks_at_no_prompt() -> None:
    choice, a, b = Choice("least-busy"), replica("a"), replica("b")
    choice.note(a, chat(text(1)))
    a.outstanding = 1
    assert first(choice, [a, b], chat(text(1))) == "b"


def test_round_robin_takes_turns() -> None:
    choice, views = Choice("round-robin"), [replica("a", ["ft:x"]), replica("b"), replica("c")]
    asked = [first(choice, views, None, ADAPTER) for _ in range(6)]
    assert Counter(asked) == {"a": 2, "b": 2, "c": 2}


async def test_gateway_sends_a_conversation_back_to_its_replica(gateway: Any) -> None:
    """The whole way: what was sent is remembered, and an idle replica is not preferred to one that knows the beginning."""
    async with scripted(gateway, "a") as a, scripted(gateway, "b") as b:
        for turn in range(3):
            for topic in range(2):
                messages = [{"role": "system", "content": text(topic)}, {"role": "user", "content": f"{turn}"}]
                answer = await gateway.http().post("/v1/chat/completions", json={"model": "base", "messages": messages})
                assert answer.status_code == 200
        assert (a.calls, b.calls) == (3, 3)
