"""The service over a real connection: both shapes of request, errors, operators' calls, abort, capacity."""

from __future__ import annotations

import json
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from martlet.inference.v1 import inference_pb2 as pb
from martlet.inference.v1 import inference_service_pb2 as service_pb
from martlet.inference.v1 import inference_service_pb2_grpc as service_grpc
from martlet_core.artifacts.types import PublishedModel
from martlet_core.errors import (
    FailedPrecondition,
    InvalidArgument,
    MartletError,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from martlet_core.rpc.client import call_metadata, error_from_rpc
from martlet_inference.dataplane import DataPlane
from martlet_inference.engines.echo import EchoEngine
from martlet_inference.models import ModelPool
from martlet_inference.testing import MemorySource, RecordingEngine, adapter, chat_request, serving

Stub = service_grpc.InferenceServiceStub


async def failure(call: Any) -> MartletError:
    """The error that a call ends with."""
    try:
        if isinstance(call, Awaitable):
            await call
        else:
            async for _ in call:
                pass
    except grpc.RpcError as exc:
        return error_from_rpc(exc)
    raise AssertionError("the call succeeded")


async def test_a_whole_answer_is_one_message_with_its_status(stub: Stub) -> None:
    [message] = [m async for m in stub.CallOpenAI(chat_request(max_tokens=3))]
    assert message.http_status == 200
    assert json.loads(message.data)["choices"][0]["message"]["content"] == "a b a"


async def test_a_stream_has_its_status_in_the_first_message_and_no_framing(stub: Stub) -> None:
    messages = [m async for m in stub.CallOpenAI(chat_request(max_tokens=3, stream=True))]
    assert [m.http_status for m in messages] == [200, 0, 0, 0]
    deltas = [json.loads(m.data)["choices"][0]["delta"]["content"] for m in messages]
    assert deltas == ["", "a", " b", " a"]


async def test_what_the_client_can_mend_comes_back_as_the_engine_said_it(stub: Stub) -> None:
    [message] = [m async for m in stub.CallOpenAI(chat_request(max_tokens=-1, stream=True))]
    assert message.http_status == 400
    assert json.loads(message.data)["error"]["param"] == "max_tokens"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"route": pb.OPEN_AI_ROUTE_UNSPECIFIED}, "route"),
        ({"body": b"{"}, "body"),
        ({"body": b"[]"}, "body"),
        ({"model": ""}, "model"),
        ({"model": "another"}, "body.model"),
        ({"stream": True}, "body.stream"),
    ],
)
async def test_a_request_that_contradicts_itself_is_refused(stub: Stub, change: dict[str, Any], field: str) -> None:
    request = chat_request()
    for name, value in change.items():
        setattr(request, name, value)
    error = await failure(stub.CallOpenAI(request))
    assert isinstance(error, InvalidArgument)
    assert [violation.field for violation in error.violations] == [field]


async def test_a_body_cannot_name_another_tenants_adapter(stub: Stub, source: MemorySource) -> None:
    source.publish(adapter("ft:secret", tenant="acme"), adapter("ft:mine", tenant="mallory"))
    acme, mallory = call_metadata(tenant="acme"), call_metadata(tenant="mallory")
    assert [m async for m in stub.CallOpenAI(chat_request("ft:secret"), metadata=acme)]
    smuggled = chat_request("ft:secret")
    smuggled.model = "ft:mine"
    assert isinstance(await failure(stub.CallOpenAI(smuggled, metadata=mallory)), InvalidArgument)
    assert isinstance(await failure(stub.CallOpenAI(chat_request("ft:secret"), metadata=mallory)), NotFound)


async def test_an_unknown_model_is_not_found_with_close_matches(stub: Stub) -> None:
    error = await failure(stub.CallOpenAI(chat_request("base-2")))
    assert isinstance(error, NotFound)
    assert error.reason == "MODEL_NOT_FOUND"
    assert error.metadata["close_matches"] == "base-1"


@pytest.mark.parametrize(
    "route",
    [
        pb.OPEN_AI_ROUTE_EMBEDDINGS,
        pb.OPEN_AI_ROUTE_CLASSIFY,
        pb.OPEN_AI_ROUTE_POOLING,
        pb.OPEN_AI_ROUTE_SCORE,
        pb.OPEN_AI_ROUTE_RERANK,
    ],
)
async def test_a_route_that_the_model_has_no_answer_for_is_refused(stub: Stub, route: pb.OpenAIRoute) -> None:
    request = chat_request()
    request.route = route
    error = await failure(stub.CallOpenAI(request))
    assert isinstance(error, InvalidArgument)
    assert error.reason == "WRONG_ROUTE"
    assert error.message.endswith("use /v1/chat/completions or /v1/completions.")
    assert error.metadata["task"] == "causal_lm"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"stream": True}, "body.stream"),
        ({"encoding_format": "bytes"}, "body.encoding_format"),
        ({"input": ["x"] * 2049}, "body.input"),
    ],
)
async def test_what_a_pooling_route_never_takes_is_refused(stub: Stub, fields: dict[str, Any], field: str) -> None:
    body = json.dumps({"model": "base-1", "input": "x", **fields}).encode()
    request = pb.CallOpenAIRequest(
        route=pb.OPEN_AI_ROUTE_EMBEDDINGS, model="base-1", body=body, stream="stream" in fields
    )
    error = await failure(stub.CallOpenAI(request))
    assert isinstance(error, InvalidArgument)
    assert [violation.field for violation in error.violations] == [field]


async def test_what_a_model_is_for_stands_in_its_files_and_its_artifact(tmp_path: Path) -> None:
    class Source(MemorySource):
        async def files(self, model: PublishedModel) -> Path:
            return tmp_path

    config = {"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "LABEL_0"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    engine = EchoEngine()
    engine.needs_files = True
    pool = ModelPool(engine, Source())
    await pool.whole.load(PublishedModel("base-1", "whole", artifact_id="a1", metadata={"task": "reward"}))
    async with serving(DataPlane(engine, pool, max_requests=2)) as channel:
        stub = Stub(channel)
        [served] = (await stub.ListServedModels(service_pb.ListServedModelsRequest())).models
        assert served.task == pb.MODEL_TASK_REWARD
        error = await failure(stub.CallOpenAI(chat_request()))
        assert (error.code, error.reason) == ("INVALID_ARGUMENT", "WRONG_ROUTE")
        assert "is for reward" in error.message
        assert "use /v1/classify" in error.message
        typed = pb.GenerateRequest(model="base-1", prompt="x")
        assert (await failure(stub.Generate(typed))).reason == "WRONG_ROUTE"


async def test_a_text_of_many_tokens_is_one_input(stub: Stub) -> None:
    body = json.dumps({"model": "base-1", "input": [7] * 2049}).encode()
    request = pb.CallOpenAIRequest(route=pb.OPEN_AI_ROUTE_EMBEDDINGS, model="base-1", body=body)
    assert (await failure(stub.CallOpenAI(request))).reason == "WRONG_ROUTE"


async def test_an_adapter_answers_by_name_without_a_load_call(stub: Stub, source: MemorySource) -> None:
    source.publish(adapter("ft:1"))
    [message] = [m async for m in stub.CallOpenAI(chat_request("ft:1"))]
    assert json.loads(message.data)["model"] == "ft:1"


async def test_generate_from_a_prompt_and_from_a_conversation(stub: Stub) -> None:
    sampling = pb.SamplingConfig(max_new_tokens=3)
    prompt = pb.GenerateRequest(model="base-1", prompt="x y", sampling=sampling)
    messages = [pb.ChatMessage(role="user", content="x y")]
    chat = pb.GenerateRequest(model="base-1", conversation=pb.Conversation(messages=messages), sampling=sampling)
    for request in (prompt, chat):
        *parts, last = [m async for m in stub.Generate(request)]
        assert "".join(part.text for part in parts) == "x y x"
        assert last.finish_reason == pb.FINISH_REASON_LENGTH
        assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (2, 3)


async def test_generate_names_every_field_that_is_wrong(stub: Stub) -> None:
    request = pb.GenerateRequest(
        conversation=pb.Conversation(messages=[pb.ChatMessage(role="robot", content="x")]),
        sampling=pb.SamplingConfig(max_new_tokens=0, temperature=-1, top_p=0, stop=list("abcde")),
    )
    error = await failure(stub.Generate(request))
    assert isinstance(error, InvalidArgument)
    assert [violation.field for violation in error.violations] == [
        "model",
        "conversation.messages[0].role",
        "sampling.max_new_tokens",
        "sampling.temperature",
        "sampling.top_p",
        "sampling.stop",
    ]
    error = await failure(stub.Generate(pb.GenerateRequest(model="base-1")))
    assert "input" in error.message


async def test_over_capacity_requests_are_told_when_to_try_again() -> None:
    engine = EchoEngine(tokens_per_second=1)
    pool = ModelPool(engine, MemorySource())
    await pool.whole.load(PublishedModel("base-1", "base"))
    async with serving(DataPlane(engine, pool, max_requests=2)) as channel:
        stub = Stub(channel)
        running = [stub.CallOpenAI(chat_request(stream=True, max_tokens=1000)) for _ in range(2)]
        for call in running:
            await call.read()
        error = await failure(stub.CallOpenAI(chat_request()))
        assert isinstance(error, ResourceExhausted)
        assert error.reason == "AT_CAPACITY"
        assert error.retry_after_seconds == 1
        for call in running:
            call.cancel()
        assert await pool.wait_idle(5)
        assert engine.aborted_calls == 2


async def test_a_draining_replica_takes_nothing_new() -> None:
    engine = EchoEngine()
    pool = ModelPool(engine, MemorySource())
    await pool.whole.load(PublishedModel("base-1", "base"))
    plane = DataPlane(engine, pool, max_requests=2)
    plane.draining = True
    async with serving(plane) as channel:
        stub = Stub(channel)
        error = await failure(stub.CallOpenAI(chat_request()))
        assert isinstance(error, Unavailable)
        assert error.reason == "DRAINING"
        assert not (await stub.GetReplicaInfo(service_pb.GetReplicaInfoRequest())).ready


async def test_operators_list_load_pin_and_unload(stub: Stub, source: MemorySource) -> None:
    source.publish(adapter("ft:1"), adapter("ft:theirs", tenant="acme"))
    loaded = await stub.LoadModel(service_pb.LoadModelRequest(model="ft:1", pin=True))
    assert loaded == pb.ServedModel(
        name="ft:1",
        kind=pb.MODEL_KIND_ADAPTER,
        state=pb.MODEL_STATE_READY,
        base_model="base-1",
        pinned=True,
        task=pb.MODEL_TASK_CAUSAL_LM,
    )
    error = await failure(stub.UnloadModel(service_pb.UnloadModelRequest(model="ft:1")))
    assert isinstance(error, FailedPrecondition)
    await stub.PinModel(service_pb.PinModelRequest(model="ft:1", pinned=False))
    acme = call_metadata(tenant="acme")
    await stub.LoadModel(service_pb.LoadModelRequest(model="ft:theirs"), metadata=acme)
    mine = await stub.ListServedModels(service_pb.ListServedModelsRequest())
    assert [model.name for model in mine.models] == ["base-1", "ft:1"]
    theirs = await stub.ListServedModels(service_pb.ListServedModelsRequest(), metadata=acme)
    assert [model.name for model in theirs.models] == ["base-1", "ft:1", "ft:theirs"]
    await stub.UnloadModel(service_pb.UnloadModelRequest(model="ft:1"))
    error = await failure(stub.PinModel(service_pb.PinModelRequest(model="ft:1", pinned=True)))
    assert isinstance(error, NotFound)


async def test_listing_goes_by_pages(stub: Stub, source: MemorySource) -> None:
    source.publish(adapter("ft:1"), adapter("ft:2"))
    for name in ("ft:1", "ft:2"):
        await stub.LoadModel(service_pb.LoadModelRequest(model=name))
    names, token = [], ""
    while True:
        page = await stub.ListServedModels(service_pb.ListServedModelsRequest(page_size=2, page_token=token))
        names.append([model.name for model in page.models])
        token = page.next_page_token
        if not token:
            break
    assert names == [["base-1", "ft:1"], ["ft:2"]]
    for bad in ({"page_size": 1001}, {"page_size": -1}, {"page_token": "!"}, {"page_token": "LTE="}):
        error = await failure(stub.ListServedModels(service_pb.ListServedModelsRequest(**bad)))
        assert isinstance(error, InvalidArgument), bad


async def test_loading_a_whole_model_swaps_it(stub: Stub, source: MemorySource, engine: RecordingEngine) -> None:
    source.publish(PublishedModel("merged-1", "whole", artifact_id="a2"))
    request = service_pb.LoadModelRequest(model="merged-1", drain_timeout=Duration(seconds=1))
    held = await stub.LoadModel(request)
    assert (held.name, held.kind) == ("merged-1", pb.MODEL_KIND_WHOLE)
    assert [m async for m in stub.CallOpenAI(chat_request("merged-1"))]
    error = await failure(stub.CallOpenAI(chat_request("base-1")))
    assert error.reason == "MODEL_NOT_LOADED"
    error = await failure(stub.LoadModel(service_pb.LoadModelRequest(model="x", drain_timeout=Duration(seconds=-1))))
    assert isinstance(error, InvalidArgument)
    assert isinstance(await failure(stub.LoadModel(service_pb.LoadModelRequest())), InvalidArgument)


async def test_the_replica_describes_itself(stub: Stub) -> None:
    info = await stub.GetReplicaInfo(service_pb.GetReplicaInfoRequest())
    assert (info.engine, info.ready, info.max_lora_rank, info.max_adapters, info.device) == ("echo", True, 16, 2, "cpu")
    assert info.load.max_requests == 4
