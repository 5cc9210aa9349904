"""The echo engine: known answers, at a known rate, in OpenAI's shape, in process and over HTTP."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from martlet_inference.engines.base import EngineCall, Route, WholeModel
from martlet_inference.engines.echo import EchoEngine
from martlet_inference.engines.echo_http import echo_app
from martlet_inference.testing import wait_until


def body(model: str = "m", text: str = "one two", **fields: Any) -> bytes:
    return json.dumps({"model": model, "messages": [{"role": "user", "content": text}], **fields}).encode()


async def answer(engine: EchoEngine, request: bytes, *, stream: bool = False, route: Route = Route.CHAT_COMPLETIONS):
    async with engine.call(EngineCall(route, request, stream)) as reply:
        return reply.http_status, [json.loads(chunk) async for chunk in reply.chunks]


@pytest.fixture
async def echo() -> EchoEngine:
    engine = EchoEngine(default_tokens=3)
    await engine.start(WholeModel("m", "m"))
    return engine


async def test_a_chat_answer_repeats_the_words_and_counts_them(echo: EchoEngine) -> None:
    status, [whole] = await answer(echo, body(max_tokens=5))
    assert status == 200
    assert whole["object"] == "chat.completion"
    assert whole["choices"][0]["message"] == {"role": "assistant", "content": "one two one two one"}
    assert whole["choices"][0]["finish_reason"] == "length"
    assert whole["usage"] == {"prompt_tokens": 2, "completion_tokens": 5, "total_tokens": 7}


async def test_a_stream_carries_the_same_text_in_one_event_a_token(echo: EchoEngine) -> None:
    request = body(text='say "hi"\u2028\\', max_tokens=4, stream_options={"include_usage": True})
    _, [whole] = await answer(echo, request)
    _, events = await answer(echo, request, stream=True)
    *chunks, usage = events
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert len(deltas) == 1 + 4
    assert "".join(delta["content"] for delta in deltas) == whole["choices"][0]["message"]["content"]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 4 + ["length"]
    assert usage["choices"] == []
    assert usage["usage"] == whole["usage"]


async def test_usage_is_only_streamed_when_asked_for(echo: EchoEngine) -> None:
    _, events = await answer(echo, body(max_tokens=1), stream=True)
    assert all("usage" not in event for event in events)


async def test_without_a_maximum_the_answer_stops_by_itself(echo: EchoEngine) -> None:
    _, [whole] = await answer(echo, body())
    assert whole["choices"][0]["finish_reason"] == "stop"
    assert whole["usage"]["completion_tokens"] == 3


async def test_n_gives_so_many_choices(echo: EchoEngine) -> None:
    _, [whole] = await answer(echo, body(n=2, max_tokens=2))
    _, events = await answer(echo, body(n=2, max_tokens=2), stream=True)
    assert [choice["index"] for choice in whole["choices"]] == [0, 1]
    assert [event["choices"][0]["index"] for event in events] == [0, 1] * 3
    assert whole["usage"]["completion_tokens"] == 4


async def test_text_completions(echo: EchoEngine) -> None:
    request = json.dumps({"model": "m", "prompt": "a b", "max_tokens": 3}).encode()
    _, [whole] = await answer(echo, request, route=Route.COMPLETIONS)
    _, events = await answer(echo, request, stream=True, route=Route.COMPLETIONS)
    assert whole["choices"][0]["text"] == "a b a"
    assert "".join(event["choices"][0]["text"] for event in events) == "a b a"


@pytest.mark.parametrize(
    ("request_body", "param"),
    [
        (b"{", None),
        (b"[]", None),
        (body(max_tokens=0), "max_tokens"),
        (body(max_tokens=-1), "max_tokens"),
        (body(max_tokens="x"), "max_tokens"),
        (body(n=-1), "n"),
        (json.dumps({"model": "m"}).encode(), "messages"),
        (json.dumps({"model": "m", "messages": [{}]}).encode(), "messages[0]"),
    ],
)
async def test_a_malformed_body_is_a_400_that_names_the_field(
    echo: EchoEngine, request_body: bytes, param: str | None
) -> None:
    status, [error] = await answer(echo, request_body)
    assert status == 400
    assert error["error"]["param"] == param
    assert error["error"]["type"] == "invalid_request_error"


async def test_a_model_it_does_not_hold_is_a_404(echo: EchoEngine) -> None:
    status, [error] = await answer(echo, body(model="other"))
    assert status == 404
    assert "`other`" in error["error"]["message"]


async def test_any_adapter_answers_once_loaded_until_the_next_start(echo: EchoEngine) -> None:
    await echo.load_adapter("ft:m", Path("/nowhere"))
    assert (await answer(echo, body(model="ft:m")))[0] == 200
    await echo.start(WholeModel("m", "m"))
    assert (await answer(echo, body(model="ft:m")))[0] == 404


async def test_tokens_come_at_the_rate() -> None:
    engine = EchoEngine(tokens_per_second=100)
    await engine.start(WholeModel("m", "m"))
    times = []
    async with engine.call(EngineCall(Route.CHAT_COMPLETIONS, body(max_tokens=10), True)) as reply:
        async for _ in reply.chunks:
            times.append(time.perf_counter())
    assert times[-1] - times[0] >= 0.095  # ten tokens at 100 a second, the role before them


async def test_a_call_given_up_is_counted_as_aborted(echo: EchoEngine) -> None:
    async with echo.call(EngineCall(Route.CHAT_COMPLETIONS, body(max_tokens=100), True)) as reply:
        await anext(reply.chunks)
    assert echo.aborted_calls == 1
    await answer(echo, body())
    assert echo.aborted_calls == 1


async def test_the_http_server_sends_what_the_engine_sends(echo: EchoEngine) -> None:
    from aiohttp.test_utils import TestServer

    async with TestServer(echo_app(0, 3)) as server, httpx.AsyncClient(base_url=str(server.make_url("/"))) as client:
        _, [whole] = await answer(echo, body(max_tokens=4))
        response = await client.post("/v1/chat/completions", content=body(max_tokens=4))
        assert response.json()["choices"] == whole["choices"]
        _, events = await answer(echo, body(max_tokens=4), stream=True)
        response = await client.post("/v1/chat/completions", content=body(max_tokens=4, stream=True))
        payloads = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
        assert payloads.pop() == "[DONE]"
        assert [json.loads(payload)["choices"] for payload in payloads] == [event["choices"] for event in events]
        assert (await client.post("/v1/chat/completions", content=b"{")).status_code == 400
        assert (await client.post("/v1/completions", json={"prompt": "a", "max_tokens": 1})).json()["choices"]


async def test_many_streams_at_a_rate_end_together() -> None:
    engine = EchoEngine(tokens_per_second=50)
    await engine.start(WholeModel("m", "m"))
    started = time.perf_counter()
    results = await asyncio.gather(*(answer(engine, body(max_tokens=5), stream=True) for _ in range(200)))
    assert time.perf_counter() - started < 5  # 0.1 s of tokens each, side by side
    assert all(len(events) == 6 for _, events in results)


async def test_calls_beyond_the_slots_wait_their_turn() -> None:
    engine = EchoEngine(slots=2)
    await engine.start(WholeModel("m", "m"))
    call = EngineCall(Route.CHAT_COMPLETIONS, body(max_tokens=2), False)
    async with engine.call(call), engine.call(call):
        third = asyncio.create_task(answer(engine, body(max_tokens=2)))
        await wait_until(lambda: third.done() or engine._waiting == 1)
        assert (await engine.load()).waiting_requests == 1
        assert not third.done()
    assert (await third)[0] == 200
    assert (await engine.load()).waiting_requests == 0


async def test_a_call_given_up_while_it_waits_takes_no_slot() -> None:
    engine = EchoEngine(slots=1)
    await engine.start(WholeModel("m", "m"))
    async with engine.call(EngineCall(Route.CHAT_COMPLETIONS, body(), False)):
        waiting = asyncio.create_task(answer(engine, body()))
        await wait_until(lambda: engine._waiting == 1)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert (await engine.load()).waiting_requests == 0
    assert (await answer(engine, body()))[0] == 200
