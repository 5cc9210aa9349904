"""Exact match: is the answer, without the spaces around it, the expected one? Measured on rows, with intervals."""

from __future__ import annotations

import html
import json
import math
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from evaluator.errors import Refused, bad_field
from evaluator.gateway import Gateway
from evaluator.stubs import jobs_pb
from evaluator.table import Entry, Table

SUITE = "exact_match"
METRIC = f"{SUITE}.accuracy"
OPTIONS = ("ignore_case",)
_RESAMPLES = 1000
#: Longest time that one row may take, its repetitions included, in seconds.
_ROW_SECONDS = 600.0


def read_rows(files: dict[str, bytes]) -> list[dict[str, Any]]:
    """Rows of a data set, each ``{"messages": [...]}`` with the expected answer last, or prompt and completion."""
    rows = []
    for path in sorted(files):
        if not path.endswith(".jsonl"):
            raise bad_field("spec.dataset", f"holds {path}; this evaluator reads .jsonl alone")
        for number, line in enumerate(files[path].decode().splitlines(), 1):
            if line.strip():
                rows.append(_row(line, f"{path}, line {number}"))
    if not rows:
        raise bad_field("spec.dataset", "has no rows")
    return rows


def _row(line: str, where: str) -> dict[str, Any]:
    try:
        fields = json.loads(line)
        if "messages" in fields:
            *asked, last = fields["messages"]
            expected = last["content"] if last["role"] == "assistant" else None
        else:
            asked, expected = [{"role": "user", "content": fields["prompt"]}], fields["completion"]
    except (ValueError, KeyError, TypeError) as error:
        raise bad_field("spec.dataset", f"{where}: can't be read ({error!r})") from error
    if not asked or not isinstance(expected, str):
        raise bad_field("spec.dataset", f"{where}: needs a question and an assistant's answer behind it")
    return {"messages": asked, "expected": expected}


def measure(table: Table, entry: Entry, gateway: Gateway) -> Any:
    """The result of a job; None when it was told to stop. Answers that are there already aren't asked for again."""
    spec = entry.job.spec
    _, files = gateway.read(entry.tenant, spec.dataset)
    rows = read_rows(files)
    used = rows[: spec.max_rows] if spec.HasField("max_rows") else rows
    names = [name_of(target) for target in spec.targets]
    failures: dict[tuple[int, str], str] = {}
    todo = [
        (index, target)
        for target in spec.targets
        for index in range(len(used))
        if (index, name_of(target)) not in entry.answers
    ]
    planned = len(used) * len(names)

    def ask(item: tuple[int, Any]) -> None:
        index, target = item
        if not table.progress(entry, len(entry.answers) + len(failures), planned):
            return
        body = {"model": target.model, "messages": used[index]["messages"], **_sampling(spec)}
        key = index, name_of(target)
        try:
            entry.answers[key] = gateway.chat(entry.tenant, body, time.monotonic() + _ROW_SECONDS)
        except (OSError, ValueError, LookupError) as error:
            failures[key] = str(error)

    with ThreadPoolExecutor(spec.concurrency if spec.HasField("concurrency") else 8) as threads:
        list(threads.map(ask, todo))
    if not table.progress(entry, len(entry.answers) + len(failures), planned):
        return None
    if len(failures) > spec.max_failed_rows:
        raise Refused("FAILED_PRECONDITION", "ROWS_FAILED", f"{len(failures)} rows failed: {min(failures.values())}")
    right = _judge(spec, used, entry.answers)
    return _result(entry, gateway, rows, used, right, failures)


def name_of(target: Any) -> str:
    """The target's name in tables."""
    return target.name or target.model


def _sampling(spec: Any) -> dict[str, Any]:
    sampling = spec.sampling
    seed = sampling.seed if sampling.HasField("seed") else _seed(spec)
    return {
        "max_tokens": sampling.max_tokens if sampling.HasField("max_tokens") else 256,
        "temperature": sampling.temperature if sampling.HasField("temperature") else 0,
        "seed": seed,
    }


def _seed(spec: Any) -> int:
    return spec.seed if spec.HasField("seed") else 42


def _judge(spec: Any, rows: Sequence[Any], answers: dict[tuple[int, str], str]) -> dict[str, dict[int, bool]]:
    """Target -> row -> whether it was right; rows without an answer are left out."""
    fold = str.casefold if dict(spec.suites[0].options).get("ignore_case") else str
    right: dict[str, dict[int, bool]] = {name_of(target): {} for target in spec.targets}
    for (index, name), answer in answers.items():
        right[name][index] = fold(answer.strip()) == fold(rows[index]["expected"].strip())
    return right


def _result(entry: Entry, gateway: Gateway, rows: Any, used: Any, right: Any, failures: Any) -> Any:
    spec = entry.job.spec
    result = jobs_pb.EvaluationResult(rows_read=len(rows), rows_used=len(used), rows_failed=len(failures))
    for target in spec.targets:
        name = name_of(target)
        mean, low, high = interval([float(value) for value in right[name].values()], _seed(spec))
        found = result.targets.add(name=name, model=target.model)
        found.metrics[METRIC].CopyFrom(jobs_pb.Metric(value=mean, low=low, high=high))
    baseline = spec.baseline or name_of(spec.targets[0])
    for name in right:
        if name != baseline:
            _compare(result, name, baseline, right[name], right[baseline], _seed(spec))
    records = [
        {
            "target": name,
            "row": index,
            "expected": row["expected"],
            "answer": entry.answers.get((index, name)),
            "right": right[name].get(index),
            "error": failures.get((index, name)),
        }
        for name in right
        for index, row in enumerate(used)
    ]
    lines = "".join(json.dumps(record) + "\n" for record in records).encode()
    page = _page(result)
    parents = [spec.dataset]
    result.records_artifact = gateway.write(entry.tenant, "records", {"records.jsonl": lines}, parents)
    result.report_artifact = gateway.write(entry.tenant, "report", page, parents)
    return result


def _compare(result: Any, name: str, baseline: str, ours: Any, theirs: Any, seed: int) -> None:
    both = sorted(ours.keys() & theirs.keys())
    mean, low, high = interval([float(ours[row]) - float(theirs[row]) for row in both], seed)
    gained = sum(ours[row] and not theirs[row] for row in both)
    lost = sum(theirs[row] and not ours[row] for row in both)
    result.comparisons.add(
        target=name,
        baseline=baseline,
        metric=METRIC,
        difference=mean,
        low=low,
        high=high,
        p_value=mcnemar(gained, lost),
        flips_gained=gained,
        flips_lost=lost,
    )


def interval(values: Sequence[float], seed: int) -> tuple[float, float, float]:
    """Mean of the values, and its 95 % interval by a seeded bootstrap."""
    if not values:
        return 0.0, 0.0, 0.0
    chance = random.Random(seed)
    count = len(values)
    means = sorted(sum(chance.choices(values, k=count)) / count for _ in range(_RESAMPLES))
    return sum(values) / count, means[int(0.025 * _RESAMPLES)], means[int(0.975 * _RESAMPLES) - 1]


def mcnemar(gained: int, lost: int) -> float:
    """Probability of a split this uneven where both are as good, two-sided, exact."""
    flips = gained + lost
    tail = sum(math.comb(flips, k) for k in range(min(gained, lost) + 1)) / 2**flips
    return min(1.0, 2 * tail)


def _page(result: Any) -> dict[str, bytes]:
    scores = {target.name: target.metrics[METRIC] for target in result.targets}
    table = "".join(
        f"<tr><td>{html.escape(name)}<td>{score.value:.3f}<td>{score.low:.3f} to {score.high:.3f}"
        for name, score in scores.items()
    )
    page = f"<!doctype html><title>Exact match</title><table><tr><th>target<th>accuracy<th>95 %{table}</table>"
    plain = {name: {"value": score.value, "low": score.low, "high": score.high} for name, score in scores.items()}
    return {"report.html": page.encode(), "report.json": json.dumps({METRIC: plain}).encode()}


def work(table: Table, gateway: Gateway, say: Callable[[str], None]) -> None:
    """What a worker thread does: jobs, one after the other, for ever."""
    while True:
        entry = table.take()
        try:
            table.settle(entry, result=measure(table, entry, gateway))
        except Refused as refused:
            table.settle(entry, error=refused.status())
        except Exception as error:  # noqa: BLE001  # a worker outlives its jobs
            say(f"{entry.job.name}: {error!r}")
            table.settle(entry, error=Refused("INTERNAL", "EVALUATION_FAILED", repr(error)).status())
