"""Ways to measure, one file a suite."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from martlet_core.errors import InvalidArgument

from martlet_evaluator.config import SuiteConfig, close_to
from martlet_evaluator.suite_options import parse_suite_options
from martlet_evaluator.suites.base import Suite

#: Suite name -> module and class; its options are in ``suite_options.SUITE_OPTIONS``.
SUITES: Mapping[str, str] = {
    "exact_match": "martlet_evaluator.suites.exact_match:ExactMatch",
    "classification": "martlet_evaluator.suites.classification:Classification",
    "generation": "martlet_evaluator.suites.generation:Generation",
    "perplexity": "martlet_evaluator.suites.perplexity:Perplexity",
    "judge": "martlet_evaluator.suites.judge:Judge",
    "latency": "martlet_evaluator.suites.latency:Latency",
    "lm_eval": "martlet_evaluator.suites.lm_eval:LmEval",
    "graders": "martlet_evaluator.suites.graders:Graders",
    "embedding": "martlet_evaluator.suites.embedding:Embedding",
    "rerank": "martlet_evaluator.suites.rerank:Rerank",
    "reward": "martlet_evaluator.suites.reward:Reward",
}


def load_suite(entry: SuiteConfig) -> Suite:
    """A suite with its options; its libraries are imported now.

    Raises:
        InvalidArgument: there is none of that name, or an option is wrong.
    """
    if entry.suite not in SUITES:
        raise InvalidArgument.field("spec.suites.suite", f"is {entry.suite!r}; {close_to(entry.suite, list(SUITES))}")
    module, _, name = SUITES[entry.suite].partition(":")
    return getattr(importlib.import_module(module), name)(parse_suite_options(entry))
