"""What the rules of the inference contract are tried on, and how it is asked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from martlet.inference.v1 import inference_pb2 as pb
from martlet.inference.v1 import inference_service_pb2 as service_pb
from martlet.inference.v1 import inference_service_pb2_grpc as service_grpc

from martlet_core.testing.conformance.checks import eventually, read_all, require
from martlet_core.testing.conformance.rules import RuleBroken, Target, option

SERVICE = "martlet.inference.v1.InferenceService"
CHAT = pb.OPEN_AI_ROUTE_CHAT_COMPLETIONS
COMPLETIONS = pb.OPEN_AI_ROUTE_COMPLETIONS
EMBEDDINGS = pb.OPEN_AI_ROUTE_EMBEDDINGS
UNKNOWN_MODEL = "no-such-model-anywhere"
FINISH_REASONS = ("stop", "length", "tool_calls", "content_filter", "function_call")
#: How long a request that was cancelled may stay in the load, in seconds.
FREED_SECONDS = 5.0


@dataclass(frozen=True)
class InferenceTarget(Target):
    """An inference service to check. It must be ready, and nobody else may use it meanwhile.

    Attributes:
        model: model to ask; by default the first whole one that is ready.
        adapter: an adapter that a request may load; without one, the rules about adapters are untried.
        unload_whole_model: also unload the whole model and load it again.
    """

    model: str = option("", "the model to ask (default: the first whole one that is ready)")
    adapter: str = option("", "an adapter that a request may load")
    unload_whole_model: bool = option(False, "also unload the whole model and load it again")

    @property
    def stub(self) -> Any:
        """Stub of the service."""
        return service_grpc.InferenceServiceStub(self.channel)


# Asking


async def served_models(target: InferenceTarget) -> list[pb.ServedModel]:
    """All models on the replica."""
    request = service_pb.ListServedModelsRequest(page_size=1000)
    return list((await target.stub.ListServedModels(request, **target.call_options)).models)


async def served_model(target: InferenceTarget, name: str) -> pb.ServedModel | None:
    """The model of that name on the replica; None if it isn't there."""
    return next((model for model in await served_models(target) if model.name == name), None)


async def model_name(target: InferenceTarget) -> str:
    """Name of the whole model to ask."""
    if target.model:
        return target.model
    for model in await served_models(target):
        if model.kind == pb.MODEL_KIND_WHOLE and model.state == pb.MODEL_STATE_READY:
            return model.name
    raise RuleBroken("no whole model is READY")


async def active_requests(target: InferenceTarget) -> int:
    """Requests in work, as the replica says."""
    info = await target.stub.GetReplicaInfo(service_pb.GetReplicaInfoRequest(), **target.call_options)
    return info.load.active_requests


async def wait_until_active(target: InferenceTarget, what: str, count: int) -> None:
    """Wait until the replica says so many requests are in work; RuleBroken when it doesn't in time."""

    async def probe() -> bool | None:
        return True if await active_requests(target) == count else None

    await eventually(what, probe, seconds=FREED_SECONDS)


async def chat_body(target: InferenceTarget, **fields: Any) -> dict[str, Any]:
    """Body of a chat completion; ``fields`` are added or replace what is there."""
    messages = [{"role": "user", "content": "Name three birds that fly fast."}]
    return {"model": await model_name(target), "messages": messages, "temperature": 0, **fields}


def call_openai(target: InferenceTarget, route: int, body: Mapping[str, Any], *, timeout: float | None = -1.0) -> Any:
    """The stream of an OpenAI-shaped call; ``timeout`` in seconds, None for no deadline, -1 for the target's."""
    request = pb.CallOpenAIRequest(
        route=route,  # pyright: ignore[reportArgumentType]
        model=str(body.get("model", "")),
        stream=body.get("stream") is True,
        body=json.dumps(body).encode(),
    )
    seconds = target.timeout_seconds if timeout == -1.0 else timeout
    return target.stub.CallOpenAI(request, metadata=target.metadata, timeout=seconds)


async def whole_answer(target: InferenceTarget, route: int, body: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON of an answer that isn't streamed and is a success."""
    messages = await read_all(call_openai(target, route, body))
    require(len(messages) == 1, f"an answer that isn't streamed came in {len(messages)} messages")
    require(messages[0].http_status == 200, f"http_status is {messages[0].http_status}: {messages[0].data[:300]!r}")
    return json_object(messages[0].data)


async def streamed_answer(target: InferenceTarget, route: int, body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The JSON of each part of a streamed answer that is a success."""
    messages = await read_all(call_openai(target, route, body))
    require(len(messages) >= 2, f"a stream of {len(messages)} messages")
    require(messages[0].http_status == 200, f"http_status is {messages[0].http_status}: {messages[0].data[:300]!r}")
    require({message.http_status for message in messages} <= {0, 200}, "the status changes within the stream")
    return [json_object(message.data) for message in messages]


def json_object(data: bytes) -> dict[str, Any]:
    """``data`` as a JSON object."""
    try:
        value = json.loads(data)
    except ValueError:
        raise RuleBroken(f"not JSON: {data[:200]!r}") from None
    require(isinstance(value, dict), f"not a JSON object: {data[:200]!r}")
    return value


def check_envelope(answer: Mapping[str, Any], kind: str, model: str) -> None:
    """What every object of OpenAI's has."""
    require(answer.get("id") and isinstance(answer["id"], str), f"id is {answer.get('id')!r}")
    require(answer.get("object") == kind, f"object is {answer.get('object')!r}, expected {kind!r}")
    require(isinstance(answer.get("created"), int), f"created is {answer.get('created')!r}")
    require(answer.get("model") == model, f"model is {answer.get('model')!r}, expected {model!r}")
    require(isinstance(answer.get("choices"), list), f"choices is {answer.get('choices')!r}")


def choices_of(answer: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """The choices, of which there must be ``count``."""
    require(len(answer["choices"]) == count, f"{len(answer['choices'])} choices, expected {count}")
    return answer["choices"]


def check_finish_reason(choice: Mapping[str, Any]) -> None:
    """A whole answer says why it ended."""
    reason = choice.get("finish_reason")
    require(reason in FINISH_REASONS, f"finish_reason is {reason!r}")


def check_stream_end(chunks: Sequence[Mapping[str, Any]]) -> None:
    """The last choice, and no other, says why the answer ended."""
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    reasons = [choice.get("finish_reason") for choice in choices]
    require(reasons and reasons[-1] in FINISH_REASONS, f"the last finish_reason is {reasons[-1:]}")
    require(not any(reasons[:-1]), "a finish_reason came before the end")


def check_usage(answer: Mapping[str, Any], *, max_tokens: int) -> None:
    """Token counts that add up."""
    usage = answer.get("usage") or {}
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
    require(isinstance(prompt, int) and prompt > 0, f"usage.prompt_tokens is {prompt!r}")
    require(isinstance(completion, int) and 0 < completion <= max_tokens, f"usage.completion_tokens is {completion!r}")
    if isinstance(prompt, int) and isinstance(completion, int):
        total = usage.get("total_tokens")
        require(total == prompt + completion, f"usage.total_tokens is {total!r}, not {prompt} + {completion}")


def check_error_envelope(answer: Mapping[str, Any]) -> None:
    """OpenAI's error envelope."""
    error = answer.get("error")
    require(isinstance(error, dict), f"no error envelope: {json.dumps(answer)[:200]}")
    assert isinstance(error, dict)
    require(isinstance(error.get("message"), str) and error["message"], f"error.message is {error.get('message')!r}")
    require(isinstance(error.get("type"), str), f"error.type is {error.get('type')!r}")


async def raising(error: BaseException) -> None:
    """An awaitable that raises ``error``."""
    raise error
