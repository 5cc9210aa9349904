"""The engine `transformers` behind the inference contract, on a tiny model: the whole way of a request, and the answers of plain
transformers and peft at its end.

Slow, because torch is imported for the reference, at the first start and after the kill. It earns that: nothing else shows that
the token-by-token loop computes what greedy search does, with adapters too, and stops when nobody listens.
"""

from __future__ import annotations

import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from martlet.inference.v1 import inference_pb2 as pb
from martlet_core.rpc.client import error_from_rpc

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Platform, ReplicaProcess, Talking

pytestmark = [pytest.mark.slow, pytest.mark.timeout(290)]

BASE = "smollm2-135m-instruct"
ADAPTER = "ft:smollm2-135m-instruct:default::7a1c0000"


def complete(replica: ReplicaProcess, prompt: str | list[int], model: str = BASE, **fields: Any) -> dict[str, Any]:
    """The answer of /v1/completions, greedy unless asked for otherwise."""
    body = {"model": model, "prompt": prompt, "max_tokens": 24, "temperature": 0, **fields}
    request = pb.CallOpenAIRequest(
        route=pb.OPEN_AI_ROUTE_COMPLETIONS, model=model, stream=False, body=json.dumps(body).encode()
    )
    [message] = list(replica.stub.CallOpenAI(request, timeout=120))
    return json.loads(message.data) | {"http_status": message.http_status}


def text(answer: dict[str, Any]) -> str:
    return answer["choices"][0]["text"]


def test_greedy_answers_are_those_of_plain_transformers(talker: ReplicaProcess, talking: Talking) -> None:
    assert talking.said["base"] != talking.said["adapter"]
    said = {"base": BASE, "adapter": ADAPTER}
    for name, model in said.items():
        assert [text(complete(talker, prompt, model)) for prompt in talking.prompts] == talking.said[name]
    with ThreadPoolExecutor(12) as threads:  # side by side, with and without the adapter
        asked = [(name, index) for name in said for index in range(len(talking.prompts))] * 2
        answers = threads.map(lambda item: text(complete(talker, talking.prompts[item[1]], said[item[0]])), asked)
        assert list(answers) == [talking.said[name][index] for name, index in asked]


def test_an_answer_counts_its_tokens_and_its_stream_says_the_same(talker: ReplicaProcess) -> None:
    whole = talker.chat("hello", max_tokens=12, temperature=0)
    assert whole["usage"]["completion_tokens"] == 12
    assert whole["choices"][0]["finish_reason"] == "length"
    parts = talker.stream(
        messages=[{"role": "user", "content": "hello"}],
        max_tokens=12,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    events = [json.loads(part.data) for part in parts]
    said = "".join(choice["delta"].get("content") or "" for event in events for choice in event["choices"])
    assert said == whole["choices"][0]["message"]["content"]
    assert events[-1]["usage"] == whole["usage"]


def test_sampling_repeats_by_its_seed_and_stops_at_its_text(talker: ReplicaProcess, talking: Talking) -> None:
    drawn = {"temperature": 1.5, "top_p": 0.9, "top_k": 50, "n": 2}
    first, again, other = (
        [choice["text"] for choice in complete(talker, "hello", seed=seed, **drawn)["choices"]] for seed in (7, 7, 8)
    )
    assert first == again
    assert first != other
    assert first[0] != first[1]
    greedy = talking.said["base"][0]
    stop = greedy[5:7]
    stopped = complete(talker, talking.prompts[0], stop=[stop])
    assert text(stopped) == greedy[: greedy.index(stop)]
    assert stopped["choices"][0]["finish_reason"] == "stop"


def test_log_probabilities_are_those_of_the_tokens(talker: ReplicaProcess) -> None:
    told = complete(talker, "hello", logprobs=3)["choices"][0]["logprobs"]
    assert len(told["tokens"]) == len(told["token_logprobs"]) == 24
    assert all(len(top) <= 3 for top in told["top_logprobs"])
    for number, top in zip(told["token_logprobs"], told["top_logprobs"], strict=True):
        assert number == pytest.approx(max(top.values())), "greedy: the likeliest token each time"
    content = talker.chat("hello", max_tokens=4, temperature=0, logprobs=True, top_logprobs=2)
    entries = content["choices"][0]["logprobs"]["content"]
    assert [len(entry["top_logprobs"]) for entry in entries] == [2] * 4


def test_tokens_that_were_drawn_are_told_with_their_end(talker: ReplicaProcess) -> None:
    """As vLLM tells them: what a training learns from."""
    drawn = {"temperature": 2.0, "n": 8, "seed": 3, "max_tokens": 48, "logprobs": 0, "return_token_ids": True}
    choices = complete(talker, [70, 71, 72], **drawn)["choices"]
    for choice in choices:
        assert len(choice["token_ids"]) == len(choice["logprobs"]["token_logprobs"]) <= 48
        assert (choice["token_ids"][-1] == 0) == (choice["finish_reason"] == "stop"), "token 0 ends an answer"
    assert len({tuple(choice["token_ids"]) for choice in choices}) > 1
    assert "token_ids" not in complete(talker, "hello")["choices"][0]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"structured_outputs": {"choice": ["a"]}}, "structured_outputs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"max_tokens": 100_000}, "max_tokens"),
        ({"messages": [{"role": "user", "content": "x" * 5000}]}, "messages"),
    ],
)
def test_what_it_can_not_do_is_refused_by_name(talker: ReplicaProcess, fields: dict[str, Any], param: str) -> None:
    answer = talker.chat("hello", **fields)
    assert (answer["http_status"], answer["error"]["param"]) == (400, param)


def test_an_answer_that_nobody_reads_on_is_not_written_on(talker: ReplicaProcess) -> None:
    stream = talker.stream(messages=[{"role": "user", "content": "talk"}], stream=True, max_tokens=1900, temperature=0)
    next(stream)
    stream.cancel()

    def spent() -> float:
        before = talker.engine_metric("martlet:generation_tokens_total")
        complete(talker, "hello", max_tokens=4)
        return talker.engine_metric("martlet:generation_tokens_total") - before

    for _ in range(50):  # the cancel may be a turn behind
        if spent() == 4:
            return
    pytest.fail("more tokens are written than one request asks for")


def test_an_adapter_that_does_not_fit_is_refused_and_nothing_else_changes(
    talker: ReplicaProcess, platform: Platform, talking: Talking, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 8, "lora_alpha": 8, "target_modules": ["q_proj"]}
    (broken / "adapter_config.json").write_text(json.dumps(config))
    (broken / "adapter_model.safetensors").write_bytes(b"nothing")
    platform.publish("ft:broken-for-transformers", "adapter", broken, base_model=BASE, lora_rank=8)
    with pytest.raises(grpc.RpcError) as caught:
        complete(talker, "hello", "ft:broken-for-transformers")
    assert error_from_rpc(caught.value).reason == "ADAPTER_REFUSED"
    assert text(complete(talker, talking.prompts[0])) == talking.said["base"][0]
    assert text(complete(talker, talking.prompts[0], ADAPTER)) == talking.said["adapter"][0]


def test_a_killed_engine_comes_back_with_its_adapters(talker: ReplicaProcess, talking: Talking) -> None:
    os.kill(talker.engine_pid(), signal.SIGKILL)
    talker.wait_serving(False)
    talker.wait_serving()
    assert text(complete(talker, talking.prompts[0])) == talking.said["base"][0]
    assert text(complete(talker, talking.prompts[0], ADAPTER)) == talking.said["adapter"][0]
