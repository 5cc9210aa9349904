"""The inference routes, with the stock client and echo replicas."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest
from martlet_core.artifacts.types import PublishedModel
from martlet_gateway.testing.replica import scripted
from martlet_inference.testing import wait_until

MESSAGES: Any = [{"role": "user", "content": "one two three"}]


async def test_answers_as_the_engine_does(gateway: Any, start_replica: Any, tools: Any) -> None:
    await start_replica()
    answer = await gateway.openai().chat.completions.with_raw_response.create(
        model=tools.base, messages=MESSAGES, max_tokens=4
    )
    parsed = answer.parse()
    assert parsed.choices[0].message.content == "one two three one"
    assert parsed.usage
    assert parsed.usage.completion_tokens == 4
    assert answer.headers["x-request-id"].startswith("req-")
    assert float(answer.headers["x-martlet-overhead-ms"]) >= 0


async def test_streams_every_event_and_ends(gateway: Any, start_replica: Any, tools: Any) -> None:
    await start_replica()
    stream = await gateway.openai().chat.completions.create(
        model=tools.base, messages=MESSAGES, max_tokens=5, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "one two three one two"
    assert chunks[-1].usage
    assert chunks[-1].usage.completion_tokens == 5
    metrics = (await gateway.http().get("/metrics")).text
    assert 'martlet_gateway_tokens_total{kind="completion"} 5.0' in metrics


async def test_stream_is_server_sent_events(gateway: Any, start_replica: Any, tools: Any) -> None:
    await start_replica()
    body = {"model": tools.base, "messages": MESSAGES, "max_tokens": 2, "stream": True}
    answer = await gateway.http().post("/v1/chat/completions", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = answer.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(event.startswith("data: {") for event in events[:-2])


async def test_completions_and_fields_travel_untouched(gateway: Any, start_replica: Any, tools: Any) -> None:
    await start_replica()
    answer = await gateway.openai().completions.create(model=tools.base, prompt="a b", max_tokens=3, n=2)
    assert [choice.text for choice in answer.choices] == ["a b a", "a b a"]


async def test_engine_errors_come_through(gateway: Any, start_replica: Any, tools: Any) -> None:
    await start_replica()
    with pytest.raises(openai.BadRequestError) as caught:
        await gateway.openai().chat.completions.create(model=tools.base, messages=MESSAGES, max_tokens=-1)
    assert caught.value.param == "max_tokens"


async def test_adapter_answers_without_a_load_call(gateway: Any, start_replica: Any, tools: Any) -> None:
    replica = await start_replica()
    name = f"ft:{tools.base}:acme:demo:abcd1234"
    tools.publish(gateway, replica, PublishedModel(name, "adapter", "acme", "a1", tools.base, lora_rank=16))
    answer = await gateway.openai().chat.completions.create(model=name, messages=MESSAGES, max_tokens=1)
    assert answer.model == name


async def test_adapter_of_another_tenant_is_unknown(gateway: Any, start_replica: Any, tools: Any) -> None:
    replica = await start_replica()
    name = f"ft:{tools.base}:acme:demo:abcd1234"
    tools.publish(gateway, replica, PublishedModel(name, "adapter", "acme", "a1", tools.base, lora_rank=16))
    await gateway.openai().chat.completions.create(model=name, messages=MESSAGES, max_tokens=1)  # now loaded
    with pytest.raises(openai.NotFoundError) as caught:
        await gateway.openai(gateway.other_key).chat.completions.create(model=name, messages=MESSAGES)
    assert caught.value.code == "model_not_found"
    assert name not in str(caught.value.body).replace(f"The model `{name}`", "")


async def test_rank_beyond_the_replica_is_refused_with_the_remedy(gateway: Any, start_replica: Any, tools: Any) -> None:
    replica = await start_replica(max_lora_rank=8)
    tools.publish(gateway, replica, PublishedModel("ft:x", "adapter", "acme", "a1", tools.base, lora_rank=16))
    with pytest.raises(openai.ConflictError) as caught:
        await gateway.openai().chat.completions.create(model="ft:x", messages=MESSAGES)
    assert caught.value.code == "lora_rank_too_large"
    assert "Merge it" in caught.value.message


async def test_client_that_goes_away_ends_the_generation(gateway: Any, start_replica: Any, tools: Any) -> None:
    replica = await start_replica(rate=20.0)
    stream = await gateway.openai().chat.completions.create(
        model=tools.base, messages=MESSAGES, max_tokens=10_000, stream=True
    )
    async for _ in stream:
        break
    await stream.close()
    await wait_until(lambda: replica.engine.aborted_calls)
    view = next(iter(gateway.server.context.replicas.snapshot.replicas.values()))
    assert view.outstanding == 0
    assert "martlet_gateway_client_disconnects_total 1.0" in (await gateway.http().get("/metrics")).text


async def test_client_that_goes_away_before_the_first_token(gateway: Any, start_replica: Any, tools: Any) -> None:
    replica = await start_replica(rate=0.1)
    body = {"model": tools.base, "messages": MESSAGES, "max_tokens": 1000}
    call = asyncio.create_task(gateway.http().post("/v1/chat/completions", json=body))
    view = next(iter(gateway.server.context.replicas.snapshot.replicas.values()))
    # Not only sent: a call that is cancelled on its way never reaches the engine, and nothing would be aborted.
    await wait_until(lambda: replica.engine.active_calls)
    assert view.outstanding == 1
    call.cancel()
    await wait_until(lambda: replica.engine.aborted_calls and not view.outstanding)


async def test_many_streams_at_once(gateway: Any, start_replica: Any, tools: Any) -> None:
    await start_replica()
    client = gateway.openai()

    async def one() -> int:
        stream = await client.chat.completions.create(model=tools.base, messages=MESSAGES, max_tokens=20, stream=True)
        return sum([bool(c.choices and c.choices[0].delta.content) async for c in stream])

    assert await asyncio.gather(*(one() for _ in range(100))) == [20] * 100


@pytest.mark.parametrize(
    "path",
    ["/v1/embeddings", "/v1/classify", "/classify", "/pooling", "/v1/score", "/v1/rerank", "/rerank", "/v2/rerank"],
)
async def test_a_chat_model_is_refused_on_other_routes(gateway: Any, start_replica: Any, tools: Any, path: str) -> None:
    await start_replica()
    answer = await gateway.http().post(path, json={"model": tools.base, "input": "text"})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == ("wrong_route", "model")
    assert "use /v1/chat/completions" in error["message"]


async def test_a_published_classifier_is_not_loaded_for_a_chat(gateway: Any, start_replica: Any, tools: Any) -> None:
    replica = await start_replica(accepts_placement=True)
    model = PublishedModel("ft:x", "whole", "acme", "a1", metadata={"task": "sequence_classification"})
    tools.publish(gateway, replica, model)
    with pytest.raises(openai.BadRequestError, match="use /v1/classify") as caught:
        await gateway.openai().chat.completions.create(model="ft:x", messages=MESSAGES)
    assert caught.value.code == "wrong_route"
    assert replica.engine.incarnation == 1, "its engine was not given another model"
    [listed] = [item async for item in gateway.openai().models.list() if item.id == "ft:x"]
    assert listed.martlet["task"] == "sequence_classification"
    base = await gateway.openai().models.retrieve(tools.base)
    assert base.martlet["task"] == "causal_lm"


async def test_a_published_classifier_answers_on_its_route(gateway: Any, tools: Any) -> None:
    async with scripted(gateway, "one", models=["ft:x"]) as replica:
        model = PublishedModel("ft:x", "whole", "acme", "a1", metadata={"task": "sequence_classification"})
        gateway.stores.models.publish(model)
        answer = await gateway.http().post("/v1/classify", json={"model": "ft:x", "input": "text"})
        assert (answer.status_code, answer.json(), replica.calls) == (200, {"from": "one"}, 1)


async def test_the_tokens_of_an_embedding_are_counted(gateway: Any, tools: Any) -> None:
    async with scripted(gateway, "one", models=[tools.base]) as replica:
        replica.answer = b'{"data": [], "usage": {"prompt_tokens": 7, "total_tokens": 7}}'
        await gateway.http().post("/v1/embeddings", json={"model": tools.base, "input": "text"})
    metrics = (await gateway.http().get("/metrics")).text
    assert 'martlet_gateway_tokens_total{kind="prompt"} 7.0' in metrics
    assert 'route="/v1/embeddings",status="200"} 1.0' in metrics
