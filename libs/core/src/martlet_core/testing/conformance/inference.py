"""The rules of ``martlet.inference.v1.InferenceService``: the replica, and requests in OpenAI's shape."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import grpc
from martlet.inference.v1 import inference_pb2 as pb
from martlet.inference.v1 import inference_service_pb2 as service_pb

from martlet_core.testing.conformance.checks import (
    check_health,
    check_pages,
    check_reflection,
    expect_bad_field,
    expect_error,
    read_all,
    require,
)
from martlet_core.testing.conformance.inference_generation import GENERATION_RULES
from martlet_core.testing.conformance.inference_models import MODEL_RULES
from martlet_core.testing.conformance.inference_target import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    SERVICE,
    UNKNOWN_MODEL,
    InferenceTarget,
    call_openai,
    chat_body,
    check_envelope,
    check_error_envelope,
    check_finish_reason,
    check_stream_end,
    check_usage,
    choices_of,
    json_object,
    model_name,
    raising,
    served_models,
    streamed_answer,
    whole_answer,
)
from martlet_core.testing.conformance.rules import Rule, RuleBroken

# The replica


async def health_is_serving(target: InferenceTarget) -> None:
    """The standard health service answers SERVING for the server and for the service by name."""
    await check_health(target, SERVICE)


async def reflection_lists_the_service(target: InferenceTarget) -> None:
    """Where server reflection is on, it lists the service."""
    await check_reflection(target, SERVICE)


async def replica_info_is_complete(target: InferenceTarget) -> None:
    """GetReplicaInfo names engine, version and device, says ready, and gives a load within its limits."""
    info = await target.stub.GetReplicaInfo(service_pb.GetReplicaInfoRequest(), **target.call_options)
    require(info.engine, "engine is empty")
    require(info.device, "device is empty")
    require(info.ready, "ready is false")
    require(info.load.max_requests >= 1, f"load.max_requests is {info.load.max_requests}")
    require(info.load.active_requests >= 0, f"load.active_requests is {info.load.active_requests}")
    require(0 <= info.load.kv_cache_usage <= 1, f"load.kv_cache_usage is {info.load.kv_cache_usage}")
    require(info.max_lora_rank == 0 or info.max_adapters >= 1, "it takes adapters, but max_adapters is 0")


async def served_models_are_described(target: InferenceTarget) -> None:
    """Each served model has a name of its own, a kind and a state; an adapter names its base; one at least is READY."""
    models = await served_models(target)
    names = [model.name for model in models]
    require(all(names), "a served model has no name")
    require(len(set(names)) == len(names), f"names are not unique: {names}")
    for model in models:
        require(model.kind, f"{model.name}: kind is not set")
        require(model.state, f"{model.name}: state is not set")
        is_adapter = model.kind == pb.MODEL_KIND_ADAPTER
        require(bool(model.base_model) == is_adapter, f"{model.name}: base_model is {model.base_model!r}")
    require(any(model.state == pb.MODEL_STATE_READY for model in models), f"none of {names} is READY")


async def served_models_are_paged(target: InferenceTarget) -> None:
    """ListServedModels gives pages of at most page_size; a size outside 0 to 1000 or a foreign token is refused."""

    async def page(size: int, token: str) -> tuple[Sequence[str], str]:
        request = service_pb.ListServedModelsRequest(page_size=size, page_token=token)
        answer = await target.stub.ListServedModels(request, **target.call_options)
        return [model.name for model in answer.models], answer.next_page_token

    await check_pages("ListServedModels", page)
    for size in (-1, 1001):
        await expect_bad_field(f"page_size {size}", page(size, ""), "page_size")
    await expect_bad_field("a made-up page_token", page(10, "no token of yours"), "page_token")


# OpenAI's shape


async def chat_answers_whole(target: InferenceTarget) -> None:
    """A chat completion that isn't streamed is one message: status 200 and OpenAI's chat.completion object."""
    body = await chat_body(target, max_tokens=8)
    answer = await whole_answer(target, CHAT, body)
    check_envelope(answer, "chat.completion", body["model"])
    for index, choice in enumerate(choices_of(answer, 1)):
        require(choice.get("index") == index, f"choices[{index}].index is {choice.get('index')}")
        message = choice.get("message") or {}
        require(message.get("role") == "assistant", f"message.role is {message.get('role')!r}")
        require(isinstance(message.get("content"), str), f"message.content is {message.get('content')!r}")
        check_finish_reason(choice)
    check_usage(answer, max_tokens=8)


async def chat_streams(target: InferenceTarget) -> None:
    """A streamed chat completion is one bare JSON chunk a message (no ``data:``, no ``[DONE]``), role first, the reason
    for the end last, and the usage behind it when it was asked for."""
    body = await chat_body(target, max_tokens=8, stream=True, stream_options={"include_usage": True})
    chunks = await streamed_answer(target, CHAT, body)
    for chunk in chunks:
        check_envelope(chunk, "chat.completion.chunk", body["model"])
    require(len({chunk["id"] for chunk in chunks}) == 1, "the chunks of one answer have different ids")
    usage, parts = chunks[-1], chunks[:-1]
    require(usage.get("choices") == [], "with include_usage the last chunk has no choices")
    check_usage(usage, max_tokens=8)
    deltas = [chunk["choices"][0].get("delta") for chunk in parts if chunk.get("choices")]
    require(deltas and all(isinstance(delta, dict) for delta in deltas), "a chunk's choice has no delta")
    require(deltas[0].get("role") == "assistant", f"the first delta is {deltas[0]}")
    require("".join(delta.get("content") or "" for delta in deltas), "no text came")
    check_stream_end(parts)


async def completion_answers_whole(target: InferenceTarget) -> None:
    """A completion that isn't streamed is one message: status 200 and OpenAI's text_completion object."""
    body = {"model": await model_name(target), "prompt": "Once upon a time", "max_tokens": 8, "temperature": 0}
    answer = await whole_answer(target, COMPLETIONS, body)
    check_envelope(answer, "text_completion", body["model"])
    for choice in choices_of(answer, 1):
        require(isinstance(choice.get("text"), str), f"text is {choice.get('text')!r}")
        check_finish_reason(choice)
    check_usage(answer, max_tokens=8)


async def completion_streams(target: InferenceTarget) -> None:
    """A streamed completion is one bare JSON chunk a message, the reason for the end in the last choice."""
    body = {"model": await model_name(target), "prompt": "Once upon a time", "max_tokens": 8, "stream": True}
    chunks = await streamed_answer(target, COMPLETIONS, body)
    for chunk in chunks:
        check_envelope(chunk, "text_completion", body["model"])
    texts = [choice.get("text") for chunk in chunks for choice in chunk["choices"]]
    require(all(isinstance(text, str) for text in texts), "a choice has no text")
    require("".join(texts), "no text came")
    check_stream_end(chunks)


async def embeddings_answer_or_say_why_not(target: InferenceTarget) -> None:
    """Embeddings either answer with vectors, or are refused: INVALID_ARGUMENT, NOT_FOUND or UNIMPLEMENTED, or HTTP 4xx with OpenAI's
    error envelope."""
    answer = await answer_or_refusal(target, EMBEDDINGS, {"input": "a bird"})
    if answer is None:
        return
    require(answer.get("object") == "list", f"object is {answer.get('object')!r}")
    vector = answer["data"][0]["embedding"]
    require(vector and all(isinstance(number, float) for number in vector), "the embedding is no list of numbers")


async def pooling_routes_answer_or_say_why_not(target: InferenceTarget) -> None:
    """Classify, pooling, score and rerank either answer with an item an input and the tokens counted, or are refused as embeddings are."""
    pair = {"text_1": "a bird", "text_2": ["a swift", "a stone"]}
    for route, fields, items in (
        (pb.OPEN_AI_ROUTE_CLASSIFY, {"input": ["a bird", "a stone"]}, "data"),
        (pb.OPEN_AI_ROUTE_POOLING, {"input": ["a bird", "a stone"]}, "data"),
        (pb.OPEN_AI_ROUTE_SCORE, pair, "data"),
        (pb.OPEN_AI_ROUTE_RERANK, {"query": "a bird", "documents": ["a swift", "a stone"]}, "results"),
    ):
        answer = await answer_or_refusal(target, route, fields)
        if answer is None:
            continue
        found = answer.get(items)
        require(isinstance(found, list) and len(found) == 2, f"{items} is {found!r:.200} for two inputs")
        prompt = (answer.get("usage") or {}).get("prompt_tokens")
        require(isinstance(prompt, int) and prompt > 0, f"usage.prompt_tokens is {prompt!r}")


async def answer_or_refusal(target: InferenceTarget, route: Any, fields: dict[str, Any]) -> dict[str, Any] | None:
    """The answer to a request that a model needn't have one for; None where it was refused as it should be."""
    name = pb.OpenAIRoute.Name(route)
    try:
        messages = await read_all(call_openai(target, route, {"model": await model_name(target), **fields}))
    except grpc.RpcError as error:
        await expect_error(name, raising(error), "INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED")
        return None
    require(len(messages) == 1, f"{name} came in {len(messages)} messages")
    answer = json_object(messages[0].data)
    if 400 <= messages[0].http_status < 500:
        check_error_envelope(answer)
        return None
    require(messages[0].http_status == 200, f"http_status is {messages[0].http_status}")
    return answer


async def refusals_of_the_engine_are_openais(target: InferenceTarget) -> None:
    """What the engine refuses and the client can mend comes back as its 4xx with OpenAI's error envelope, or as
    INVALID_ARGUMENT; streamed or not, and never as a success."""
    model = await model_name(target)
    for stream in (False, True):
        for what, wrong in (("no messages", {}), ("messages that are no list", {"messages": 7})):
            body = {"model": model, "stream": stream, **wrong}
            try:
                messages = await read_all(call_openai(target, CHAT, body))
            except grpc.RpcError as error:
                await expect_error(what, raising(error), "INVALID_ARGUMENT")
                continue
            status = messages[0].http_status if messages else 0
            require(400 <= status < 500, f"{what}: http_status is {status}")
            check_error_envelope(json_object(messages[0].data))


async def requests_that_make_no_sense_are_refused(target: InferenceTarget) -> None:
    """No route, a body that isn't a JSON object, and no model are INVALID_ARGUMENT with the field at fault."""
    model = await model_name(target)
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "hi"}]}).encode()

    def call(**fields: Any) -> Any:
        values = {"route": CHAT, "model": model, "body": body, **fields}
        return read_all(target.stub.CallOpenAI(pb.CallOpenAIRequest(**values), **target.call_options))

    unset = pb.OPEN_AI_ROUTE_UNSPECIFIED
    await expect_bad_field("no route", call(route=unset), "route")
    await expect_bad_field("a body that is no JSON", call(body=b'{"model": '), "body")
    await expect_bad_field("a body that is a list", call(body=b"[]"), "body")
    await expect_bad_field("no model", call(model=""), "model")


async def body_over_the_limit_is_refused(target: InferenceTarget) -> None:
    """A body over 16 MiB is refused, and the service goes on answering."""
    model = await model_name(target)
    body = {"model": model, "messages": [{"role": "user", "content": "a" * (17 * 2**20)}]}
    try:
        await read_all(call_openai(target, CHAT, body))
    except grpc.RpcError as error:
        code = error.code().name  # pyright: ignore[reportAttributeAccessIssue]
        refused = code in ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT")
        require(refused, f"failed with {code}; expected RESOURCE_EXHAUSTED or INVALID_ARGUMENT")
    else:
        raise RuleBroken("a body of 17 MiB was taken")
    await chat_answers_whole(target)


async def unknown_model_is_not_found(target: InferenceTarget) -> None:
    """A model that can't be resolved is NOT_FOUND in every method; where names are like it, ErrorInfo's metadata lists
    them as ``close_matches``, separated by commas."""
    stub, options = target.stub, target.call_options
    body = {"model": UNKNOWN_MODEL, "messages": [{"role": "user", "content": "hi"}]}
    generate = pb.GenerateRequest(model=UNKNOWN_MODEL, prompt="hi")
    await expect_error("CallOpenAI", read_all(call_openai(target, CHAT, body)), "NOT_FOUND")
    await expect_error("Generate", read_all(stub.Generate(generate, **options)), "NOT_FOUND")
    for method, request in (
        ("LoadModel", service_pb.LoadModelRequest(model=UNKNOWN_MODEL)),
        ("UnloadModel", service_pb.UnloadModelRequest(model=UNKNOWN_MODEL)),
        ("PinModel", service_pb.PinModelRequest(model=UNKNOWN_MODEL, pinned=True)),
    ):
        await expect_error(method, getattr(stub, method)(request, **options), "NOT_FOUND")
    model = await model_name(target)
    near = {**body, "model": model + "x"}
    failure = await expect_error("a misspelt model", read_all(call_openai(target, CHAT, near)), "NOT_FOUND")
    matches = (failure.info.metadata.get("close_matches", "") if failure.info else "").split(",")
    require(model in matches, f"the close matches of {near['model']!r} are {matches}, without {model!r}")


#: All rules, in the order they are tried: those that unload models come last.
INFERENCE_RULES: tuple[Rule, ...] = (
    Rule.of(health_is_serving),
    Rule.of(reflection_lists_the_service),
    Rule.of(replica_info_is_complete),
    Rule.of(served_models_are_described),
    Rule.of(served_models_are_paged),
    Rule.of(chat_answers_whole),
    Rule.of(chat_streams),
    Rule.of(completion_answers_whole),
    Rule.of(completion_streams),
    Rule.of(embeddings_answer_or_say_why_not),
    Rule.of(pooling_routes_answer_or_say_why_not),
    Rule.of(refusals_of_the_engine_are_openais),
    Rule.of(requests_that_make_no_sense_are_refused),
    Rule.of(body_over_the_limit_is_refused),
    Rule.of(unknown_model_is_not_found),
    *GENERATION_RULES,
    *MODEL_RULES,
)
