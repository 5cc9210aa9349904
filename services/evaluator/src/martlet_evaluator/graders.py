"""Graders as the evaluator has them: the rules for those of a job, and similarities by the usual packages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from martlet_core import graders
from martlet_core.errors import FieldViolation
from martlet_core.grader_rules import Namespace, check_criteria, check_messages, prompt_namespace
from martlet_core.graders import whole_numbers


def criteria_violations(criteria: Sequence[Mapping[str, Any]], at: str) -> list[FieldViolation]:
    """What is wrong with graders by the rules that the gateway goes by; fields below ``at``, in dots as elsewhere in a spec."""
    namespace = Namespace({}, has_sample=True)
    check_criteria(whole_numbers(criteria), namespace)
    return [FieldViolation(f"{at}{v.field.removeprefix('testing_criteria')}", v.description) for v in dotted(namespace)]


def prompt_violations(messages: Sequence[Mapping[str, Any]], at: str) -> list[FieldViolation]:
    """The same of a prompt's template."""
    namespace = prompt_namespace({})
    check_messages(list(messages), at, namespace)
    return dotted(namespace)


def dotted(namespace: Namespace) -> list[FieldViolation]:
    """What was found, with ``a.0.b`` for ``a[0].b``."""
    return [FieldViolation(v.field.replace("[", ".").replace("]", ""), v.description) for v in namespace.found]


def similarity(metric: str, text: str, reference: str) -> float:
    """How alike two texts are, 0.0 to 1.0; ``fuzzy_match`` is difflib's ratio."""
    if metric == "fuzzy_match":
        return graders.fuzzy_match(metric, text, reference)
    if metric == "bleu":
        from sacrebleu.metrics.bleu import BLEU

        return BLEU(effective_order=True).sentence_score(text, [reference]).score / 100
    if metric == "gleu":
        from nltk.translate.gleu_score import sentence_gleu

        return float(sentence_gleu([reference.split()], text.split())) if reference.split() else 0.0
    from martlet_evaluator.overlap import rouge

    name = "rougeL" if metric == "rouge_l" else metric.replace("_", "")
    return rouge((name,), text, reference)[name]


#: Works a grader out, see ``martlet_core.graders.grade``.
grade = partial(graders.grade, similarity=similarity)
