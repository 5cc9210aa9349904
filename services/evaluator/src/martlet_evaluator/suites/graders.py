"""Graders: OpenAI's testing criteria over answers that are sampled here, or that the rows hold."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from martlet_core.errors import InvalidArgument
from martlet_core.graders import Grade, ModelRequest, model_requests, referred_messages, render_messages

from martlet_evaluator.graders import grade
from martlet_evaluator.rows import Row
from martlet_evaluator.statistics import Measure, mean_measure
from martlet_evaluator.suite_options import GradersOptions
from martlet_evaluator.suites.base import Record, Suite, SuiteRun
from martlet_evaluator.targets.base import Answer, Messages, Sampling, Target

#: A question to a model that grades, and what it said.
Asked = tuple[ModelRequest, Answer]


@dataclass(frozen=True)
class Graded:
    """A criterion over one answer: the grade, and what models were asked for it."""

    criterion: Mapping[str, Any]
    grade: Grade
    asked: Sequence[Asked]

    def to_dict(self) -> dict[str, Any]:
        """As records have it under ``results``, or under ``ungraded`` where there is no grade."""
        shown = {"name": self.grade.name, "type": self.criterion["type"], "sample": judges_sample(self.asked)}
        if self.grade.error:
            return {**shown, "error": self.grade.error}
        return {**shown, "passed": self.grade.passed, "score": self.grade.score}


class Graders(Suite):
    """``pass_rate`` (all criteria), and by criterion its ``pass_rate`` and mean ``score``."""

    options: GradersOptions

    async def ask(self, run: SuiteRun, target: Target) -> list[Record]:
        """Sample each row's answer, then grade it."""
        judges: dict[str, Target] = {}

        async def one(row: Row) -> Record:
            item = row.values.get("item", row.values)
            messages, answer = await self._answer(run, target, row, item)
            graded = [] if answer.error else await self._grades(run, target, row, item, answer, judges)
            record = self._record(run, target, row, answer, graded)
            shown = replace(record, fields=self._fields(target, row, item, messages, answer, record, graded))
            if shown.error:
                run.asker.count_failure(f"target {target.name}, {run.key}, line {row.line}", shown.error)
            return shown

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

    async def _answer(self, run: SuiteRun, target: Target, row: Row, item: Any) -> tuple[Messages, Answer]:
        """The messages that were sent, and what came; an answer without text where the row's sample has none."""
        if not self.options.sample:
            return (), Answer(_text(_given(row).get("output_text", "")))
        try:
            messages = self._prompt(row, item)
        except InvalidArgument as error:
            return (), Answer(error=error.message)
        answer = await run.asker.ask(
            f"{run.key}/{target.name}/answer/{row.index}", lambda: target.chat(messages, run.sampling, tools=row.tools)
        )
        return messages, answer

    def _prompt(self, row: Row, item: Any) -> Messages:
        if self.options.input_messages:
            return render_messages(self.options.input_messages, item, {})
        if self.options.item_reference:
            return referred_messages(self.options.item_reference, item)
        if not row.messages:
            raise InvalidArgument("the row is no conversation, and options.input_messages is empty")
        return row.messages

    async def _grades(
        self, run: SuiteRun, target: Target, row: Row, item: Any, answer: Answer, judges: dict[str, Target]
    ) -> list[Graded]:
        sample = _given(row)
        if self.options.sample:
            sample = {"output_text": answer.text, "output_tools": answer.data.get("tool_calls", [])}
        graded = []
        for index, criterion in enumerate(self.options.testing_criteria):
            key = f"{run.key}/{target.name}/grade-{index}/{row.index}"
            graded.append(await self._one_grade(run, criterion, item, sample, key, judges))
        return graded

    async def _one_grade(
        self, run: SuiteRun, criterion: Mapping[str, Any], item: Any, sample: Any, key: str, judges: dict[str, Target]
    ) -> Graded:
        def without(error: str) -> Graded:
            return Graded(criterion, Grade(str(criterion["name"]), 0.0, False, error), asked)

        asked: list[Asked] = []
        said: dict[str, str] = {}
        try:
            requests = model_requests(criterion, item, sample)
        except InvalidArgument as error:
            return without(error.message)
        for name, request in requests.items():
            judge = judges.setdefault(request.model, run.open_model(request.model))
            answer = await run.asker.ask(
                f"{key}/{name}", lambda judge=judge, request=request: _ask(run, judge, request)
            )
            if answer.error:
                return without(f"{request.model}: {answer.error}")
            asked.append((request, answer))
            said[name] = answer.text
        return Graded(criterion, grade(criterion, item, sample, said), asked)

    def _record(self, run: SuiteRun, target: Target, row: Row, answer: Answer, graded: Sequence[Graded]) -> Record:
        grades = [found.grade for found in graded]
        errors = [f"{g.name}: {g.error}" for g in grades if g.error]
        if answer.error or errors:
            return run.record(target, row, replace(answer, error=answer.error or "; ".join(errors)))
        scores = {"pass_rate": float(all(g.passed for g in grades))}
        for g in grades:
            scores |= {f"{g.name}.pass_rate": float(g.passed), f"{g.name}.score": g.score}
        return run.record(
            target, row, answer, scores, {"grades": {g.name: dict(g.details) for g in grades if g.details}}
        )

    def _fields(
        self,
        target: Target,
        row: Row,
        item: Any,
        messages: Messages,
        answer: Answer,
        record: Record,
        graded: Sequence[Graded],
    ) -> dict[str, Any]:
        """What docs/evals.md says of a line."""
        asks = self.options.sample
        came = not answer.error if asks else "output_text" in _given(row)
        tools = {"tool_calls": answer.data["tool_calls"]} if answer.data.get("tool_calls") else {}
        return {
            "status": "error" if record.error else "pass" if record.score else "fail",
            "item": item,
            "sample": {
                "model": target.model if asks else _text(_given(row).get("model") or ""),
                "input": [dict(message) for message in messages],
                "output": [{"role": "assistant", "content": answer.text, **tools}] if came else [],
                "finish_reason": answer.finish_reason,
                "usage": _usage([answer]) if asks and came else None,
                "error": record.error or None,
            },
            "results": [found.to_dict() for found in graded if not found.grade.error],
            "ungraded": [found.to_dict() for found in graded if found.grade.error],
        }


def judges_sample(asked: Sequence[Asked]) -> dict[str, Any] | None:
    """What models said for a grade; where there are several models, those after the first are its ``others``."""
    by_model: dict[str, list[Asked]] = {}
    for request, answer in asked:
        by_model.setdefault(request.model, []).append((request, answer))
    samples = [
        {
            "model": model,
            "input": [dict(message) for request, _ in found for message in request.messages],
            "output": [{"role": "assistant", "content": answer.text} for _, answer in found],
            "finish_reason": found[-1][1].finish_reason,
            "usage": _usage([answer for _, answer in found]),
            "invocation_count": len(found),
        }
        for model, found in by_model.items()
    ]
    if not samples:
        return None
    return {**samples[0], **({"others": samples[1:]} if len(samples) > 1 else {})}


def _usage(answers: Sequence[Answer]) -> dict[str, int]:
    prompt, completion = sum(a.prompt_tokens for a in answers), sum(a.completion_tokens for a in answers)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "cached_tokens": sum(a.cached_tokens for a in answers),
    }


def _given(row: Row) -> Mapping[str, Any]:
    """A row's own sample."""
    sample = row.values.get("sample")
    return sample if isinstance(sample, Mapping) else {}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


async def _ask(run: SuiteRun, judge: Target, request: ModelRequest) -> Answer:
    return await judge.chat(request.messages, Sampling(**request.drawn_with(run.seed)), choices=request.choices)
