"""Answers of replicas: what a training learns from them, what it asks the gateway, and what it does when nobody answers."""

from __future__ import annotations

import json
import statistics
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from martlet_core.child_protocol import answer_file
from martlet_core.errors import FailedPrecondition, PermissionDenied, Unavailable
from martlet_core.recipe import StopRequested
from martlet_core.service_tokens import make_service_token
from martlet_trainer import child, gateway_calls
from martlet_trainer.gateway_calls import Gateway
from martlet_trainer.recipes.training import train
from martlet_trainer.replica_answers import GatewayReplica, require_served
from martlet_trainer.replicas import Drawing, Question, Said
from martlet_trainer.testing import Recorder, training_spec
from martlet_trainer.testing_cases import ROLLOUT_OPTIONS, recipe_rows
from martlet_trainer.testing_http import ScriptedServer
from peft import PeftModel
from transformers import AutoModelForCausalLM

MakeWorkdir = Callable[..., Path]
VIA = {"via": "inference"}


class LocalReplica:
    """A replica in this process: reads each adapter that it is given, as an engine does, and draws by seeds."""

    def __init__(self, base: Path, directory: Path) -> None:
        self._base, self._directory = base, directory
        self.published: list[int] = []
        self.asked: list[tuple[int, int, float]] = []
        self._model: Any = None

    def publish(self, number: int, save: Callable[[Path], None]) -> None:
        path = self._directory / str(number)
        save(path)
        base: Any = AutoModelForCausalLM.from_pretrained(self._base)
        self._model = PeftModel.from_pretrained(base, str(path)).eval()
        self.published.append(number)

    @torch.no_grad()
    def ask(self, number: int, questions: Sequence[Question], drawing: Drawing) -> Sequence[Sequence[Said]]:
        assert number == self.published[-1]
        return [[self._say(question, index, drawing) for index in range(drawing.count)] for question in questions]

    def _say(self, question: Question, index: int, drawing: Drawing) -> Said:
        self.asked.append((question.seed, index, drawing.temperature))
        generator = torch.Generator().manual_seed(question.seed + index)
        tokens, log_probs = list(question.tokens), []
        for _ in range(drawing.max_tokens):
            scores = self._model(input_ids=torch.tensor([tokens])).logits[0, -1].log_softmax(-1)
            token = int(scores.argmax())
            if drawing.temperature:
                token = int(torch.multinomial((scores / drawing.temperature).softmax(-1), 1, generator=generator))
            tokens.append(token)
            log_probs.append(float(scores[token]))
            if token == self._model.generation_config.eos_token_id:
                break
        return Said(tokens[len(question.tokens) :], log_probs)


def spec_of(recipe: str = "grpo", rollouts: Mapping[str, Any] = VIA, **changes: Any) -> dict[str, Any]:
    numbers = {"max_steps": 20, "per_device_batch_size": 4, "learning_rate": 1e-2, **changes.pop("hyperparameters", {})}
    options = {**ROLLOUT_OPTIONS, "rollouts": rollouts, **changes.pop("recipe_options", {})}
    return training_spec(recipe=recipe, hyperparameters=numbers, recipe_options=options, **changes)


def go(
    workdir: Path, base: Path, spec: Mapping[str, Any], stop: Callable[[Recorder], bool] = lambda report: False
) -> tuple[Any, Recorder, LocalReplica]:
    report, replica = Recorder(), LocalReplica(base, workdir / "adapters")
    result = train(spec, workdir, report, lambda: stop(report), replica=replica)
    return result, report, replica


def test_the_reward_rises_and_replicas_get_each_steps_adapter(make_workdir: MakeWorkdir, tiny_model_dir: Path) -> None:
    rows = recipe_rows("grpo", 16)
    workdir = make_workdir("a", rows, validation=recipe_rows("grpo", 4, 16))
    spec = spec_of(validation_dataset="artifacts/b", hyperparameters={"max_steps": 20, "eval_steps": 20})
    result, report, replica = go(workdir, tiny_model_dir, spec)
    rewards = [report.steps[step]["reward"] for step in sorted(report.steps)]
    assert statistics.mean(rewards[-5:]) > statistics.mean(rewards[:5]) + 0.2
    assert replica.published == list(range(21)), "before each step, and once more for the validation"
    assert {temperature for *_, temperature in replica.asked} == {0.0, ROLLOUT_OPTIONS.get("temperature", 0.9)}
    ratios = [report.steps[step]["importance_ratio"] for step in range(1, 21)]
    assert ratios == pytest.approx([1.0] * 20, abs=1e-3), "drawn by the weights that learn, in the same arithmetic"
    assert all(report.steps[step]["clipped"] == 0 for step in range(1, 21))
    assert result.values["metrics"]["valid_reward"] > 0.5
    drawn = [entry for entry in replica.asked if entry[2]]
    assert len(set(drawn)) == len(drawn), "no seed twice"


def test_it_goes_on_from_a_checkpoint_as_if_it_had_never_stopped(
    make_workdir: MakeWorkdir, tiny_model_dir: Path
) -> None:
    rows, spec = recipe_rows("rloo", 10), spec_of("rloo", hyperparameters={"max_steps": 4})
    whole, _, _ = go(make_workdir("whole", rows), tiny_model_dir, spec)
    first = make_workdir("first", rows)
    with pytest.raises(StopRequested):
        go(first, tiny_model_dir, spec, lambda report: len(report.losses) >= 2)
    second = make_workdir("second", rows, resume=first / "checkpoints" / "step-2")
    resumed, _, replica = go(second, tiny_model_dir, spec)
    assert replica.published == [2, 3]
    files = [found.outputs["model"].path / "adapter_model.safetensors" for found in (whole, resumed)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_answers_of_older_weights_are_learned_by_their_ratio_and_clipped(
    make_workdir: MakeWorkdir, tiny_model_dir: Path
) -> None:
    spec = spec_of(rollouts={**VIA, "sync_steps": 3, "epsilon": 0.05}, hyperparameters={"max_steps": 7})
    _, report, replica = go(make_workdir("a", recipe_rows("grpo", 12)), tiny_model_dir, spec)
    assert replica.published == [0, 3, 6]
    apart = [abs(report.steps[step]["importance_ratio"] - 1) for step in range(1, 8)]
    assert max(apart[0], apart[3], apart[6]) < 1e-3 < max(apart)
    assert sum(report.steps[step]["clipped"] for step in (1, 4, 7)) == 0
    assert sum(report.steps[step]["clipped"] for step in (2, 3, 5, 6)) > 0


def test_distillation_draws_its_own_answers_there_too(make_workdir: MakeWorkdir, tiny_model_dir: Path) -> None:
    options = {"teacher_model": "t", "lmbda": 1.0, "max_completion_length": 4, "rollouts": {**VIA, "sync_steps": 2}}
    spec = training_spec(
        recipe="distill",
        recipe_options=options,
        hyperparameters={"max_steps": 3, "per_device_batch_size": 2, "learning_rate": 1e-2},
    )
    workdir = make_workdir("a", recipe_rows("grpo", 4), teacher=tiny_model_dir)
    _, report, replica = go(workdir, tiny_model_dir, spec)
    assert replica.published == [0, 2]
    assert [report.steps[step]["on_policy"] for step in (1, 2, 3)] == [1, 1, 1]


class PublishingRecorder(Recorder):
    """A report whose supervisor answers at once, as it is told to."""

    def __init__(self, workdir: Path, answer: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self._workdir, self._answer = workdir, answer
        self.handed_over: list[list[str]] = []

    def temporary_model(self, path: Path, number: int) -> None:
        self.handed_over.append(sorted(file.name for file in path.iterdir()))
        if self._answer is None:
            return
        file = answer_file(self._workdir, number)
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(self._answer or {"model": f"ft:tiny:acme::x:rollouts-1-{number}"}))


def choices(count: int, **changes: Any) -> dict[str, Any]:
    """An answer of /v1/completions, last choice first."""
    found = [
        {"index": i, "text": "", "token_ids": [5 + i, 2], "logprobs": {"token_logprobs": [-0.5 - i, -1]}} | changes
        for i in range(count)
    ]
    return {"choices": found[::-1]}


def never() -> bool:
    return False


def replica_of(server: ScriptedServer, workdir: Path, stop: Callable[[], bool] = never) -> GatewayReplica:
    answer_file(workdir, 3).parent.mkdir(exist_ok=True)
    answer_file(workdir, 3).write_text('{"model": "ft:tiny:acme::x:rollouts-1-3"}')
    gateway = Gateway(server.url, make_service_token("internal", "acme"), stop)
    return GatewayReplica(gateway, workdir, Recorder(), stop)


def test_tokens_are_asked_for_and_come_back(tmp_path: Path) -> None:
    questions = [Question((7, 8, 9), 11), Question((4,), 12)]
    with ScriptedServer((200, choices(2))) as server:
        said = replica_of(server, tmp_path).ask(3, questions, Drawing(2, 6, 0.9))
    assert [[(found.tokens, found.log_probs) for found in answers] for answers in said] == [
        [([5, 2], [-0.5, -1]), ([6, 2], [-1.5, -1])]
    ] * 2
    assert {(route, token[:11]) for route, token, _ in server.asked} == {("/v1/completions", "Bearer mst-")}
    bodies = sorted((body for *_, body in server.asked), key=lambda body: body["seed"])
    assert bodies[0] == {
        "model": "ft:tiny:acme::x:rollouts-1-3",
        "prompt": [7, 8, 9],
        "n": 2,
        "max_tokens": 6,
        "temperature": 0.9,
        "top_p": 1.0,
        "top_k": -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "seed": 11,
        "logprobs": 0,
        "return_token_ids": True,
    }
    assert (bodies[1]["prompt"], bodies[1]["seed"]) == ([4], 12)


def test_replicas_that_are_away_are_asked_again(tmp_path: Path) -> None:
    with ScriptedServer((503, {"error": {"message": "loading"}}), (429, ""), (200, choices(1))) as server:
        [[said]] = replica_of(server, tmp_path).ask(3, [Question((1,), 1)], Drawing(1, 6, 0.9))
    assert (said.tokens, len(server.asked)) == ([5, 2], 3)


@pytest.mark.parametrize(
    ("status", "answer", "message"),
    [
        (400, {"error": {"message": "rank 128 is too large"}}, r"HTTP 400\): rank 128 is too large"),
        (200, choices(2), "2 answers for 1"),
        (200, choices(1, token_ids=None), "return_token_ids"),
        (200, choices(1, token_ids=[]), "0 tokens with 2"),
        (200, choices(1, logprobs=None), "its engine must be vllm or transformers"),
        (200, choices(1, token_ids=[5, "2"]), "a token is no number"),
        (200, '{"choices": [{"index": 0, "token_ids": [1], "logprobs": {"token_logprobs": [NaN]}}]}', "not finite"),
        (200, "[1]", "no JSON object"),
    ],
)
def test_what_is_no_answer_fails_the_job(tmp_path: Path, status: int, answer: Any, message: str) -> None:
    with ScriptedServer((status, answer)) as server, pytest.raises(FailedPrecondition, match=message) as caught:
        replica_of(server, tmp_path).ask(3, [Question((1,), 1)], Drawing(1, 6, 0.9))
    assert (caught.value.reason, len(server.asked)) == ("ROLLOUTS_REFUSED", 1)


def test_a_job_that_is_to_stop_waits_no_longer_also_for_an_answer_under_way(tmp_path: Path) -> None:
    asked, go_on = threading.Event(), threading.Event()

    def slow(body: Any) -> str:
        asked.set()
        go_on.wait(10)
        return json.dumps(choices(1))

    with ScriptedServer((200, slow)) as server, pytest.raises(StopRequested):
        replica_of(server, tmp_path, asked.is_set).ask(3, [Question((1,), 1)], Drawing(1, 6, 0.9))
    go_on.set()
    report = PublishingRecorder(tmp_path, None)  # a supervisor that doesn't answer
    waiting = GatewayReplica(Gateway("http://127.0.0.1:9/v1", "t", never), tmp_path, report, lambda: True)
    with pytest.raises(StopRequested):
        waiting.publish(4, lambda path: path.mkdir(parents=True))


def test_patience_ends_and_a_token_that_is_over_ends_the_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway_calls, "PATIENCE_SECONDS", 0.3)
    with ScriptedServer((503, {"error": {"message": "no replica"}})) as server, pytest.raises(Unavailable) as caught:
        replica_of(server, tmp_path).ask(3, [Question((1,), 1)], Drawing(1, 6, 0.9))
    assert caught.value.reason == "GATEWAY_UNAVAILABLE"
    assert "HTTP 503: no replica" in caught.value.message
    with ScriptedServer((401, "")) as server:
        with pytest.raises(PermissionDenied, match="MARTLET_INTERNAL_TOKEN"):
            replica_of(server, tmp_path).ask(3, [Question((1,), 1)], Drawing(1, 6, 0.9))
        over = Gateway(server.url, make_service_token("internal", "acme", -5.0), never)
        with pytest.raises(Unavailable, match="the next attempt gets a new one"):
            over.model("tiny")
    silent = GatewayReplica(over, tmp_path, PublishingRecorder(tmp_path, None), never)
    with pytest.raises(Unavailable, match="not published in time"):
        silent.publish(4, lambda path: path.mkdir(parents=True))


def test_an_adapter_is_handed_over_and_what_the_supervisor_says_counts(tmp_path: Path) -> None:
    gateway = Gateway("http://127.0.0.1:9/v1", "t", never)

    def save(path: Path) -> None:
        path.mkdir(parents=True)
        (path / "adapter_config.json").write_text("{}")

    report = PublishingRecorder(tmp_path, {})
    GatewayReplica(gateway, tmp_path, report, never).publish(0, save)
    assert report.handed_over == [["adapter_config.json"]]
    assert not list((tmp_path / "rollouts").iterdir()), "it is stored by then"
    refusal = FailedPrecondition("the base is gone", reason="INPUT_GONE")
    report = PublishingRecorder(tmp_path, {"error": refusal.to_dict()})
    with pytest.raises(FailedPrecondition, match="the base is gone"):
        GatewayReplica(gateway, tmp_path, report, never).publish(1, save)
    with pytest.raises(FailedPrecondition, match="by the trainer's worker"):
        GatewayReplica(gateway, tmp_path, Recorder(), never).publish(2, save)


def config_of(base: Path, url: str, cache: Path, spec: Mapping[str, Any]) -> dict[str, Any]:
    """What a worker starts the training's process with."""
    return {
        "spec": spec,
        "base_model": {"kind": "path", "value": str(base), "cache_dir": str(cache)},
        "hub_datasets": {},
        "token_cache": str(cache / "tokens"),
        "allowed_reward_services": [],
        "gateway": {"base_url": url, "token": make_service_token("internal", "acme")},
    }


@pytest.mark.parametrize(
    ("status", "answer"),
    [(200, {"id": "tiny", "martlet": {"replicas": []}}), (404, {"error": {"message": "does not exist"}})],
)
def test_a_base_that_nobody_serves_is_refused_before_anything_is_loaded(
    tmp_path: Path, tiny_model_dir: Path, status: int, answer: Any
) -> None:
    with ScriptedServer((status, answer)) as server:
        config = config_of(tiny_model_dir, server.url, tmp_path, spec_of())
        with pytest.raises(FailedPrecondition, match=r"MARTLET_MODEL=tiny.*rollouts\.via to training") as caught:
            child.run_training(config, tmp_path, Recorder(), never)
    assert caught.value.reason == "ROLLOUTS_NOT_SERVED"
    assert server.asked[0][0] == "/v1/models/tiny"


def test_a_base_that_is_served_is_none_to_refuse() -> None:
    with ScriptedServer((200, {"id": "a/b", "martlet": {"replicas": [{"name": "replicas/1"}]}})) as server:
        require_served(Gateway(server.url, "t", never), "a/b")
    assert server.asked[0][0] == "/v1/models/a%2Fb"


@pytest.fixture
def served(tiny_model_dir: Path, tmp_path: Path) -> Iterator[tuple[ScriptedServer, LocalReplica]]:
    """A gateway whose replica answers with the adapters that it finds in a directory."""
    local = LocalReplica(tiny_model_dir, tmp_path / "served")
    lock = threading.Lock()

    def answer(body: Any) -> str:
        if body is None:
            return json.dumps({"martlet": {"replicas": [{"name": "replicas/1"}]}})
        with lock:
            drawing = Drawing(body["n"], body["max_tokens"], body["temperature"])
            [said] = local.ask(local.published[-1], [Question(body["prompt"], body["seed"])], drawing)
        found = [
            {"index": i, "token_ids": list(one.tokens), "logprobs": {"token_logprobs": list(one.log_probs)}}
            for i, one in enumerate(said)
        ]
        return json.dumps({"choices": found})

    with ScriptedServer((200, answer)) as server:
        yield server, local


def test_a_jobs_process_trains_through_the_gateway(
    tmp_path: Path, make_workdir: MakeWorkdir, tiny_model_dir: Path, served: tuple[ScriptedServer, LocalReplica]
) -> None:
    """As a worker starts it, in one process and in two: the adapters that are handed over are those that answer."""
    server, local = served

    class Serving(PublishingRecorder):
        def temporary_model(self, path: Path, number: int) -> None:
            def copy(target: Path) -> None:
                target.mkdir(parents=True)
                for file in path.iterdir():
                    (target / file.name).write_bytes(file.read_bytes())

            local.published.clear()
            local._directory = tmp_path / f"served-{len(server.asked)}"
            local.publish(number, copy)
            super().temporary_model(path, number)

    for count in (1, 2):
        workdir = make_workdir(f"w{count}", recipe_rows("grpo", 8))
        (workdir / "inputs" / "base_model").unlink()
        spec = spec_of(hyperparameters={"max_steps": 2}, resources={"device": "cpu", "device_count": count})
        config = config_of(tiny_model_dir, server.url, tmp_path, spec)
        report = Serving(workdir, {})
        with pytest.MonkeyPatch.context() as patched:
            patched.setenv("GLOO_SOCKET_IFNAME", "lo")
            result = child.run_training(config, workdir, report, never)
        assert "adapter_model.safetensors" in report.handed_over[0]
        assert len(report.handed_over) == 2
        assert report.steps[1]["importance_ratio"] == pytest.approx(1.0, abs=1e-3)
        assert result.outputs["model"].kind == "adapter"
