"""Evaluate: ask every target the same rows, measure, compare, and write the report. A pure function, see ``martlet_core.recipe``."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from martlet_core.addresses import is_allowed
from martlet_core.errors import FailedPrecondition, NotFound, PermissionDenied
from martlet_core.recipe import OutputArtifact, RecipeResult, Report, ShouldStop

from martlet_evaluator import comparison
from martlet_evaluator.asking import Asker, Journal, unique_keys
from martlet_evaluator.config import EvaluationConfig, TargetConfig, parse_evaluation_config
from martlet_evaluator.report import write_report
from martlet_evaluator.rows import RowSet, load_rows
from martlet_evaluator.suites import load_suite
from martlet_evaluator.suites.base import Record, Suite, SuiteRun, write_records
from martlet_evaluator.targets.base import Sampling, Target
from martlet_evaluator.targets.http import Endpoint, HttpTarget


@dataclass(frozen=True)
class Deployment:
    """What the worker tells beside the spec.

    Attributes:
        gateway_url: of this deployment's gateway, ending in ``/v1``.
        headers: that name us at the gateway.
        allowed_base_urls: of external targets.
        benchmarks_dir: the operator's data of stock tasks; None for none.
        deadline_seconds: of one question.
        checkpoint_seconds: between two checkpoints.
        models: directories of in-process targets, ``{"model": …, "adapter": …}`` by target name, below ``inputs/``.
    """

    gateway_url: str
    headers: Mapping[str, str]
    allowed_base_urls: tuple[str, ...]
    benchmarks_dir: Path | None
    deadline_seconds: float
    checkpoint_seconds: float
    models: Mapping[str, Mapping[str, str]]


def run(config: Mapping[str, Any], workdir: Path, report: Report, should_stop: ShouldStop) -> RecipeResult:
    """Evaluate ``config["spec"]`` on ``inputs/dataset``.

    Args:
        config: ``spec``, and what the worker adds: ``gateway`` {base_url, api_key}, ``allowed_base_urls``,
            ``benchmarks_dir``, ``deadline_seconds``, ``checkpoint_seconds``, ``models``.
        workdir: see ``martlet_core.recipe``.
        report: how to speak.
        should_stop: ends it after a checkpoint of all answers so far.

    Raises:
        InvalidArgument: the rows don't fit the suites.
        FailedPrecondition: more rows than ``max_failed_rows`` got no answer, or a suite can't be run on this data.
        StopRequested: ``should_stop`` said so.
    """
    spec = parse_evaluation_config(config["spec"])
    deployment = read_deployment(config)
    report.phase("reading rows")
    journal = Journal(workdir)
    if journal.resumed:
        report.log(f"going on with {journal.resumed} answers of an earlier attempt")
    asker = Asker(
        journal,
        report,
        should_stop,
        concurrency=spec.concurrency,
        max_failed_rows=spec.max_failed_rows,
        checkpoint_seconds=deployment.checkpoint_seconds,
    )
    evaluation = Evaluation(spec, deployment, workdir, report, asker)

    async def work() -> RecipeResult:
        return await asker.watched(evaluation.carry_out())

    return asyncio.run(work())


class Evaluation:
    """One evaluation under way."""

    def __init__(
        self, spec: EvaluationConfig, deployment: Deployment, workdir: Path, report: Report, asker: Asker
    ) -> None:
        self._spec = spec
        self._deployment = deployment
        self._workdir = workdir
        self._report = report
        self._asker = asker
        keys = unique_keys([entry.suite for entry in spec.suites])
        self._suites: dict[str, Suite] = {key: load_suite(entry) for key, entry in zip(keys, spec.suites, strict=True)}

    async def carry_out(self) -> RecipeResult:
        """Everything, from the rows to the report."""
        rows = await asyncio.to_thread(self._read_rows)
        runs = {key: self._suite_run(key, rows) for key in self._suites}
        records = await self._ask_all(runs)
        self._report.phase("measuring")
        for key, suite in self._suites.items():
            records[key] = await suite.review(runs[key], records[key])
        outcome = await asyncio.to_thread(self._measure, records)
        self._asker.checkpoint()
        return await asyncio.to_thread(self._write, rows, records, outcome)

    async def _ask_all(self, runs: Mapping[str, SuiteRun]) -> dict[str, Mapping[str, Sequence[Record]]]:
        """Target by target: where whole models share a replica, each is placed once."""
        records: dict[str, dict[str, Sequence[Record]]] = {key: {} for key in self._suites}
        questions = sum(suite.questions(runs[key]) for key, suite in self._suites.items())
        self._asker.plan(questions * len(self._spec.targets))
        for target_config in self._spec.targets:
            target = await asyncio.to_thread(self._open_target, target_config)
            try:
                for key, suite in self._suites.items():
                    self._report.phase(f"asking {target.name}: {key}")
                    records[key][target.name] = await suite.ask(runs[key], target)
            finally:
                await target.close()
        return dict(records)

    def _measure(self, records: Mapping[str, Mapping[str, Any]]) -> comparison.Outcome:
        return comparison.compute(
            self._suites, records, [t.name for t in self._spec.targets], self._spec.baseline_name, self._spec.seed
        )

    def _write(self, rows: RowSet, records: Mapping[str, Any], outcome: comparison.Outcome) -> RecipeResult:
        every = [record for by_target in records.values() for found in by_target.values() for record in found]
        output = self._workdir / "output"
        write_records(output / "records" / "records.jsonl", every)
        failed = sum(bool(record.error) for record in every)
        counts = {**self._row_counts(rows, every), "rows_failed": failed}
        write_report(output / "report", self._spec, counts, outcome, every)
        values = {**counts, **outcome.result({target.name: target.model for target in self._spec.targets})}
        return RecipeResult(
            values,
            {
                "report": OutputArtifact(
                    output / "report", "report", {"targets": [t.name for t in self._spec.targets]}
                ),
                "records": OutputArtifact(output / "records", "report", {"records": len(every)}),
            },
        )

    def _row_counts(self, rows: RowSet, records: Sequence[Record]) -> dict[str, int]:
        """Rows of the data set, or those that the suites brought."""
        if self._spec.needs_dataset:
            return {"rows_read": rows.rows_read, "rows_used": len(rows.rows)}
        own = len({(record.suite, record.row) for record in records})
        return {"rows_read": rows.rows_read or own, "rows_used": own}

    def _read_rows(self) -> RowSet:
        path = self._workdir / "inputs" / "dataset"
        if self._spec.dataset is None:
            return RowSet((), 0)
        return read_dataset(self._spec, path)

    def _suite_run(self, key: str, rows: RowSet) -> SuiteRun:
        sampling = self._spec.sampling
        seed = self._spec.seed if sampling.seed is None else sampling.seed
        directories = {path.name: path for path in (self._workdir / "inputs").glob("*")}
        directories["workdir"] = self._workdir
        if self._deployment.benchmarks_dir is not None:
            directories["benchmarks"] = self._deployment.benchmarks_dir
        return SuiteRun(
            key=key,
            rows=rows.rows,
            asker=self._asker,
            sampling=Sampling(sampling.max_tokens, sampling.temperature, seed),
            seed=self._spec.seed,
            baseline=self._spec.baseline_name,
            open_model=lambda model: self._at_gateway(model, model),
            inputs=directories,
        )

    def _open_target(self, target: TargetConfig) -> Target:
        if target.engine == "gateway" or not self._spec.asks_targets:
            return self._at_gateway(target.name, target.model)
        if target.engine == "transformers":
            return self._in_process(target)
        assert target.base_url is not None
        if not is_allowed(target.base_url, self._deployment.allowed_base_urls):
            raise PermissionDenied(
                f"target {target.name}: {target.base_url} is not among the addresses that the operator allowed"
            )
        headers = {}
        if target.api_key_env is not None:
            key = os.environ.get(target.api_key_env, "")
            if not key:
                raise FailedPrecondition(f"target {target.name}: the worker has no variable {target.api_key_env}")
            headers["authorization"] = f"Bearer {key}"
        return HttpTarget(target.name, target.model, self._endpoint(target.base_url, headers))

    def _at_gateway(self, name: str, model: str) -> Target:
        return HttpTarget(name, model, self._endpoint(self._deployment.gateway_url, self._deployment.headers))

    def _endpoint(self, base_url: str, headers: Mapping[str, str]) -> Endpoint:
        # Latency levels may ask for more than the job's concurrency.
        return Endpoint(base_url, headers, self._deployment.deadline_seconds, connections=0)

    def _in_process(self, target: TargetConfig) -> Target:
        try:
            from martlet_evaluator.targets.local import LocalTarget
        except ModuleNotFoundError as error:
            raise FailedPrecondition(
                f"target {target.name}: engine transformers needs {error.name}; start the worker in the environment "
                "evaluator-transformers"
            ) from error
        places = self._deployment.models.get(target.name)
        if places is None:
            raise NotFound(f"target {target.name}: {target.model} has no files here")
        inputs = self._workdir / "inputs"
        adapter = inputs / places["adapter"] if places.get("adapter") else None
        return LocalTarget(target.name, target.model, inputs / places["model"], adapter)


def read_dataset(spec: EvaluationConfig, path: Path, max_json_bytes: int | None = None) -> RowSet:
    """The job's rows, checked for what its suites need of them.

    Raises:
        InvalidArgument: see ``load_rows``.
    """
    return load_rows(
        path,
        conversations=spec.needs_conversations,
        max_rows=spec.max_rows,
        category_field=spec.category_field,
        max_json_bytes=max_json_bytes,
        checks=spec.row_checks,
    )


def read_deployment(config: Mapping[str, Any]) -> Deployment:
    """What the worker added to the spec."""
    gateway = config.get("gateway") or {}
    key = gateway.get("api_key")
    headers = {"authorization": f"Bearer {key}"} if key else {}
    benchmarks = config.get("benchmarks_dir")
    return Deployment(
        gateway_url=str(gateway.get("base_url") or ""),
        headers=headers,
        allowed_base_urls=tuple(config.get("allowed_base_urls") or ()),
        benchmarks_dir=Path(benchmarks) if benchmarks else None,
        deadline_seconds=float(config.get("deadline_seconds") or 600.0),
        checkpoint_seconds=float(config.get("checkpoint_seconds") or 15.0),
        models=config.get("models") or {},
    )
