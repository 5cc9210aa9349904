"""What comes of vLLM's pooling routes, read. ValueError and its like for an answer of another shape."""

from __future__ import annotations

from typing import Any

from martlet_evaluator.targets.base import Answer


def read_class(values: Any) -> Answer:
    """An answer of /classify to one input."""
    [item] = values["data"]
    numbers = [float(number) for number in item["probs"]]
    return _counted(values, Answer(str(item["label"]), data={"probs": numbers}))


def read_vectors(values: Any, count: int) -> Answer:
    """An answer of /embeddings to ``count`` texts."""
    vectors = {int(item["index"]): item["embedding"] for item in values["data"]}
    return _counted(values, Answer(data={"vectors": [vectors[index] for index in range(count)]}))


def read_scores(values: Any, count: int) -> Answer:
    """An answer of /rerank about ``count`` documents, which come by their relevance."""
    scores = {int(item["index"]): float(item["relevance_score"]) for item in values["results"]}
    return _counted(values, Answer(data={"scores": [scores[index] for index in range(count)]}))


def _counted(values: Any, answer: Answer) -> Answer:
    usage = values.get("usage") or {}
    return Answer(answer.text, prompt_tokens=int(usage.get("prompt_tokens") or 0), data=answer.data)
