"""OpenAI's graders as rewards of a training: which ones are offered, and what an answer is to them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from martlet_core.errors import FieldViolation
from martlet_core.grader_rules import TEMPLATE, Namespace, check_grader, steps_of, texts
from martlet_core.graders import MODEL_GRADERS, grade, look_up

#: Fields of an answer that templates may name.
_SAMPLE = ("output_text", "output_json")


def reward_grader_violations(grader: Any, at: str) -> list[FieldViolation]:
    """What is wrong with a grader that is to be a reward; fields as OpenAI's clients write them, below ``at``."""
    namespace = Namespace({}, has_sample=True)
    check_grader(grader, at, namespace)
    if not namespace.found:
        _check_offered(grader, at, namespace)
    return namespace.found


def _check_offered(grader: Mapping[str, Any], at: str, namespace: Namespace) -> None:
    kind = grader["type"]
    if kind in MODEL_GRADERS:
        text = "a training asks no models; put it into a reward service (martlet.recipe_options.reward_services)."
        namespace.wrong(f"{at}.type", f"`{kind}` is for evals: {text}")
    if kind == "text_similarity" and grader["evaluation_metric"] != "fuzzy_match":
        text = f"`{grader['evaluation_metric']}` is for evals; rewards have `fuzzy_match`, since the trainer lacks the packages of the others."
        namespace.wrong(f"{at}.evaluation_metric", text)
    for name, part in grader.get("graders", {}).items():
        _check_offered(part, f"{at}.graders.{name}", namespace)
    if kind == "multi":
        return
    for path in _paths(grader):
        root, *steps = steps_of(path)
        if root == "sample" and (not steps or steps[0] not in _SAMPLE):
            namespace.wrong(at, f"`{path:.80}`: an answer has {' and '.join(_SAMPLE)} here.")


def require_item(grader: Mapping[str, Any], item: Mapping[str, Any]) -> None:
    """Raise InvalidArgument for a row that lacks a field which the grader's templates name."""
    for path in _paths(grader):
        if steps_of(path)[0] == "item":
            look_up(path, {"item": item})


def reward_of(grader: Mapping[str, Any], item: Mapping[str, Any], answer: str) -> tuple[float, str]:
    """What an answer is worth: the grader's score, and why it is 0 where there is none (an answer that is no JSON has no fields)."""
    sample: dict[str, Any] = {"output_text": answer}
    with suppress(ValueError, RecursionError):
        sample["output_json"] = json.loads(answer)
    found = grade(grader, item, sample)
    return found.score, found.error


def _paths(grader: Mapping[str, Any]) -> list[str]:
    return [match[1] for text in texts(grader) for match in TEMPLATE.finditer(text)]
