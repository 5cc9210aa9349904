"""``evaluate create|list|show|watch|cancel|pause|resume|report``: models measured on rows, and compared."""

from __future__ import annotations

import argparse
import json
from typing import Any

from martlet_core.errors import InvalidArgument

from martlet_cli.commands import report
from martlet_cli.commands.files import dataset_artifact
from martlet_cli.context import Context, Subparsers, command, group
from martlet_cli.output import Output
from martlet_cli.stage_jobs import StageJobs, asked

_EXAMPLE = """example:
  martlet evaluate smollm2-135m-instruct ft:smollm2-135m-instruct:default::0a1b2c3d --dataset test.jsonl \\
      --suite classification --options '{"labels": ["yes", "no"]}' --watch"""


#: Metrics by how much they say of a target, the most first.
_TELLING = (
    *("accuracy", "pass_rate", "win_rate", "score", "ndcg", "spearman", "rougeL", "perplexity", "tokens_per_second"),
    "macro_f1",
)


def _outcome(job: dict[str, Any]) -> str:
    result = job.get("result") or {}
    first = [f"{target['name']} {_first(target)}" for target in result.get("targets") or []]
    return "; ".join(first)


def _first(target: dict[str, Any]) -> str:
    """The metric that says most, in a few words."""
    metrics = target["metrics"]
    name = min(metrics, key=lambda name: (_rank(name), name), default="")
    return f"{name.partition('.')[2] or name} {_shown(metrics[name])}" if name else "no metric"


def _rank(name: str) -> int:
    """Place of a metric among others: what a suite is about before how it went."""
    return next((place for place, word in enumerate(_TELLING) if word in name), len(_TELLING))


def _shown(metric: dict[str, Any]) -> str:
    text = f"{metric['value']:.4g}"
    return f"{text} ({metric['low']:.4g} to {metric['high']:.4g})" if metric.get("low") is not None else text


def _describe(output: Output, job: dict[str, Any]) -> None:
    result = job.get("result") or {}
    targets = result.get("targets") or []
    if not targets:
        return
    output.console.print("\n[bold]metrics[/], with 95 % intervals")
    names = sorted({name for target in targets for name in target["metrics"]}, key=lambda name: (_rank(name), name))
    rows = [
        {"metric": name} | {t["name"]: _shown(t["metrics"][name]) if name in t["metrics"] else None for t in targets}
        for name in names
    ]
    output.table(rows, ("metric", *(target["name"] for target in targets)))
    if result.get("comparisons"):
        output.console.print("\n[bold]differences[/], paired by row")
        rows = [
            {
                "target": f"{c['target']} - {c['baseline']}",
                "metric": c["metric"],
                "difference": f"{c['difference']:+.4g} ({c['low']:+.4g} to {c['high']:+.4g})",
                "p": c["p_value"],
                "gained": c["flips_gained"],
                "lost": c["flips_lost"],
            }
            for c in result["comparisons"]
        ]
        output.table(rows, rows[0])


_JOBS = StageJobs(
    verb="evaluate",
    noun="evaluation",
    path="evaluation/jobs",
    collection="evaluationJobs",
    columns={
        "targets": lambda job: ", ".join(t.get("name") or t["model"] for t in job["spec"]["targets"]),
        "suites": lambda job: ", ".join(suite["suite"] for suite in job["spec"]["suites"]),
        "outcome": _outcome,
    },
    outcome=_outcome,
    describe=_describe,
)


def add(subparsers: Subparsers) -> None:
    """Add the commands."""
    commands = group(
        subparsers, "evaluate", "measure models and compare them (`martlet evaluate MODEL ...` is short for create)"
    )
    create = command(
        commands, "create", _create, "ask models about rows and compare the answers with theirs", epilog=_EXAMPLE
    )
    create.add_argument("models", nargs="*", metavar="MODEL", help="who is asked; the first is the baseline")
    create.add_argument("--dataset", "--eval_dataset", help="rows: a local file or the id of an uploaded one")
    create.add_argument("--suite", nargs="+", default=["exact_match"], help="what is measured (default exact_match)")
    create.add_argument("--options", metavar="JSON", help="options of the suite, as a JSON object")
    create.add_argument("--max_rows", "--eval_limit", type=int, metavar="N", help="most rows to use (default: all)")
    create.add_argument(
        "--concurrency", "--eval_num_proc", type=int, metavar="N", help="requests at a time (default 8)"
    )
    create.add_argument("--max_failed_rows", type=int, metavar="N", help="rows without an answer that are borne (0)")
    create.add_argument("--max_tokens", type=int, metavar="N", help="longest answer in tokens (default 256)")
    create.add_argument("--temperature", type=float, metavar="X", help="0 (default): the most likely token each time")
    create.add_argument("--category_field", help="field of the rows that tables are divided by")
    create.add_argument("--seed", type=int, metavar="N", help="random seed (default 42)")
    create.add_argument("--priority", type=int, metavar="N", help="place in the queue, 0 (low) to 9 (high)")
    create.add_argument("--engine", choices=("gateway", "transformers"), help="where models run (default: as served)")
    create.add_argument("--model", dest="swift_models", nargs="+", metavar="MODEL", help="as MODEL (SWIFT's name)")
    create.add_argument("--watch", action="store_true", help="follow the job until it is over")
    report.add_arguments(command(commands, "report", report.open_report, "as `report open`"))
    _JOBS.add(commands)


def _create(context: Context, arguments: argparse.Namespace) -> int:
    models = [*arguments.models, *(arguments.swift_models or ())]
    if not models:
        raise InvalidArgument.field("MODEL", "is required: one model or several")
    spec = asked(
        targets=[asked(model=model, engine=arguments.engine) for model in models],
        dataset=dataset_artifact(context, "--dataset", arguments.dataset),
        suites=[asked(suite=suite, options=_options(arguments)) for suite in arguments.suite],
        max_rows=arguments.max_rows,
        concurrency=arguments.concurrency,
        max_failed_rows=arguments.max_failed_rows,
        sampling={"max_tokens": arguments.max_tokens, "temperature": arguments.temperature},
        category_field=arguments.category_field,
        seed=arguments.seed,
        resources={"priority": arguments.priority},
    )
    return _JOBS.create(context, {"spec": spec}, watch=arguments.watch)


def _options(arguments: argparse.Namespace) -> dict[str, Any] | None:
    if arguments.options is None:
        return None
    if len(arguments.suite) > 1:
        raise InvalidArgument.field("--options", "belongs to one suite; several were given. Submit them one by one")
    try:
        options = json.loads(arguments.options)
    except ValueError as error:
        raise InvalidArgument.field("--options", f"is not valid JSON: {error}") from None
    if not isinstance(options, dict):
        raise InvalidArgument.field("--options", "must be a JSON object")
    return options
