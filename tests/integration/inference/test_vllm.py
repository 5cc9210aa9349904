"""Real vLLM on the CPU behind the inference contract.

Slow, because an engine is started three times (first, swapped, killed) and each start imports torch and vLLM twice.
It earns that: nothing else shows that a request reaches vLLM whole, that an adapter is loaded at run time, that a
client who goes away frees the engine, and that a killed engine comes back.
"""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from martlet.inference.v1 import inference_pb2 as pb
from martlet.inference.v1 import inference_service_pb2 as service_pb
from martlet_core.errors import MartletError
from martlet_core.rpc.client import error_from_rpc

if TYPE_CHECKING:
    from conftest import Platform, ReplicaProcess

pytestmark = [pytest.mark.slow, pytest.mark.timeout(290)]

BASE = "smollm2-135m-instruct"
COLOURS = {"type": "object", "properties": {"colour": {"enum": ["red", "blue"]}}, "required": ["colour"]}


def failure(call: Any) -> MartletError:
    """The error that a call ends with."""
    with pytest.raises(grpc.RpcError) as caught:
        list(call)
    return error_from_rpc(caught.value)


def test_a_chat_answer_and_its_stream_say_the_same(replica: ReplicaProcess) -> None:
    options = {"max_tokens": 12, "temperature": 0}
    whole = replica.chat(**options)
    assert whole["http_status"] == 200
    assert "Paris" in whole["choices"][0]["message"]["content"]
    assert whole["usage"]["completion_tokens"] <= 12
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    parts = list(replica.stream(messages=messages, stream=True, stream_options={"include_usage": True}, **options))
    assert [part.http_status for part in parts] == [200] + [0] * (len(parts) - 1)
    events = [json.loads(part.data) for part in parts]
    text = "".join(choice["delta"].get("content") or "" for event in events for choice in event["choices"])
    assert text == whole["choices"][0]["message"]["content"]
    assert events[-1]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]


def test_the_request_reaches_the_engine_whole(replica: ReplicaProcess) -> None:
    answer = replica.chat(logprobs=True, top_logprobs=3, max_tokens=4, temperature=0)
    content = answer["choices"][0]["logprobs"]["content"]
    assert [len(token["top_logprobs"]) for token in content] == [3] * len(content)

    stopped = replica.chat("Count from one to ten in words.", stop=["three"], max_tokens=60, temperature=0)
    assert "three" not in stopped["choices"][0]["message"]["content"]

    first, second = (replica.chat("Tell me a story.", n=2, seed=7, temperature=1.0, max_tokens=8) for _ in range(2))
    texts = [[choice["message"]["content"] for choice in answer["choices"]] for answer in (first, second)]
    assert texts[0] == texts[1]
    assert len(texts[0]) == 2


def test_structured_output_and_tools(replica: ReplicaProcess) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "colour", "schema": COLOURS}}
    answer = replica.chat("Name a colour.", response_format=schema, max_tokens=30)
    assert json.loads(answer["choices"][0]["message"]["content"])["colour"] in ("red", "blue")

    tool = {"type": "function", "function": {"name": "paint", "parameters": COLOURS, "strict": True}}
    choice = {"type": "function", "function": {"name": "paint"}}
    answer = replica.chat("Paint it.", tools=[tool], tool_choice=choice, max_tokens=100)
    [call] = answer["choices"][0]["message"]["tool_calls"]
    assert call["function"]["name"] == "paint"
    assert json.loads(call["function"]["arguments"])["colour"] in ("red", "blue")


def test_what_the_engine_refuses_is_a_400_in_openais_envelope(replica: ReplicaProcess) -> None:
    for body in ({"temperature": -5}, {"max_tokens": 100_000}, {"messages": "nonsense"}):
        answer = replica.chat(**body)
        assert answer["http_status"] == 400, body
        assert answer["error"]["message"], body
    [message] = list(replica.stream(messages=[], stream=True))
    assert message.http_status == 400


def test_the_typed_stream(replica: ReplicaProcess) -> None:
    conversation = pb.Conversation(messages=[pb.ChatMessage(role="user", content="What is the capital of France?")])
    sampling = pb.SamplingConfig(max_new_tokens=12, temperature=0)
    request = pb.GenerateRequest(model=BASE, conversation=conversation, sampling=sampling)
    *parts, last = list(replica.stub.Generate(request))
    assert "Paris" in "".join(part.text for part in parts)
    assert last.finish_reason in (pb.FINISH_REASON_STOP, pb.FINISH_REASON_LENGTH)
    assert last.usage.prompt_tokens > 0
    too_long = pb.GenerateRequest(model=BASE, prompt="a", sampling=pb.SamplingConfig(max_new_tokens=100_000))
    assert failure(replica.stub.Generate(too_long)).reason == "REFUSED_BY_ENGINE"


def logprobs(answer: dict[str, Any]) -> list[float]:
    return [token["logprob"] for token in answer["choices"][0]["logprobs"]["content"]]


def test_adapters_answer_by_name_and_differ(replica: ReplicaProcess, adapters: list[str]) -> None:
    options = {"temperature": 0, "max_tokens": 3, "logprobs": True}
    base = logprobs(replica.chat(**options))
    seen = [base]
    for name in adapters:
        answer = replica.chat(model=name, **options)
        assert answer["http_status"] == 200, answer
        assert answer["model"] == name
        assert all(abs(logprobs(answer)[0] - other[0]) > 1e-3 for other in seen), name
        seen.append(logprobs(answer))
    assert len(replica.models()) == 1 + 2  # the one unused for longest made room
    again = logprobs(replica.chat(model=adapters[0], **options))
    assert again == pytest.approx(seen[1], abs=1e-3)
    assert logprobs(replica.chat(**options)) == pytest.approx(base, abs=1e-3)


def test_what_cannot_be_served_says_why(
    replica: ReplicaProcess, platform: Platform, smollm2: Path, tmp_path: Path
) -> None:
    messages = [{"role": "user", "content": "x"}]
    error = failure(replica.stream(model="smollm2-135m", messages=messages))
    assert error.reason == "MODEL_NOT_FOUND"
    assert BASE in error.metadata["close_matches"]

    platform.models.publish(_model("ft:other-base", base_model="other-base", rank=8))
    error = failure(replica.stream(model="ft:other-base", messages=messages))
    assert (error.reason, error.metadata["base_model"]) == ("BASE_MODEL_NOT_LOADED", "other-base")

    platform.models.publish(_model("ft:large", base_model=BASE, rank=64))
    assert failure(replica.stream(model="ft:large", messages=messages)).reason == "LORA_RANK_TOO_HIGH"

    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "adapter_config.json").write_text('{"r": 8, "lora_alpha": 8, "target_modules": ["q_proj"]}')
    platform.publish("ft:broken", "adapter", broken, base_model=BASE, lora_rank=8)
    error = failure(replica.stream(model="ft:broken", messages=messages))
    assert error.reason == "ADAPTER_REFUSED"
    assert "ft:broken" not in replica.models()

    dora = tmp_path / "dora"
    dora.mkdir()
    config = {"r": 8, "lora_alpha": 8, "target_modules": ["q_proj"], "use_dora": True}
    (dora / "adapter_config.json").write_text(json.dumps(config))
    platform.publish("ft:dora", "adapter", dora, base_model=BASE, lora_rank=8)
    assert failure(replica.stream(model="ft:dora", messages=messages)).reason == "ADAPTER_NEEDS_MERGE"

    request = pb.CallOpenAIRequest(route=pb.OPEN_AI_ROUTE_EMBEDDINGS, model=BASE)
    request.body = json.dumps({"model": BASE, "input": "x"}).encode()
    assert failure(replica.stub.CallOpenAI(request)).reason == "WRONG_ROUTE"
    assert replica.serving()


def test_a_client_that_goes_away_frees_the_engine(replica: ReplicaProcess) -> None:
    messages = [{"role": "user", "content": "Tell me a very long story."}]
    call = replica.stream(messages=messages, stream=True, max_tokens=1900, ignore_eos=True)
    next(call)
    next(call)
    assert replica.info().load.active_requests == 1
    assert replica.engine_metric("vllm:num_requests_running") == 1
    call.cancel()
    # 1,900 tokens take minutes here, so an engine that is idle in seconds was told to stop.
    _until(lambda: replica.engine_metric("vllm:num_requests_running") == 0, 10)
    _until(lambda: replica.info().load.active_requests == 0, 5)


def test_a_whole_model_takes_the_engines_place_and_bears_adapters_of_its_own(
    replica: ReplicaProcess, platform: Platform, smollm2: Path, adapters: list[str]
) -> None:
    """It is named by its artifact, as adapters do that were trained on one."""
    merged = f"artifacts/{platform.store('merged_model', smollm2)}"
    adapter = platform.models.get(adapters[1])
    platform.models.publish(replace(adapter, name="ft:on-merged", base_model=merged))
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    assert failure(replica.stream(model=merged, messages=messages)).reason == "MODEL_NOT_LOADED"
    assert failure(replica.stream(model="ft:on-merged", messages=messages)).reason == "BASE_MODEL_NOT_LOADED"
    options = {"temperature": 0, "max_tokens": 1, "logprobs": True}
    before = logprobs(replica.chat(model=adapters[1], **options))
    request = service_pb.LoadModelRequest(model=merged, drain_timeout=Duration(seconds=5))
    served = replica.stub.LoadModel(request, timeout=240)
    assert served.state == pb.MODEL_STATE_READY
    assert list(replica.models()) == [merged]
    assert replica.chat(model=merged, max_tokens=2)["http_status"] == 200
    assert logprobs(replica.chat(model="ft:on-merged", **options)) == pytest.approx(before, abs=1e-3)
    assert failure(replica.stream(messages=messages)).reason == "MODEL_NOT_LOADED"
    assert failure(replica.stream(model=adapters[0], messages=messages)).reason == "BASE_MODEL_NOT_LOADED"


def test_a_killed_engine_is_reported_and_started_again(replica: ReplicaProcess) -> None:
    name = next(name for name, model in replica.models().items() if model.kind == pb.MODEL_KIND_WHOLE)
    messages = [{"role": "user", "content": "Tell me a very long story."}]
    pid = replica.engine_pid()
    call = replica.stream(model=name, messages=messages, stream=True, max_tokens=1900, ignore_eos=True)
    next(call)
    os.kill(pid, signal.SIGKILL)
    assert failure(call).code == "UNAVAILABLE"
    replica.wait_serving(False)
    assert not replica.info().ready
    assert replica.models()[name].state == pb.MODEL_STATE_UNHEALTHY
    error = failure(replica.stream(model=name, messages=messages))
    assert (error.code, error.reason) == ("UNAVAILABLE", "ENGINE_NOT_READY")
    replica.wait_serving()
    assert replica.engine_pid() != pid
    assert replica.models()[name].state == pb.MODEL_STATE_READY
    assert replica.chat(model=name, max_tokens=2)["http_status"] == 200


def _model(name: str, *, base_model: str, rank: int) -> Any:
    from martlet_core.artifacts.types import PublishedModel

    return PublishedModel(name, "adapter", artifact_id="none", base_model=base_model, lora_rank=rank)


def _until(condition: Any, timeout_seconds: float) -> None:
    import time

    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
