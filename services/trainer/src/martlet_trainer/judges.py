"""Rewards that models give (OpenAI's ``score_model``), through the gateway, as functions: recipes know nothing of the wire."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from martlet_core.errors import FailedPrecondition, InvalidArgument
from martlet_core.graders import ModelRequest
from martlet_core.reward_graders import judges_of, reward_of, reward_requests

from martlet_trainer.gateway_calls import Gateway, Refused
from martlet_trainer.rewards import Answer, Rewards, item_of


def connect(graders: Sequence[Mapping[str, Any]], gateway: Gateway, seed: int) -> Mapping[str, Rewards]:
    """Graders that ask models, as rewards by name.

    An answer that lacks what a template names is worth 0, and no model is asked for it; so is one for which a judge gave no number of its
    range. Where no answer of a batch got a number, the judge is not one, and the reward raises FailedPrecondition. It raises what
    ``Gateway.post`` does where models are away.

    Args:
        graders: as asked for.
        gateway: where models are asked.
        seed: of judges whose ``sampling_params`` name none.
    """
    return {str(grader["name"]): partial(_rewards, grader, gateway, seed) for grader in graders}


def require_judges(graders: Sequence[Mapping[str, Any]], gateway: Gateway) -> None:
    """Refuse graders whose models don't exist. FailedPrecondition names the first; others as ``Gateway.post``."""
    for grader in graders:
        for model in judges_of(grader):
            found = gateway.model(model)
            if isinstance(found, Refused):
                raise _failed(grader, f"can't ask {model}: {found.message}")


def _rewards(grader: Mapping[str, Any], gateway: Gateway, seed: int, answers: Sequence[Answer]) -> Sequence[float]:
    asked: list[tuple[int, str, ModelRequest]] = []
    for index, answer in enumerate(answers):
        try:
            requests = reward_requests(grader, item_of(answer), answer.text)
        except InvalidArgument:
            continue  # worth 0, as ``reward_of`` says below
        asked += [(index, key, request) for key, request in requests.items()]
    texts = gateway.together([partial(_ask, grader, gateway, seed, request) for *_, request in asked])
    said: list[dict[str, str]] = [{} for _ in answers]
    for (index, key, _), text in zip(asked, texts, strict=True):
        said[index][key] = text
    graded = [
        reward_of(grader, item_of(answer), answer.text, found) for answer, found in zip(answers, said, strict=True)
    ]
    errors = [error for (_, error), found in zip(graded, said, strict=True) if found and error]
    if errors and len(errors) == sum(map(bool, said)):
        raise _failed(grader, f"gave no score for any of {len(errors)} answers, the first time because {errors[0]}")
    return [score for score, _ in graded]


def _ask(grader: Mapping[str, Any], gateway: Gateway, seed: int, request: ModelRequest) -> str:
    body = {
        "model": request.model,
        "messages": [dict(message) for message in request.messages],
        **request.drawn_with(seed),
    }
    found = gateway.post("chat/completions", body, f"asking {request.model} for grader {grader['name']}")
    if isinstance(found, Refused):
        raise _failed(grader, f"{request.model} refused to answer (HTTP {found.status}): {found.message}")
    try:
        return str(found["choices"][0]["message"]["content"] or "")
    except (KeyError, IndexError, TypeError) as error:
        raise _failed(grader, f"{request.model} answered with something else than a chat: {error!r}") from error


def _failed(grader: Mapping[str, Any], text: str) -> FailedPrecondition:
    return FailedPrecondition(f"The grader {grader['name']}: {text}", reason="GRADER_FAILED")
