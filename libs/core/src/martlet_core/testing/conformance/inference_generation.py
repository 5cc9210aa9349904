"""The rules of ``martlet.inference.v1.InferenceService`` about generating: typed requests, cancelling, many at once."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
from martlet.inference.v1 import inference_pb2 as pb

from martlet_core.testing.conformance.checks import eventually, expect_bad_field, read_all, require
from martlet_core.testing.conformance.failures import RpcFailure
from martlet_core.testing.conformance.inference_target import (
    CHAT,
    InferenceTarget,
    active_requests,
    call_openai,
    chat_body,
    model_name,
    served_model,
    wait_until_active,
)
from martlet_core.testing.conformance.rules import Rule, Skipped

#: Tokens of an answer that is cancelled; less where the model's context is shorter.
_LONG_TOKENS = 2000
_CONCURRENT_CALLS = 8


async def generate_streams_text(target: InferenceTarget) -> None:
    """Generate answers a prompt and a conversation with text in parts; reason for the end and counts come with the last
    part alone, and no more tokens than asked for."""
    conversation = pb.Conversation(messages=[pb.ChatMessage(role="user", content="Name three birds.")])
    model = await model_name(target)
    sampling = pb.SamplingConfig(max_new_tokens=8, temperature=0.0)
    for request in (
        pb.GenerateRequest(model=model, prompt="Once upon a time", sampling=sampling),
        pb.GenerateRequest(model=model, conversation=conversation, sampling=sampling),
    ):
        what = request.WhichOneof("input")
        parts = await read_all(target.stub.Generate(request, **target.call_options))
        require(parts, f"{what}: no parts")
        require("".join(part.text for part in parts), f"{what}: no text")
        *others, last = parts
        require(last.finish_reason, f"{what}: the last part has no finish_reason")
        require(last.HasField("usage"), f"{what}: the last part has no usage")
        require(not any(part.finish_reason for part in others), f"{what}: finish_reason before the last part")
        require(last.usage.prompt_tokens > 0, f"{what}: usage.prompt_tokens is {last.usage.prompt_tokens}")
        completion = last.usage.completion_tokens
        require(0 < completion <= 8, f"{what}: usage.completion_tokens is {completion}, asked for at most 8")


async def generate_says_when_it_was_cut(target: InferenceTarget) -> None:
    """A generation that reached max_new_tokens ends with FINISH_REASON_LENGTH."""
    sampling = pb.SamplingConfig(max_new_tokens=1, temperature=0.0)
    request = pb.GenerateRequest(model=await model_name(target), prompt="One, two, three,", sampling=sampling)
    parts = await read_all(target.stub.Generate(request, **target.call_options))
    reason = pb.FinishReason.Name(parts[-1].finish_reason)
    require(parts[-1].finish_reason == pb.FINISH_REASON_LENGTH, f"finish_reason is {reason}")
    require(parts[-1].usage.completion_tokens == 1, f"completion_tokens is {parts[-1].usage.completion_tokens}")


async def generate_is_repeatable(target: InferenceTarget) -> None:
    """With temperature 0 the same request gives the same text."""
    sampling = pb.SamplingConfig(max_new_tokens=12, temperature=0.0, seed=7)
    request = pb.GenerateRequest(model=await model_name(target), prompt="The capital of France is", sampling=sampling)
    texts = []
    for _ in range(2):
        texts.append(
            "".join(part.text for part in await read_all(target.stub.Generate(request, **target.call_options)))
        )
    require(texts[0] == texts[1], f"{texts[0]!r}, then {texts[1]!r}")


async def generate_refuses_bad_requests(target: InferenceTarget) -> None:
    """A field out of the range that the contract gives is INVALID_ARGUMENT, named in BadRequest."""
    model = await model_name(target)

    def call(**fields: Any) -> Any:
        values = {"model": model, "prompt": "hi", **fields}
        request = pb.GenerateRequest(**{name: value for name, value in values.items() if value is not None})
        return read_all(target.stub.Generate(request, **target.call_options))

    robot = pb.Conversation(messages=[pb.ChatMessage(role="robot", content="hi")])
    wrong: tuple[tuple[str, dict[str, Any]], ...] = (
        ("model", {"model": ""}),
        ("input", {"prompt": None}),
        ("conversation.messages", {"prompt": None, "conversation": pb.Conversation()}),
        ("conversation.messages[0].role", {"prompt": None, "conversation": robot}),
        ("sampling.max_new_tokens", {"sampling": pb.SamplingConfig(max_new_tokens=0)}),
        ("sampling.temperature", {"sampling": pb.SamplingConfig(temperature=-0.5)}),
        ("sampling.top_p", {"sampling": pb.SamplingConfig(top_p=0.0)}),
        ("sampling.top_p", {"sampling": pb.SamplingConfig(top_p=1.5)}),
        ("sampling.stop", {"sampling": pb.SamplingConfig(stop=["a", "b", "c", "d", "e"])}),
    )
    for field, fields in wrong:
        await expect_bad_field(f"Generate with a wrong {field}", call(**fields), field)


async def cancelled_calls_free_their_requests(target: InferenceTarget) -> None:
    """A call that the client cancels in mid-stream leaves the load at once: the generation is aborted, not finished."""
    before = await active_requests(target)
    for what, begin in (("CallOpenAI", _long_chat), ("Generate", _long_generation)):
        call = await begin(target)
        try:
            await call.read()
            await wait_until_active(target, f"{what}: a running request in load.active_requests", before + 1)
        finally:
            call.cancel()
        await wait_until_active(target, f"{what}: load.active_requests back at {before} after the cancel", before)


async def calls_past_their_deadline_free_their_requests(target: InferenceTarget) -> None:
    """A call whose deadline passes ends with DEADLINE_EXCEEDED and leaves the load."""
    before = await active_requests(target)
    try:
        await read_all(await _long_chat(target, timeout=0.5))
    except grpc.RpcError as error:
        failure = RpcFailure.of(error)
        require(failure.code == "DEADLINE_EXCEEDED", f"failed with {failure}")
    else:
        raise Skipped(f"{await _long_tokens(target)} tokens came within half a second: too fast to tell")
    await wait_until_active(target, f"load.active_requests back at {before} after the deadline", before)


async def calls_are_answered_side_by_side(target: InferenceTarget) -> None:
    """Several streams make progress at the same time: each has begun before any has ended."""
    before = await active_requests(target)
    calls = [await _long_chat(target) for _ in range(_CONCURRENT_CALLS)]
    try:
        async with asyncio.timeout(target.timeout_seconds):
            first = await asyncio.gather(*(call.read() for call in calls))
        require(all(isinstance(message, pb.CallOpenAIResponse) for message in first), "a stream ended with nothing")
        count = before + _CONCURRENT_CALLS
        await wait_until_active(target, f"{count} requests in load.active_requests", count)
    finally:
        for call in calls:
            call.cancel()
    await wait_until_active(target, f"load.active_requests back at {before}", before)


async def model_counts_its_requests(target: InferenceTarget) -> None:
    """ServedModel.active_requests counts the requests of that model."""
    name = await model_name(target)
    call = await _long_chat(target)
    await call.read()

    async def counted(count: int) -> None:
        async def probe() -> bool | None:
            model = await served_model(target, name)
            return True if model and model.active_requests == count else None

        await eventually(f"active_requests of {name} at {count}", probe, seconds=target.timeout_seconds)

    try:
        await counted(1)
    finally:
        call.cancel()
    await counted(0)


async def _long_tokens(target: InferenceTarget) -> int:
    model = await served_model(target, await model_name(target))
    context_length = model.context_length if model else 0
    return max(16, min(_LONG_TOKENS, context_length - 128)) if context_length else _LONG_TOKENS


async def _long_chat(target: InferenceTarget, *, timeout: float | None = None) -> Any:
    content = "Write down the numbers from 1 to 5000, one on each line."
    fields = {"messages": [{"role": "user", "content": content}], "max_tokens": await _long_tokens(target)}
    return call_openai(target, CHAT, await chat_body(target, stream=True, **fields), timeout=timeout)


async def _long_generation(target: InferenceTarget) -> Any:
    sampling = pb.SamplingConfig(max_new_tokens=await _long_tokens(target), temperature=0.0)
    request = pb.GenerateRequest(
        model=await model_name(target), prompt="1\n2\n3\n4\n5\n6\n7\n8\n9\n10\n11\n12\n13\n", sampling=sampling
    )
    return target.stub.Generate(request, metadata=target.metadata)


GENERATION_RULES: tuple[Rule, ...] = (
    Rule.of(generate_streams_text),
    Rule.of(generate_says_when_it_was_cut),
    Rule.of(generate_is_repeatable),
    Rule.of(generate_refuses_bad_requests),
    Rule.of(cancelled_calls_free_their_requests),
    Rule.of(calls_past_their_deadline_free_their_requests),
    Rule.of(calls_are_answered_side_by_side),
    Rule.of(model_counts_its_requests),
)
