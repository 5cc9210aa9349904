"""``evaluate``: models measured on the same rows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from martlet.evaluator.v1 import evaluation_service_pb2

from martlet_gateway.job_kinds import EVALUATION
from martlet_gateway.runs.steps.base import JobStep, StepWorld


class EvaluateStep(JobStep):
    """``with`` is a ``martlet.evaluator.v1.EvaluationSpec``.

    Its metrics are called ``<target>.<suite>.<metric>``, and ``<suite>.<metric>`` as well where there is one target.
    """

    kind = "evaluate"
    title = "Measure models on the same rows."
    jobs = EVALUATION
    required = ("targets", "suites")
    outputs: ClassVar[Mapping[str, str]] = {
        "report": "The report, as artifacts/{id}.",
        "records": "A record for each row, target and suite, as artifacts/{id}.",
    }

    def outputs_of(self, job: Any) -> dict[str, str]:
        """See JobStep."""
        return {"report": job.result.report_artifact, "records": job.result.records_artifact}

    def numbers_of(self, job: Any) -> dict[str, float]:
        """See JobStep."""
        targets = job.result.targets
        numbers = {f"{t.name}.{name}": metric.value for t in targets for name, metric in sorted(t.metrics.items())}
        return {
            **numbers,
            "rows_used": float(job.result.rows_used),
            "rows_failed": float(job.result.rows_failed),
        }

    def summary_of(self, job: Any, metrics: Mapping[str, float]) -> str:
        """The first metric of each target."""
        words = []
        for target in list(job.result.targets)[:6]:
            for name, metric in sorted(target.metrics.items())[:1]:
                words.append(f"{target.name} {name.rpartition('.')[2]} {metric.value:.4g}")
        return ", ".join(words)

    async def metrics_known(self, world: StepWorld, options: Mapping[str, Any]) -> frozenset[str] | None:
        """The metrics that the suites say they give; None where a suite doesn't say, there is no such suite, or a target's
        name or a suite's isn't settled before the job runs.
        """
        request = evaluation_service_pb2.ListEvaluationSuitesRequest(page_size=1000)
        answer = await self._call(world, "ListEvaluationSuites", request)
        given = {suite.name: list(suite.metrics) for suite in answer.suites}
        targets = [str(target.get("name") or target.get("model")) for target in options.get("targets") or []]
        suites = [suite.get("suite") for suite in options.get("suites") or []]
        if any("${" in name for name in targets) or len(set(suites)) < len(suites):
            return None
        names = {"rows_used", "rows_failed"}
        for suite in suites:
            metrics = given.get(suite)
            if not metrics:
                return None
            metrics = [*map(_open, metrics), "failed_rows"]
            names |= {f"{target}.{suite}.{metric}" for target in targets for metric in metrics}
        return frozenset(names)


def _open(metric: str) -> str:
    """A metric's name with `*` for what only the job's options say (``<task>.<metric>``, ``ttft_ms.cN``)."""
    return re.sub(r"<[^<>]+>|\bcN\b", "*", metric)
