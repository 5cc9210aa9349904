"""Bad input to quantizing, evaluating and runs, three ways: as REST, gRPC and the command answer it. None becomes a job or a
run, and none is a fault of ours. Mistakes in training are in ../test_bad_input.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from google.protobuf.json_format import ParseDict
from martlet.evaluator.v1 import evaluation_service_pb2, evaluation_service_pb2_grpc
from martlet.gateway.v1 import run_service_pb2, run_service_pb2_grpc
from martlet.quantizer.v1 import quantization_service_pb2, quantization_service_pb2_grpc
from martlet_cli.testing import RunningPlatform
from martlet_core.rpc.client import error_from_rpc

Drill = Any  # the fixture's class; conftest modules can't be imported
OURS = (500, "INTERNAL", "UNKNOWN")
MODEL = "smollm2-135m-instruct"
EVALUATE = """\
name: mistaken
steps:
  measure:
    kind: evaluate
    with:
      targets: [{name: base, model: smollm2-135m-instruct}]
      dataset: ROWS
      suites: [{suite: exact_match}]
  gate:
    kind: gate
    with: {require: [measure.base.accuracy >= 0]}
"""
CYCLE = """\
name: round
steps:
  one:
    kind: merge
    with: {adapter: "${two.artifact}"}
  two:
    kind: merge
    with: {adapter: "${one.artifact}"}
"""


@dataclass(frozen=True)
class Bad:
    """A mistake: what is asked for, and what must be told of it.

    Attributes:
        kind: ``quantization``, ``evaluation`` or ``run``.
        ask: the spec, or the text of the run, of the files that are there.
        status: HTTP's, gRPC's.
        reason: the word for programs, as gRPC has it.
        parts: of the text for people: the field, and the remedy.
        command: arguments of the command; None: it submits a run with that spec as its one step.
    """

    kind: str
    ask: Callable[[Mapping[str, str]], Any]
    status: tuple[int, str]
    reason: str
    parts: tuple[str, ...]
    command: Callable[[Mapping[str, Path]], tuple[str, ...]] | None = None


def _quantize(**spec: Any) -> dict[str, Any]:
    return {"model": MODEL, "method": "w4a16", **spec}


def _evaluate(target: Mapping[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    suites = [{"suite": "exact_match"}]
    return {"targets": [target or {"name": "base", "model": MODEL}], "suites": suites, **spec}


_ELSEWHERE = {"name": "x", "model": "m", "engine": "TARGET_ENGINE_EXTERNAL", "base_url": "http://127.0.0.1:1/v1"}
_GSM8K = {"suite": "lm_eval", "options": {"tasks": [{"task": "gsm8k"}]}}
CASES = {
    "calibration_set_too_small": Bad(
        "quantization",
        lambda at: _quantize(calibration={"dataset": at["few"]}),
        (400, "INVALID_ARGUMENT"),
        "TOO_FEW_CALIBRATION_ROWS",
        ("calibration.dataset", "has 15 rows", "at least 16", "Bring more, or leave it out"),
        lambda path: ("quantize", MODEL, "--method", "w4a16", "--dataset", str(path["few"])),
    ),
    "calibration_set_from_the_evaluation_rows": Bad(
        "quantization",
        lambda at: _quantize(calibration={"dataset": at["rows"]}, evaluation_dataset=at["some"]),
        (400, "INVALID_ARGUMENT"),
        "CALIBRATION_OVERLAPS_EVALUATION",
        ("evaluation_dataset", "shares 18 of its 18 rows", "calibration"),
        lambda path: (
            *("quantize", MODEL, "--method", "w4a16", "--dataset", str(path["rows"])),
            *("--evaluation_dataset", str(path["some"])),
        ),
    ),
    "method_impossible_for_the_architecture": Bad(
        "quantization",
        lambda at: {"model": at["odd"], "method": "gguf"},
        (400, "INVALID_ARGUMENT"),
        "METHOD_IMPOSSIBLE",
        ("method", "gguf can't quantize a 'bloom' model", "llama", "methods that may:", "bnb-nf4"),
        lambda path: ("quantize", f"file://{path['odd']}", "--method", "gguf"),
    ),
    "target_that_may_not_be_asked": Bad(
        "evaluation",
        lambda at: _evaluate(_ELSEWHERE, dataset=at["rows"]),
        (403, "PERMISSION_DENIED"),
        "BASE_URL_NOT_ALLOWED",
        ("targets.0.base_url", "http://127.0.0.1:1/v1", "MARTLET_ALLOWED_BASE_URLS"),
    ),
    "target_that_does_not_exist": Bad(
        "evaluation",
        lambda at: _evaluate({"name": "base", "model": MODEL + "s"}, dataset=at["rows"]),
        (404, "NOT_FOUND"),
        "MODEL_NOT_FOUND",
        ("targets.0.model", MODEL + "s", MODEL),
        lambda path: ("evaluate", MODEL + "s", "--dataset", str(path["rows"])),
    ),
    "benchmark_without_data": Bad(
        "evaluation",
        lambda at: {**_evaluate(), "suites": [_GSM8K]},
        (400, "INVALID_ARGUMENT"),
        "NO_BENCHMARK_DATA",
        ("suites.0.options.tasks.0.dataset", "gsm8k has no data here", "nothing is fetched", "upload its rows"),
        lambda path: ("evaluate", MODEL, "--suite", "lm_eval", "--options", json.dumps(_GSM8K["options"])),
    ),
    "gate_on_an_unknown_metric": Bad(
        "run",
        lambda at: EVALUATE.replace("ROWS", at["rows"]).replace("base.accuracy", "base.acuracy"),
        (400, "INVALID_ARGUMENT"),
        "INVALID_RUN",
        ("line 11", "measure", "base.acuracy", "Did you mean `base.exact_match.accuracy`?"),
    ),
    "run_with_a_cycle": Bad(
        "run",
        lambda at: CYCLE,
        (400, "INVALID_ARGUMENT"),
        "INVALID_RUN",
        ("line 3", "steps need one another in a circle: one -> two -> one", "Take one of these needs away"),
    ),
    "run_with_a_misspelt_key": Bad(
        "run",
        lambda at: EVALUATE.replace("ROWS", at["rows"]).replace("suites:", "suits:"),
        (400, "INVALID_ARGUMENT"),
        "INVALID_RUN",
        ("line 8, column 7", "`suits` is not known here", "Did you mean `suites`?"),
    ),
}


@dataclass(frozen=True)
class Files:
    """Rows by name: on disk, and as artifacts."""

    platform: RunningPlatform
    paths: dict[str, Path]
    names: dict[str, str]


@pytest.fixture(scope="module")
def files(drill: Drill, tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Rows that are enough, some of the same, too few of others; and a model that is no Llama, where models may be."""
    directory = tmp_path_factory.mktemp("mistaken")
    numbers = {"rows": range(24), "some": range(18), "few": range(100, 115)}
    paths, names = {}, {}
    for name, of in numbers.items():
        paths[name] = directory / f"{name}.jsonl"
        turns = [[{"role": "user", "content": f"tree {n}"}, {"role": "assistant", "content": f"oak {n}"}] for n in of]
        paths[name].write_text("".join(json.dumps({"messages": turn}) + "\n" for turn in turns))
        uploaded = drill.platform.martlet("files", "upload", str(paths[name]))[0]["id"]
        names[name] = "artifacts/" + uploaded.removeprefix("file-")
    paths["odd"] = drill.platform.home / "models" / "odd"
    paths["odd"].mkdir()
    (paths["odd"] / "config.json").write_text('{"model_type": "bloom", "architectures": ["BloomForCausalLM"]}')
    return Files(drill.platform, paths, {**names, "odd": f"file://{paths['odd']}"})


@dataclass(frozen=True)
class Answer:
    """What came back: HTTP status, gRPC status or exit code; the word for programs; the text for people."""

    status: int | str
    reason: str
    message: str


def by_rest(files: Files, case: Bad, tmp_path: Path) -> Answer:
    """Ask over REST."""
    asked = case.ask(files.names)
    path, body = ("runs", {"source": asked}) if case.kind == "run" else (f"{case.kind}/jobs", {"spec": asked})
    headers = {"authorization": f"Bearer {files.platform.api_key}"}
    answer = httpx.post(f"{files.platform.base_url}/martlet/{path}", json=body, headers=headers, timeout=120)
    error = answer.json().get("error") or {"code": "none", "message": answer.text}
    return Answer(answer.status_code, error["code"].upper(), error["message"])


def by_grpc(files: Files, case: Bad, tmp_path: Path) -> Answer:
    """Ask the gateway over gRPC."""
    asked = case.ask(files.names)
    stub, method, request = {
        "quantization": (
            quantization_service_pb2_grpc.QuantizationServiceStub,
            "CreateQuantizationJob",
            lambda: quantization_service_pb2.CreateQuantizationJobRequest(),
        ),
        "evaluation": (
            evaluation_service_pb2_grpc.EvaluationServiceStub,
            "CreateEvaluationJob",
            lambda: evaluation_service_pb2.CreateEvaluationJobRequest(),
        ),
        "run": (run_service_pb2_grpc.RunServiceStub, "CreateRun", lambda: run_service_pb2.CreateRunRequest()),
    }[case.kind]
    spec = {"source": asked} if case.kind == "run" else asked
    of = "run" if case.kind == "run" else f"{case.kind}_job"
    with grpc.insecure_channel(files.platform.grpc_address) as channel:
        metadata = (("authorization", f"Bearer {files.platform.api_key}"),)
        try:
            said = getattr(stub(channel), method)(
                ParseDict({of: {"spec": spec}}, request()), metadata=metadata, timeout=120
            )
        except grpc.RpcError as failure:
            error = error_from_rpc(failure)
            return Answer(error.code, error.reason, error.message)
    return Answer("OK", "none", str(said))


def by_command(files: Files, case: Bad, tmp_path: Path) -> Answer:
    """Ask at the command: with arguments where it has them, else with a run."""
    if case.command is not None:
        argv = case.command(files.paths)
    else:
        definition = tmp_path / "run.yaml"
        asked = case.ask(files.names)
        step = {"kind": {"evaluation": "evaluate", "quantization": "quantize"}.get(case.kind, ""), "with": asked}
        text = asked if case.kind == "run" else json.dumps({"name": "mistaken", "steps": {"one": step}})
        definition.write_text(text)
        argv = ("run", "submit", str(definition))
    done = files.platform.run(*argv, "--json")
    error = json.loads(done.stdout.splitlines()[-1]).get("error") or {"reason": "none", "message": done.stdout}
    return Answer(done.returncode, error["reason"].upper(), error["message"])


WAYS = {"rest": by_rest, "grpc": by_grpc, "command": by_command}


@pytest.fixture(scope="module")
def made(drill: Drill) -> Callable[[], list[str]]:
    """Names of all jobs and runs that there are."""

    def made() -> list[str]:
        lists = (drill.call("GET", f"/{path}?limit=1000") for path in ("quantization/jobs", "evaluation/jobs", "runs"))
        return [job["name"] for found in lists for job in found["data"]]

    return made


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_named_and_costs_nothing(
    files: Files, made: Callable[[], list[str]], name: str, way: str, tmp_path: Path
) -> None:
    case, before = CASES[name], made()
    answer = WAYS[way](files, case, tmp_path)
    assert answer.status not in OURS
    in_a_run = way == "command" and case.command is None and case.kind != "run"
    http, status = case.status
    expected = {"rest": http, "grpc": status, "command": 2 if in_a_run or http == 400 else 1}[way]
    assert answer.status == expected, answer
    assert answer.reason == ("INVALID_RUN" if in_a_run else case.reason), answer
    assert all(part in answer.message for part in case.parts), answer.message
    assert made() == before, "no job and no run was made"


@pytest.mark.slow
def test_a_target_that_does_not_answer_is_named_by_its_job(drill: Drill, files: Files) -> None:
    """Slow for the patience that the evaluator has with a silent address. Only the job can find that out: it says who is silent."""
    spec = _evaluate(_ELSEWHERE | {"base_url": "http://127.0.0.1:2/v1"}, dataset=files.names["rows"], max_rows=1)
    job = drill.call("POST", "/evaluation/jobs", {"spec": spec})["name"]
    drill.wait_until(lambda: drill.job("evaluate", job)["state"] in ("FAILED", "SUCCEEDED"), "the end of the job")
    ended = drill.job("evaluate", job)
    assert (ended["state"], ended["error"]["reason"]) == ("FAILED", "TOO_MANY_FAILED_ROWS"), ended["error"]
    for part in ("127.0.0.1:2", "spec.max_failed_rows", "attempts"):
        assert part in ended["error"]["message"], ended["error"]
    shown = files.platform.run("evaluate", "show", job.partition("/")[2])
    assert "127.0.0.1:2" in shown.stdout, shown.stdout
