"""Rewards from services: the example's, and ones that fail in every way that services do, over HTTP and gRPC."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from martlet.trainer.v1 import reward_service_pb2, reward_service_pb2_grpc
from martlet_core.errors import FailedPrecondition, InvalidArgument, PermissionDenied, Unavailable
from martlet_core.recipe import StopRequested
from martlet_trainer import child, reward_services
from martlet_trainer.config import parse_recipe_options, parse_training_config
from martlet_trainer.recipes.options import RewardServiceOptions
from martlet_trainer.rewards import Answer
from martlet_trainer.testing import Recorder, lay_out, training_spec
from martlet_trainer.testing_cases import ROLLOUT_OPTIONS, recipe_rows
from martlet_trainer.testing_http import ScriptedServer

EXAMPLE = Path(__file__).parents[3] / "examples" / "reward-service" / "serve.py"
ANSWERS = [
    Answer("ab", 2, {"solution": 2, "level": "easy"}, ({"role": "user", "content": "1+1?"},)),
    Answer("A", 1, {}, ({"role": "user", "content": "why?"},)),
]


def never() -> bool:
    return False


def ask(
    answers: Sequence[Answer] = ANSWERS, should_stop: Callable[[], bool] = never, **service: Any
) -> Sequence[float]:
    options = RewardServiceOptions(name="mine", **service)
    return reward_services.connect([options], should_stop)["mine"](answers)


@pytest.fixture(scope="module")
def example() -> Iterator[str]:
    """The URL of the example."""
    with subprocess.Popen([sys.executable, str(EXAMPLE), "0"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.terminate()


def config_of(base: Path, url: str, allowed: Sequence[str], cache: Path, **changes: Any) -> dict[str, Any]:
    """What a worker starts the training's process with."""
    options = {**ROLLOUT_OPTIONS, "rewards": [{"name": "length", "target": 3, "weight": 0.5}]}
    options["reward_services"] = [{"name": "small_letters", "url": url, "weight": 2}]
    numbers = {"max_steps": 6, "learning_rate": 1e-2, **changes.pop("hyperparameters", {})}
    spec = training_spec(recipe="grpo", recipe_options=options, hyperparameters=numbers, **changes)
    return {
        "spec": spec,
        "base_model": {"kind": "path", "value": str(base), "cache_dir": str(cache)},
        "hub_datasets": {},
        "token_cache": str(cache / "tokens"),
        "allowed_reward_services": list(allowed),
    }


def workdir_of(path: Path, base: Path, **inputs: Any) -> Path:
    """A working directory as the supervisor lays it out: without the base model, which the process brings."""
    workdir = lay_out(path, base, recipe_rows("grpo", 12), **inputs)
    (workdir / "inputs" / "base_model").unlink()
    return workdir


def test_a_training_learns_what_the_examples_service_rewards(
    tmp_path: Path, tiny_model_dir: Path, example: str
) -> None:
    """As a job's process runs it; stopped on the way and gone on with, it ends with the same weights."""

    def go(name: str, stop_at: int = 0, **inputs: Any) -> tuple[Any, Recorder]:
        report = Recorder()
        config = config_of(tiny_model_dir, example, [example], tmp_path / "cache", hyperparameters={"max_steps": 24})
        workdir = workdir_of(tmp_path / name, tiny_model_dir, **inputs)
        stop = (lambda: len(report.losses) >= stop_at) if stop_at else never
        return child.run_training(config, workdir, report, stop), report

    whole, report = go("whole")
    rewards = [report.steps[step]["reward_small_letters"] for step in sorted(report.steps)]
    assert sum(rewards[-6:]) > sum(rewards[:6]) + 0.5
    step = report.steps[3]
    assert step["reward"] == pytest.approx(0.5 * step["reward_length"] + 2 * step["reward_small_letters"], abs=1e-5)
    with pytest.raises(StopRequested):
        go("half", stop_at=12)
    rest, _ = go("rest", resume=tmp_path / "half" / "checkpoints" / "step-12")
    files = [result.outputs["model"].path / "adapter_model.safetensors" for result in (whole, rest)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_each_process_of_a_training_asks(
    tmp_path: Path, tiny_model_dir: Path, example: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    resources = {"device": "cpu", "device_count": 2}
    config = config_of(
        tiny_model_dir, example, [example], tmp_path / "cache", hyperparameters={"max_steps": 2}, resources=resources
    )
    report = Recorder()
    child.run_training(config, workdir_of(tmp_path / "a", tiny_model_dir), report, never)
    assert all(0 <= report.steps[step]["reward_small_letters"] <= 1 for step in (1, 2))


def test_the_worker_too_refuses_what_the_operator_did_not_allow(tmp_path: Path, tiny_model_dir: Path) -> None:
    config = config_of(tiny_model_dir, "http://127.0.0.1:1/", ["http://127.0.0.1:2/"], tmp_path / "cache")
    with pytest.raises(PermissionDenied, match="MARTLET_ALLOWED_REWARD_SERVICES") as caught:
        child.run_training(config, workdir_of(tmp_path / "a", tiny_model_dir), Recorder(), never)
    assert caught.value.reason == "REWARD_SERVICE_NOT_ALLOWED"


def test_a_service_is_told_the_question_the_answer_and_the_row() -> None:
    with ScriptedServer((200, '{"rewards": [1, 0.25]}')) as server:
        assert ask(url=server.url) == [1.0, 0.25]
    assert [body for *_, body in server.asked] == [
        {
            "prompts": [[{"role": "user", "content": "1+1?"}], [{"role": "user", "content": "why?"}]],
            "completions": ["ab", "A"],
            "rows": [{"solution": 2, "level": "easy"}, {}],
        }
    ]


def test_a_service_that_is_away_is_asked_again() -> None:
    with ScriptedServer((503, "busy"), (429, ""), (200, '{"rewards": [1, 2]}')) as server:
        assert ask(url=server.url) == [1.0, 2.0]
    assert len(server.asked) == 3


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (200, '{"rewards": [1]}', "gave 1 rewards for 2 answers"),
        (200, '{"rewards": [1, 2, 3]}', "gave 3 rewards for 2 answers"),
        (200, '{"rewards": [1, NaN]}', "gave nan for answer 1"),
        (200, '{"rewards": [1, null]}', "gave None for answer 1"),
        (200, '{"rewards": ["1", 2]}', "gave '1' for answer 0"),
        (200, '{"rewards": [true, 2]}', "gave True for answer 0"),
        (200, '{"rewards": 1}', "gave int rewards"),
        (200, "[1, 2]", 'no JSON object with "rewards"'),
        (200, "oops", 'no JSON object with "rewards": oops'),
        (400, "no", "answered HTTP 400: no"),
        (302, "", "answered HTTP 302"),
    ],
)
def test_what_is_no_reward_fails_and_names_the_service(status: int, body: str, message: str) -> None:
    with ScriptedServer((status, body)) as server, pytest.raises(FailedPrecondition, match=message) as caught:
        ask(url=server.url)
    assert caught.value.reason == "REWARD_SERVICE_FAILED"
    assert f"mine ({server.url})" in caught.value.message
    assert len(server.asked) == 1


def test_a_job_that_is_to_stop_waits_no_longer() -> None:
    with pytest.raises(StopRequested):
        ask(url="http://127.0.0.1:9/", should_stop=lambda: True)


def test_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reward_services, "PATIENCE_SECONDS", 0.3)
    with pytest.raises(Unavailable, match="mine") as caught:
        ask(url="http://127.0.0.1:9/")
    assert caught.value.reason == "REWARD_SERVICE_UNAVAILABLE"


class Judge(reward_service_pb2_grpc.RewardServiceServicer):
    """Gives an answer's length, after failing as it is told to."""

    def __init__(self) -> None:
        self.failures: list[grpc.StatusCode] = []
        self.asked: list[reward_service_pb2.ScoreRequest] = []

    def Score(self, request: reward_service_pb2.ScoreRequest, context: Any) -> reward_service_pb2.ScoreResponse:
        self.asked.append(request)
        if self.failures:
            context.abort(self.failures.pop(0), "not now")
        return reward_service_pb2.ScoreResponse(rewards=[len(found.text) for found in request.completions])


@pytest.fixture
def judge() -> Iterator[tuple[Judge, str]]:
    """A gRPC service and its address."""
    judge, server = Judge(), grpc.server(ThreadPoolExecutor(2))
    reward_service_pb2_grpc.add_RewardServiceServicer_to_server(judge, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield judge, f"127.0.0.1:{port}"
    server.stop(None)


def test_grpc(judge: tuple[Judge, str]) -> None:
    service, address = judge
    service.failures = [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED]
    assert ask(address=address) == [2.0, 1.0]
    assert len(service.asked) == 3
    first = service.asked[0].completions[0]
    assert (first.text, first.row["solution"], first.prompt[0]["content"]) == ("ab", 2.0, "1+1?")
    service.failures = [grpc.StatusCode.INVALID_ARGUMENT]
    with pytest.raises(FailedPrecondition, match=r"mine \(127.0.0.1:\d+\) answered INVALID_ARGUMENT: not now"):
        ask(address=address)


@pytest.mark.parametrize(
    ("service", "message"),
    [
        ({"name": "a"}, "give url"),
        ({"name": "a", "url": "http://a/", "address": "a:1"}, "give url"),
        ({"name": "a", "url": "ftp://a/"}, "reward_services"),
        ({"name": "a", "url": "http://user:secret@a/"}, "reward_services"),
        ({"name": "a b", "url": "http://a/"}, "reward_services"),
        ({"name": "a", "address": "a"}, "reward_services"),
        ({"name": "length", "address": "a:1"}, "each name may be given once"),
    ],
)
def test_wrong_services_are_refused_at_submission(service: dict[str, Any], message: str) -> None:
    options = {"rewards": [{"name": "length", "target": 3}], "reward_services": [service]}
    spec = {"base_model": "m", "training_dataset": "artifacts/a", "recipe": "grpo", "recipe_options": options}
    with pytest.raises(InvalidArgument, match=message):
        parse_training_config(spec)


def test_accuracy_is_the_reward_where_none_is_named() -> None:
    def rewards(**options: Any) -> list[str]:
        spec = {"base_model": "m", "training_dataset": "artifacts/a", "recipe": "rloo", "recipe_options": options}
        found: Any = parse_recipe_options(parse_training_config(spec))
        return [reward.name for reward in (*found.rewards, *found.reward_services)]

    assert rewards() == ["accuracy"]
    assert rewards(reward_services=[{"name": "a", "url": "http://a/"}]) == ["a"]
    with pytest.raises(InvalidArgument, match="rewards: is empty"):
        rewards(rewards=[])
