"""Evals to test with: graders of each kind, rows, and a gateway before an evaluator's double."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from martlet_gateway.testing.evaluator import EvaluatorDouble

SCHEMA = {
    "type": "object",
    "properties": {
        "question": {"type": "string"},
        "answer": {"type": "string"},
        "turns": {"type": "array", "items": {"type": "object", "properties": {"role": {}, "content": {}}}},
        "meta": {"type": "object", "properties": {"level": {"type": "integer"}}},
    },
    "required": ["question", "answer"],
}
CONFIG = {"type": "custom", "item_schema": SCHEMA, "include_sample_schema": True}
EXACT = {
    "type": "string_check",
    "name": "exact",
    "input": "{{ sample.output_text }}",
    "reference": "{{item.answer}}",
    "operation": "eq",
}
CLOSE = {
    "type": "text_similarity",
    "name": "close",
    "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}",
    "evaluation_metric": "rouge_l",
    "pass_threshold": 0.5,
}
LABEL = {
    "type": "label_model",
    "name": "polite",
    "model": "smollm2-135m-instruct",
    "input": [
        {"role": "developer", "content": "Say polite or rude."},
        {"type": "message", "role": "user", "content": {"type": "input_text", "text": "{{sample.output_text}}"}},
    ],
    "labels": ["polite", "rude"],
    "passing_labels": ["polite"],
}
SCORE = {
    "type": "score_model",
    "name": "useful",
    "model": "qwen-tiny",
    "input": [{"role": "user", "content": "1 to 5 for {{item.question}}: {{sample.output_text}}"}],
    "range": [1, 5],
    "pass_threshold": 3.5,
    "sampling_params": {"temperature": 0, "seed": 1, "top_p": 1, "max_completions_tokens": 8},
}
MULTI = {
    "type": "multi",
    "name": "both",
    "graders": {"a": EXACT, "b": {k: v for k, v in CLOSE.items() if k != "pass_threshold"}},
    "calculate_output": "min(a, 0.5 * a + b^2 / 2)",
}
ROWS = [{"item": {"question": f"What is {n}+{n}?", "answer": str(2 * n)}} for n in range(3)]
TEMPLATE = {"type": "template", "template": [{"role": "user", "content": "{{item.question}}"}]}


@dataclass
class Evals:
    """The gateway under test, its evaluator, and the stock client."""

    gateway: Any
    evaluator: EvaluatorDouble
    client: Any

    async def define(self, *criteria: dict[str, Any], **fields: Any) -> Any:
        config = fields.pop("data_source_config", CONFIG)
        return await self.client.evals.create(
            data_source_config=config, testing_criteria=list(criteria) or [EXACT, CLOSE], **fields
        )

    async def start(self, eval_id: str, **fields: Any) -> Any:
        """A run on three rows of the request."""
        source = fields.pop("data_source", None) or completions()
        return await self.client.evals.runs.create(eval_id, data_source=source, **fields)

    def finish(self, run_id: str, records: list[dict[str, Any]]) -> None:
        self.evaluator.finish(run_id, self.gateway.stores.artifacts, records)

    @property
    def jobs_made(self) -> list[Any]:
        return [call for call in self.evaluator.calls if call.method == "CreateEvaluationJob"]


def completions(**changes: Any) -> Any:
    source = {"type": "completions", "model": "smollm2-135m-instruct", "input_messages": TEMPLATE}
    source |= {"source": {"type": "file_content", "content": ROWS}} | changes
    return {key: value for key, value in source.items() if value is not None}


def strictly(model: Any, found: Any) -> Any:
    """The object as its pydantic model demands it. ``error`` is null where there is none, as OpenAI's own service has it, though
    the model wants an object."""
    values = copy.deepcopy(found.to_dict())
    for holder in (values, values.get("sample")):
        if isinstance(holder, dict) and "error" in holder and holder["error"] is None:
            holder["error"] = {"code": "", "message": ""}
    return model.model_validate(values)
