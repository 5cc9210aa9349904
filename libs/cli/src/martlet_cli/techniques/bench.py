"""Carries the comparison out: each technique and seed is a run of jobs (train, merge where it must be, evaluate), one after another.

A run's request id follows from what it does, so a command that is given again finds the runs that it began, and goes on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from martlet_core.errors import InvalidArgument

from martlet_cli.gateway import Gateway
from martlet_cli.output import Output
from martlet_cli.run_view import RUNS, follow
from martlet_cli.techniques.catalog import Technique

#: The row that stands for the untrained model.
BASE = "base"


@dataclass(frozen=True)
class Budget:
    """What all techniques share.

    Attributes:
        base_model: that is trained.
        training_dataset: rows, as an artifact.
        test_dataset: rows that training never sees, as an artifact; the loss and the answers on them are measured.
        suite: of the evaluator, that judges answers.
        steps: optimizer steps.
        batch_size: rows a step.
        learning_rate: LoRA's peak learning rate.
        max_length: tokens of a row.
        max_rows: test rows that are asked; None for all.
        speed_requests: answers that are timed.
    """

    base_model: str
    training_dataset: str
    test_dataset: str
    suite: str
    steps: int
    batch_size: int
    learning_rate: float
    max_length: int
    max_rows: int | None
    speed_requests: int = 16


@dataclass(frozen=True)
class Measured:
    """One technique with one seed, or the base model.

    Attributes:
        technique: its name; ``base`` for the untrained model.
        seed: of the training.
        run: its run; empty if it was refused.
        error: why there is nothing else; empty for none.
        numbers: what was measured, by name (see ``report.COLUMNS``).
        interval: 95 % interval of the accuracy.
    """

    technique: str
    seed: int
    run: str
    error: str = ""
    numbers: Mapping[str, float] = field(default_factory=dict)
    interval: tuple[float, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def carry_out(
    gateway: Gateway, output: Output, budget: Budget, techniques: Sequence[Technique], seeds: Sequence[int]
) -> Iterator[Measured]:
    """Measure the base model, then each technique with each seed; a failed one is told of, and the others go on."""
    plans: list[tuple[str, int, dict[str, Any]]] = [(BASE, seeds[0], _base_definition(budget))]
    plans += [(t.name, seed, definition(t, budget, seed)) for t in techniques for seed in seeds]
    for number, (name, seed, plan) in enumerate(plans, 1):
        output.say(f"[bold]{name}[/] [dim]seed {seed}, {number} of {len(plans)}[/]")
        try:
            run = _finished(gateway, output, plan)
        except InvalidArgument as refused:
            yield Measured(name, seed, "", error=refused.message)
            continue
        yield _measured(gateway, name, seed, run, budget, plan["steps"])


def definition(technique: Technique, budget: Budget, seed: int) -> dict[str, Any]:
    """The run of a technique."""
    training = {
        "base_model": budget.base_model,
        "training_dataset": budget.training_dataset,
        "validation_dataset": budget.test_dataset,
        "suffix": technique.name,
        "tuner": dict(technique.tuner),
        "hyperparameters": {
            "max_steps": budget.steps,
            "per_device_batch_size": budget.batch_size,
            "learning_rate": budget.learning_rate * technique.learning_rate_factor,
            **technique.hyperparameters,
        },
        "data": {"max_length": budget.max_length},
        "seed": seed,
    }
    steps: dict[str, Any] = {"train": {"kind": "train", "with": training}}
    if technique.merged:
        steps["merge"] = {"kind": "merge", "with": {"adapter": "${train.model}", "suffix": technique.name}}
    steps["evaluate"] = _evaluation(budget, "${merge.model}" if technique.merged else "${train.model}")
    return {"name": f"technique {technique.name}, seed {seed}", "steps": steps}


def _base_definition(budget: Budget) -> dict[str, Any]:
    return {"name": f"technique {BASE}", "steps": {"evaluate": _evaluation(budget, budget.base_model)}}


def _evaluation(budget: Budget, model: str) -> dict[str, Any]:
    speed = {"concurrency": [8], "requests": budget.speed_requests, "max_tokens": 32, "ignore_eos": True}
    options: dict[str, Any] = {
        "dataset": budget.test_dataset,
        "suites": [{"suite": budget.suite}, {"suite": "latency", "options": speed}],
        "targets": [{"name": "model", "model": model}],
        "concurrency": 16,
    }
    if budget.max_rows is not None:
        options["max_rows"] = budget.max_rows
    return {"kind": "evaluate", "with": options}


def _finished(gateway: Gateway, output: Output, plan: Mapping[str, Any]) -> dict[str, Any]:
    """The plan's run at its end: begun, or found again; where it had failed, what failed is tried once more."""
    source = json.dumps(plan, sort_keys=True)
    request_id = f"bench-{hashlib.sha256(source.encode()).hexdigest()[:40]}"
    run = gateway.call("POST", RUNS, json={"source": source, "reuse": True, "request_id": request_id})
    if run["state"] in ("FAILED", "PAUSED"):
        run = gateway.call("POST", f"{RUNS}/{run['id']}/resume")
    return follow(gateway, run["id"], output)


def _measured(
    gateway: Gateway, name: str, seed: int, run: Mapping[str, Any], budget: Budget, asked: Mapping[str, Any]
) -> Measured:
    if run["state"] != "SUCCEEDED":
        return Measured(name, seed, run["id"], error=_why(run))
    steps = {step["id"]: step for step in run["steps"]}
    job = gateway.call("GET", f"/evaluation/jobs/{steps['evaluate']['job'].rpartition('/')[2]}")
    metrics = job["result"]["targets"][0]["metrics"]
    accuracy = metrics[f"{budget.suite}.accuracy"]
    numbers = {"accuracy": accuracy["value"]}
    speeds = [metric["value"] for key, metric in metrics.items() if key.startswith("latency.tokens_per_second")]
    numbers |= {"served_tokens_per_second": speeds[0]} if speeds else {}
    if "train" in steps:
        numbers["learning_rate"] = asked["train"]["with"]["hyperparameters"]["learning_rate"]
        numbers |= _of_training(gateway, steps["train"], budget)
    low, high = accuracy.get("low"), accuracy.get("high")
    return Measured(name, seed, run["id"], "", numbers, (low, high) if low is not None and high is not None else None)


def _of_training(gateway: Gateway, step: Mapping[str, Any], budget: Budget) -> dict[str, float]:
    found = step["metrics"]
    artifact = gateway.call("GET", f"/{step['outputs']['artifact']}")
    weights = sum(file["size_bytes"] for file in artifact["files"] if file["path"].endswith(".safetensors"))
    numbers = {
        "size_bytes": weights,
        "samples_per_second": found["steps"] * budget.batch_size / found["train_seconds"],
        "validation_loss": found.get("valid_loss"),
    }
    same = ("trained_parameters", "peak_memory_bytes", "tokens_per_second", "train_loss", "train_seconds")
    numbers |= {name: found.get(name) for name in same}
    return {name: float(value) for name, value in numbers.items() if value is not None}


def _why(run: Mapping[str, Any]) -> str:
    """Why a run gave nothing: the error of the step that failed."""
    failed = [step for step in run["steps"] if step["state"] == "FAILED"]
    error = (failed[0] if failed else run).get("error") or {}
    return f"{failed[0]['id']}: {error.get('message', '')}" if failed else error.get("message") or run["state"].lower()
