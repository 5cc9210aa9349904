"""MLflow: a run in the experiment that the project names, at ``MLFLOW_TRACKING_URI``."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from martlet_trainer.tracking.run import Point, RunEnd, TrackedRun, flat

_JOB_TAG = "martlet.job"
_STATUS = {"SUCCEEDED": "FINISHED", "FAILED": "FAILED", "CANCELLED": "KILLED"}
#: What one ``log_batch`` takes: https://mlflow.org/docs/latest/rest-api.html#log-batch
_MOST_METRICS, _MOST_OTHERS, _MOST_CHARACTERS = 1000, 100, 6000


def open_run(run: TrackedRun) -> MlflowRun:
    """See ``MlflowRun``."""
    return MlflowRun(run)


class MlflowRun:
    """See ``Tracker``. A metric told again has the same step and time, and MLflow's databases keep such a one once; parameters
    and tags that are the same again change nothing."""

    def __init__(self, run: TrackedRun) -> None:
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            raise ValueError("MLFLOW_TRACKING_URI isn't set; give it to the tracker's process")
        self._client = MlflowClient()
        self.known: int | None = None
        experiment = self._experiment(run.project)
        self.tool_run = run.tool_run or self._find(experiment, run.job_id) or self._create(experiment, run)
        self._client.update_run(self.tool_run, status="RUNNING")
        self._params(flat(run.config))

    def log(self, points: Sequence[Point]) -> None:
        """See ``Tracker``."""
        metrics = (
            Metric(name, value, round(point.time * 1000), point.step)
            for point in points
            for name, value in point.values.items()
        )
        for chunk in _chunks(metrics, _MOST_METRICS):
            self._client.log_batch(self.tool_run, metrics=chunk)

    def close(self, end: RunEnd) -> None:
        """See ``Tracker``. Numbers of the result become metrics (``result.*``), the rest tags."""
        self._params({f"resolved.{name}": value for name, value in flat(end.config).items()})
        summary = {f"result.{name}": value for name, value in flat(end.summary).items()}
        numbers = {name: value for name, value in summary.items() if isinstance(value, int | float)}
        milliseconds = round(end.time * 1000)
        metrics = (Metric(name, float(value), milliseconds, 0) for name, value in numbers.items())
        for chunk in _chunks(metrics, _MOST_METRICS):
            self._client.log_batch(self.tool_run, metrics=chunk)
        tags = [RunTag(name, _text(value)) for name, value in summary.items() if name not in numbers]
        for chunk in _chunks([RunTag("martlet.state", end.state), *tags], _MOST_OTHERS):
            self._client.log_batch(self.tool_run, tags=chunk)
        self._client.set_terminated(self.tool_run, _STATUS[end.state], milliseconds)

    def leave(self) -> None:
        """See ``Tracker``. The run stays as it is: every call was answered."""

    def _experiment(self, name: str) -> str:
        experiment = self._client.get_experiment_by_name(name)
        if experiment is None:
            try:
                return self._client.create_experiment(name)
            except MlflowException:  # another process was faster
                experiment = self._client.get_experiment_by_name(name)
                if experiment is None:
                    raise
        return experiment.experiment_id

    def _find(self, experiment: str, job_id: str) -> str:
        """A run that was made by a process that died before it could say so; empty where there is none."""
        found = self._client.search_runs([experiment], f"tags.`{_JOB_TAG}` = '{job_id}'", max_results=1)
        return found[0].info.run_id if found else ""

    def _create(self, experiment: str, run: TrackedRun) -> str:
        tags = {_JOB_TAG: run.job_id, "martlet.tenant": run.tenant}
        if run.tags:
            tags["martlet.tags"] = ", ".join(run.tags)
        return self._client.create_run(experiment, tags=tags, run_name=run.name).info.run_id

    def _params(self, values: Mapping[str, Any]) -> None:
        for chunk in _chunks((Param(name, _text(value)) for name, value in values.items()), _MOST_OTHERS):
            self._client.log_batch(self.tool_run, params=chunk)


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    if len(text) <= _MOST_CHARACTERS:
        return text
    note = f" ... ({len(text)} characters)"
    return text[: _MOST_CHARACTERS - len(note)] + note


def _chunks(values: Iterable[Any], size: int) -> Iterable[list[Any]]:
    iterator = iter(values)
    while chunk := list(islice(iterator, size)):
        yield chunk
