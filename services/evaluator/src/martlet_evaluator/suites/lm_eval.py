"""The harness's stock tasks (lm-eval), offline, on local or uploaded rows, asked of the target like everything else.

The harness makes the prompts and scores the answers; a model of ours asks, so that retries, the journal and the count of
failed rows are those of the job. Without a chat template a task is asked by /completions; log-likelihoods need an engine that
echoes them. Where a context is empty the first token has no probability, as the harness's own API models have it.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
import yaml
from martlet_core.errors import FailedPrecondition, InvalidArgument, MartletError

from martlet_evaluator.benchmarks import data_of, split_files, task_file
from martlet_evaluator.statistics import Measure, mean_measure
from martlet_evaluator.suite_options import LmEvalOptions, LmEvalTask
from martlet_evaluator.suites.base import Record, Suite, SuiteRun
from martlet_evaluator.targets.base import Answer, Target

os.environ["HF_HUB_OFFLINE"] = "1"  # before the harness imports datasets: a task without local data must not be fetched

_DEFAULT_TOKENS = 256
_BOOTSTRAP = 1000


class ChatText(NamedTuple):
    """A conversation on its way through the harness, which knows prompts as text."""

    prompt: str

    def encode(self, encoding: str) -> bytes:
        """What the harness hashes."""
        return self.prompt.encode(encoding)


@dataclass
class _Failures:
    """Questions without an answer, by document."""

    by_document: dict[int, str] = field(default_factory=dict)


class LmEval(Suite):
    """``<task>.<metric>``, with the filter's name behind where the task has several."""

    options: LmEvalOptions

    def questions(self, run: SuiteRun) -> int:
        """Known when the harness has made them."""
        return 0

    async def ask(self, run: SuiteRun, target: Target) -> list[Record]:
        """Run each task."""
        records: list[Record] = []
        for task in self.options.tasks:
            records += await self._run_task(run, target, task)
        return records

    def measure(self, records: Sequence[Record]) -> list[Measure]:
        """Means over documents; what the harness aggregates otherwise is taken from it, with its own error."""
        measures: list[Measure] = []
        names = sorted({name for record in records for name in record.scores})
        for name in names:
            found = [record for record in records if name in record.scores]
            measures.append(mean_measure(name, [r.row for r in found], [r.scores[name] for r in found]))
        for record in records:
            for name, (value, error) in record.details.get("aggregated", {}).items():
                interval = None if error is None else (value - 1.96 * error, value + 1.96 * error)
                stats = np.array([[value, 1.0]])
                measures.append(Measure(name, (record.row,), stats, interval=interval, compared=False))
        return measures

    def details(self, records: Sequence[Record]) -> dict[str, Any]:
        """How it was asked."""
        how = "as chats" if self.options.apply_chat_template else "as plain text"
        shots = ", ".join(f"{task.task}: {task.num_fewshot}-shot" for task in self.options.tasks)
        return {"notes": [f"lm-eval, asked {how}; {shots}."]}

    async def _run_task(self, run: SuiteRun, target: Target, task: LmEvalTask) -> list[Record]:
        failures = _Failures()
        model = _model(run, target, task, asyncio.get_running_loop(), failures)
        workdir = run.inputs["workdir"] / "lm_eval" / run.key / task.task
        try:
            results = await asyncio.to_thread(_evaluate, model, task, run, workdir, self.options.apply_chat_template)
        except MartletError:
            raise
        except ModuleNotFoundError as error:
            raise FailedPrecondition(
                f"lm_eval task {task.task} needs {error.name}, which this deployment lacks"
            ) from error
        except (ValueError, KeyError, TypeError, OSError, jinja2.TemplateError) as error:
            raise FailedPrecondition(
                f"lm_eval task {task.task} can't be run on this data: {type(error).__name__}: {str(error)[:500]}"
            ) from error
        return _records(run, target, task, results, failures)


def _evaluate(model: Any, task: LmEvalTask, run: SuiteRun, workdir: Path, as_chat: bool) -> Any:
    """The harness, in a thread of its own."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    name = write_task(task, run.inputs, workdir)
    manager = TaskManager(include_path=str(workdir), include_defaults=False)
    return simple_evaluate(
        model=model,
        tasks=[name],
        task_manager=manager,
        limit=task.limit,
        bootstrap_iters=_BOOTSTRAP,
        apply_chat_template=as_chat,
        fewshot_as_multiturn=as_chat,
        log_samples=True,
    )


def write_task(task: LmEvalTask, inputs: Mapping[str, Path], workdir: Path) -> str:
    """Write a task's YAML: the stock one, on local files. Returns its name.

    Raises:
        InvalidArgument: there is no data, or few-shot examples would have to come from the evaluated rows.
    """
    from lm_eval.tasks._yaml_loader import load_yaml

    stock = task_file(task.task)
    config = load_yaml(stock, resolve_func=False)
    path = data_of(task, inputs, inputs.get("benchmarks"))
    if path is None:
        raise InvalidArgument(f"lm_eval task {task.task}: it has no data here; name a data set in tasks[].dataset")
    evaluated = config.get("test_split") or config.get("validation_split") or config.get("training_split") or "test"
    files = split_files(path, evaluated)
    if evaluated not in files:
        raise InvalidArgument(f"lm_eval task {task.task}: its data has no {evaluated} rows")
    has_examples = bool((config.get("fewshot_config") or {}).get("samples"))
    shots = config.get("fewshot_split") or config.get("training_split") or "train"
    if task.num_fewshot and not has_examples and (shots not in files or shots == evaluated):
        raise InvalidArgument(
            f"lm_eval task {task.task}: {task.num_fewshot} examples in the prompt must come from other rows than those "
            f"that are evaluated; give a file {shots}.jsonl beside, or set num_fewshot to 0"
        )
    loader = {"parquet": "parquet", "csv": "csv"}.get(files[evaluated].suffix.lstrip(".").lower(), "json")
    splits = {
        name: config[name] for name in ("training_split", "validation_split", "test_split") if config.get(name) in files
    }
    name = f"martlet_{task.task}"
    values = {
        "include": str(stock),
        "task": name,
        "tag": None,
        "dataset_path": loader,
        "dataset_name": None,
        "dataset_kwargs": {
            "data_files": {split: str(file) for split, file in files.items()},
            "cache_dir": str(workdir / "cache"),
        },
        "training_split": None,
        "validation_split": None,
        "test_split": None,
        **splits,
        "fewshot_split": shots if task.num_fewshot and not has_examples else None,
        "num_fewshot": task.num_fewshot,
    }
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / f"{name}.yaml").write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return name


def _model(
    run: SuiteRun, target: Target, task: LmEvalTask, loop: asyncio.AbstractEventLoop, failures: _Failures
) -> Any:
    """The harness's model that asks the target. Made here, so that importing this module doesn't import the harness."""
    from lm_eval.api.model import LM

    class TargetModel(LM):
        """Called by the harness in its thread; asks in the job's loop."""

        @property
        def tokenizer_name(self) -> str:
            return ""

        def chat_template(self, chat_template: bool | str = False) -> str:
            return ""

        def apply_chat_template(self, chat_history: Any, add_generation_prompt: bool = True) -> Any:
            return ChatText(json.dumps(chat_history, ensure_ascii=False))

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            return [answer.text for answer in self._ask(requests, lambda r: _generate(run, target, r))]

        def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
            answers = self._ask(requests, lambda r: _score(target, r))
            return [(_total(answer), bool(answer.data.get("is_greedy"))) for answer in answers]

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
            return [_total(answer) for answer in self._ask(requests, lambda r: target.score_text("", r.args[0]))]

        def _ask(self, requests: Any, call: Any) -> list[Answer]:
            run.asker.plan(len(requests))

            async def one(request: Any) -> Answer:
                place = f"{request.request_type}/{request.doc_id}/{request.idx}/{request.repeats}"
                key = f"{run.key}/{target.name}/{task.task}/{place}"
                answer = await run.asker.ask(key, lambda: call(request))
                if answer.error and request.doc_id not in failures.by_document:
                    failures.by_document[request.doc_id] = answer.error
                    run.asker.count_failure(
                        f"target {target.name}, {task.task}, document {request.doc_id}", answer.error
                    )
                return answer

            return asyncio.run_coroutine_threadsafe(run.asker.over(requests, one), loop).result()

    return TargetModel()


async def _generate(run: SuiteRun, target: Target, request: Any) -> Answer:
    """An answer to a prompt, up to where the task says that it stops."""
    context, options = request.args
    until = options.get("until") or []
    stop = [until] if isinstance(until, str) else list(until)
    temperature = float(options.get("temperature") or 0.0) if options.get("do_sample") else 0.0
    length = int(options.get("max_gen_toks") or options.get("max_tokens") or _DEFAULT_TOKENS)
    sampling = run.with_sampling(max_tokens=length, temperature=temperature)
    if isinstance(context, ChatText):
        extra = {"stop": stop} if stop else None
        return await target.chat(json.loads(context.prompt), sampling, extra=extra)
    return await target.complete(context, sampling, stop=stop)


async def _score(target: Target, request: Any) -> Answer:
    """How likely a continuation is behind its context."""
    context, continuation = request.args
    if isinstance(context, ChatText):
        text = "log-likelihoods of chats: set apply_chat_template to false for this task"
        return Answer(error=text)
    spaces = len(context) - len(context.rstrip())
    if spaces:  # as the harness does: a space belongs to the word behind it
        context, continuation = context[:-spaces], context[-spaces:] + continuation
    return await target.score_text(context, continuation)


def _total(answer: Answer) -> float:
    return float(sum(answer.data["logprobs"])) if "logprobs" in answer.data else -math.inf


def _records(run: SuiteRun, target: Target, task: LmEvalTask, results: Any, failures: _Failures) -> list[Record]:
    """One record a document, with the metrics of all filters."""
    (name,) = results["samples"].keys()
    samples, totals = results["samples"][name], results["results"][name]
    filters = sorted({sample["filter"] for sample in samples})
    by_document: dict[int, list[Any]] = {}
    for sample in samples:
        by_document.setdefault(sample["doc_id"], []).append(sample)
    averaged = {(m, f) for f in filters for m in _averaged(samples, totals, f)}
    records = []
    for document, group in sorted(by_document.items()):
        scores = {
            _metric(task, metric, sample["filter"], filters): float(sample[metric])
            for sample in group
            for metric in sample["metrics"]
            if (metric, sample["filter"]) in averaged
        }
        error = failures.by_document.get(document, "")
        records.append(
            Record(
                suite=run.key,
                target=target.name,
                row=f"{task.task}/{document}",
                category=task.task,
                input=_prompt(group[0]),
                output=_output(group[0]),
                expected=str(group[0]["target"]),
                scores={} if error else scores,
                error=error,
            )
        )
    return _with_aggregated(records, task, totals, averaged, filters, bool(failures.by_document))


def _averaged(samples: Sequence[Any], totals: Mapping[str, Any], name: str) -> list[str]:
    """Metrics of a filter that are means of their documents' values: those numbers we can resample and pair."""
    group = [sample for sample in samples if sample["filter"] == name]
    found = []
    for metric in group[0]["metrics"]:
        values = [sample.get(metric) for sample in group]
        total = totals.get(f"{metric},{name}")
        if not isinstance(total, (int, float)) or not all(isinstance(v, (int, float, np.number)) for v in values):
            continue
        if math.isclose(float(np.mean(np.array(values, dtype=float))), float(total), rel_tol=1e-6, abs_tol=1e-9):
            found.append(metric)
    return found


def _with_aggregated(
    records: list[Record],
    task: LmEvalTask,
    totals: Mapping[str, Any],
    averaged: set[tuple[str, str]],
    filters: Sequence[str],
    has_failures: bool,
) -> list[Record]:
    """What the harness computes over all documents together; left out where some have no answer."""
    aggregated = {}
    for key, value in totals.items():
        metric, comma, name = key.partition(",")
        if not comma or metric.endswith("_stderr") or (metric, name) in averaged or not isinstance(value, (int, float)):
            continue
        error = totals.get(f"{metric}_stderr,{name}")
        aggregated[_metric(task, metric, name, filters)] = (value, error if isinstance(error, (int, float)) else None)
    if not aggregated or has_failures or not records:
        return records
    summary = Record(
        records[0].suite,
        records[0].target,
        f"{task.task}/all",
        "all documents together",
        details={"aggregated": aggregated},
    )
    return [*records, summary]


def _metric(task: LmEvalTask, metric: str, name: str, filters: Sequence[str]) -> str:
    return f"{task.task}.{metric}" + (f".{name}" if len(filters) > 1 else "")


def _prompt(sample: Mapping[str, Any]) -> str:
    first = sample["arguments"]
    first = first.get("gen_args_0", first) if isinstance(first, Mapping) else first[0]
    text = first.get("arg_0", "") if isinstance(first, Mapping) else first[0]
    if isinstance(text, (list, tuple)) and len(text) == 1:
        text = text[0]
    return str(text)


def _output(sample: Mapping[str, Any]) -> str:
    """What the model said, before the harness's filters; of choices, what the harness makes of them."""
    for key in ("resps", "filtered_resps"):
        response = sample[key]
        while isinstance(response, (list, tuple)) and len(response) == 1:
            response = response[0]
        if isinstance(response, str):
            return response
    return json.dumps(sample["filtered_resps"], default=str)
