"""How a token is drawn: what is done to a model's scores beforehand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)


def processors(sampling: Mapping[str, Any]) -> LogitsProcessorList:
    """transformers' own, in vLLM's order. Greedy choice needs the penalty alone."""
    made: list[Any] = []
    if (penalty := sampling.get("repetition_penalty", 1.0)) != 1.0:
        made.append(RepetitionPenaltyLogitsProcessor(penalty))
    temperature = sampling.get("temperature", 1.0)
    if temperature > 0:
        if temperature != 1.0:
            made.append(TemperatureLogitsWarper(float(temperature)))
        if sampling.get("min_p"):
            made.append(MinPLogitsWarper(sampling["min_p"]))
        if sampling.get("top_k", 0) > 0:
            made.append(TopKLogitsWarper(int(sampling["top_k"])))
        if sampling.get("top_p", 1.0) < 1.0:
            made.append(TopPLogitsWarper(sampling["top_p"]))
    return LogitsProcessorList(made)
