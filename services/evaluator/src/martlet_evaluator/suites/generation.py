"""Generation: how much of the expected text an answer holds. ROUGE is the mean of the rows'; BLEU and chrF are the corpus's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from martlet_evaluator import overlap
from martlet_evaluator.rows import Row
from martlet_evaluator.statistics import Measure, mean_measure
from martlet_evaluator.suite_options import GenerationOptions
from martlet_evaluator.suites.base import Record, Suite, SuiteRun, chat
from martlet_evaluator.targets.base import Answer, Target


class Generation(Suite):
    """``rouge1``, ``rouge2``, ``rougeL`` (0 to 1), ``bleu``, ``chrf`` (0 to 100), ``answer_words``."""

    options: GenerationOptions

    async def ask(self, run: SuiteRun, target: Target) -> list[Record]:
        """Ask each row and compare the texts."""
        rouges = tuple(name for name in self.options.scores if name.startswith("rouge"))

        def score(row: Row, answer: Answer) -> Record:
            scores = overlap.rouge(rouges, answer.text, row.expected or "", use_stemmer=self.options.use_stemmer)
            scores["answer_words"] = float(len(answer.text.split()))
            return run.record(target, row, answer, scores, {"finish_reason": answer.finish_reason})

        return await run.ask_rows(target, lambda row: chat(target, row, run.sampling), score)

    def measure(self, records: Sequence[Record]) -> list[Measure]:
        """Means of the rows', and the corpus's."""
        rows = [record.row for record in records]
        measures = [
            mean_measure(name, rows, [record.scores[name] for record in records], is_binary=False)
            for name in self.options.scores
            if name.startswith("rouge")
        ]
        for name, metric in (("bleu", overlap.bleu()), ("chrf", overlap.chrf())):
            if name in self.options.scores and records:
                stats = metric.stats([r.output for r in records], [r.expected for r in records])
                measures.append(Measure(name, tuple(rows), stats, metric.finish, metric.rows(stats)))
        words = [record.scores["answer_words"] for record in records]
        return [*measures, mean_measure("answer_words", rows, words, unit="words", compared=False)]

    def details(self, records: Sequence[Record]) -> dict[str, Any]:
        """How many answers were cut, and sacrebleu's signatures."""
        cut = sum(record.details["finish_reason"] == "length" for record in records)
        notes = [f"{cut} of {len(records)} answers were cut at sampling.max_tokens."] if cut else []
        notes += [
            f"{name}: {metric.signature}"
            for name, metric in (("bleu", overlap.bleu()), ("chrf", overlap.chrf()))
            if name in self.options.scores
        ]
        return {"notes": notes}
