"""OpenAI's graders as rewards of a training: which ones are offered, and what an answer is to them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from martlet_core.errors import FieldViolation
from martlet_core.grader_rules import TEMPLATE, Namespace, check_grader, steps_of, texts
from martlet_core.graders import MODEL_GRADERS, ModelRequest, grade, look_up, model_requests

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
    if kind == "label_model":
        namespace.wrong(f"{at}.type", "`label_model` is for evals: a label is no number; use `score_model`.")
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


def asks_models(grader: Mapping[str, Any]) -> bool:
    """Whether models must be asked before the grader can be worked out."""
    return bool(judges_of(grader))


def judges_of(grader: Mapping[str, Any]) -> list[str]:
    """The models that a grader asks, each once."""
    if grader["type"] in MODEL_GRADERS:
        return [str(grader["model"])]
    parts = grader.get("graders", {}).values() if grader["type"] == "multi" else ()
    return list(dict.fromkeys(model for part in parts for model in judges_of(part)))


def reward_requests(grader: Mapping[str, Any], item: Mapping[str, Any], answer: str) -> dict[str, ModelRequest]:
    """What must be asked of models for an answer, by the keys of ``reward_of``'s ``said``.

    Raises:
        InvalidArgument: the answer lacks what a template names: it is worth 0.
    """
    return model_requests(grader, item, _sample(answer))


def reward_of(
    grader: Mapping[str, Any], item: Mapping[str, Any], answer: str, said: Mapping[str, str] | None = None
) -> tuple[float, str]:
    """What an answer is worth: the grader's score, and why it is 0 where there is none (an answer that is no JSON has no fields, a
    judge gave no number of its range).
    """
    found = grade(grader, item, _sample(answer), said)
    return found.score, found.error


def _sample(answer: str) -> dict[str, Any]:
    sample: dict[str, Any] = {"output_text": answer}
    with suppress(ValueError, RecursionError):
        sample["output_json"] = json.loads(answer)
    return sample


def _paths(grader: Mapping[str, Any]) -> list[str]:
    return [match[1] for text in texts(grader) for match in TEMPLATE.finditer(text)]
