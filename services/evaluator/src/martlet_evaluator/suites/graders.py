"""Graders: OpenAI's testing criteria over answers that are sampled here, or that the rows hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from martlet_core.errors import InvalidArgument

from martlet_evaluator.graders import Grade, ModelRequest, grade, model_requests, render_messages
from martlet_evaluator.rows import Row
from martlet_evaluator.statistics import Measure, mean_measure
from martlet_evaluator.suite_options import GradersOptions
from martlet_evaluator.suites.base import Record, Suite, SuiteRun
from martlet_evaluator.targets.base import Answer, Sampling, Target


class Graders(Suite):
    """``pass_rate`` (all criteria), and by criterion its ``pass_rate`` and mean ``score``."""

    options: GradersOptions

    async def ask(self, run: SuiteRun, target: Target) -> list[Record]:
        """Sample each row's answer, then grade it."""
        judges: dict[str, Target] = {}

        async def one(row: Row) -> Record:
            item = row.values.get("item", row.values)
            answer = await self._answer(run, target, row, item)
            if not answer.error:
                record = await self._grade(run, target, row, item, answer, judges)
            else:
                record = run.record(target, row, answer)
            if record.error:
                run.asker.count_failure(f"target {target.name}, {run.key}, line {row.line}", record.error)
            return record

        try:
            return await run.asker.over(run.rows, one)
        finally:
            for judge in judges.values():
                await judge.close()

    def measure(self, records: Sequence[Record]) -> list[Measure]:
        """Pass rates and mean scores."""
        rows = [record.row for record in records]
        measures = [mean_measure("pass_rate", rows, [record.scores["pass_rate"] for record in records])]
        for criterion in self.options.testing_criteria:
            name = str(criterion["name"])
            for part in ("pass_rate", "score"):
                values = [record.scores[f"{name}.{part}"] for record in records]
                measures.append(mean_measure(f"{name}.{part}", rows, values))
        return measures

    async def _answer(self, run: SuiteRun, target: Target, row: Row, item: Any) -> Answer:
        if not self.options.sample:
            sample = row.values.get("sample")
            text = sample.get("output_text") if isinstance(sample, Mapping) else None
            return Answer(str(text)) if text is not None else Answer(error="the row has no sample.output_text")
        try:
            messages = (
                render_messages(self.options.input_messages, item, {}) if self.options.input_messages else row.messages
            )
        except InvalidArgument as error:
            return Answer(error=error.message)
        if not messages:
            return Answer(error="the row is no conversation, and options.input_messages is empty")
        return await run.asker.ask(
            f"{run.key}/{target.name}/answer/{row.index}", lambda: target.chat(messages, run.sampling, tools=row.tools)
        )

    async def _grade(
        self, run: SuiteRun, target: Target, row: Row, item: Any, answer: Answer, judges: dict[str, Target]
    ) -> Record:
        given = row.values.get("sample")
        sample = {
            **(given if isinstance(given, Mapping) and not self.options.sample else {}),
            "output_text": answer.text,
        }
        sample.setdefault("output_tools", answer.data.get("tool_calls", []))
        grades: list[Grade] = []
        for index, criterion in enumerate(self.options.testing_criteria):
            key = f"{run.key}/{target.name}/grade-{index}/{row.index}"
            grades.append(await self._one_grade(run, criterion, item, sample, key, judges))
        errors = [f"{g.name}: {g.error}" for g in grades if g.error]
        if errors:
            return run.record(target, row, Answer(answer.text, seconds=answer.seconds, error="; ".join(errors)))
        scores = {"pass_rate": float(all(g.passed for g in grades))}
        for g in grades:
            scores |= {f"{g.name}.pass_rate": float(g.passed), f"{g.name}.score": g.score}
        return run.record(
            target, row, answer, scores, {"grades": {g.name: dict(g.details) for g in grades if g.details}}
        )

    async def _one_grade(
        self, run: SuiteRun, criterion: Mapping[str, Any], item: Any, sample: Any, key: str, judges: dict[str, Target]
    ) -> Grade:
        said: dict[str, str] = {}
        try:
            requests = model_requests(criterion, item, sample)
        except InvalidArgument as error:
            return Grade(str(criterion["name"]), 0.0, False, error.message)
        for name, request in requests.items():
            judge = judges.setdefault(request.model, run.open_model(request.model))
            answer = await run.asker.ask(
                f"{key}/{name}", lambda judge=judge, request=request: _ask(run, judge, request)
            )
            if answer.error:
                return Grade(str(criterion["name"]), 0.0, False, f"{request.model}: {answer.error}")
            said[name] = answer.text
        return grade(criterion, item, sample, said)


async def _ask(run: SuiteRun, judge: Target, request: ModelRequest) -> Answer:
    asked = request.sampling
    sampling = Sampling(
        max_tokens=int(asked.get("max_completions_tokens") or asked.get("max_tokens") or 16),
        temperature=float(asked.get("temperature") or 0.0),
        seed=int(asked.get("seed") or run.seed),
    )
    return await judge.chat(request.messages, sampling, choices=request.choices)
