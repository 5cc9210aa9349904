"""Rewards by name: what an answer is worth, by its text and by what its row says. Imports no ML library."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from martlet_core.errors import InvalidArgument
from martlet_core.reward_graders import require_item, reward_of

from martlet_trainer.recipes.options import RewardOptions

_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_BOXED = re.compile(r"\\boxed\{([^{}]*)\}")
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_THOUGHT = re.compile(r"\s*<think>.*?</think>\s*<answer>.*?</answer>\s*", re.DOTALL)
_SAME = 1e-6


@dataclass(frozen=True)
class Answer:
    """What a model said.

    Attributes:
        text: without special tokens.
        tokens: how many tokens it took, its end among them.
        columns: the row's fields beside the question.
        prompt: turns of the question, as the row has them.
    """

    text: str
    tokens: int
    columns: Mapping[str, Any]
    prompt: Sequence[Mapping[str, Any]] = ()


Reward = Callable[[Answer], float]
#: What answers are worth, a number each.
Rewards = Callable[[Sequence[Answer]], Sequence[float]]


def one_by_one(reward: Reward) -> Rewards:
    """A reward that looks at no other answer."""
    return lambda answers: [reward(answer) for answer in answers]


def by_grader(grader: Mapping[str, Any]) -> Reward:
    """The score of one of OpenAI's graders; 0 where the answer lacks what a template names."""
    return lambda answer: reward_of(grader, item_of(answer), answer.text)[0]


def item_of(answer: Answer) -> dict[str, Any]:
    """An answer's row as templates know it."""
    return _item(answer.columns, answer.prompt)


def _item(columns: Mapping[str, Any], turns: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A row as templates know it."""
    return {"messages": list(turns), **columns}


def require_items(
    graders: Sequence[Mapping[str, Any]], rows: Sequence[tuple[Mapping[str, Any], Sequence[Mapping[str, Any]]]]
) -> None:
    """Refuse rows, each its columns and its turns, that lack what a grader's template names.

    Raises:
        InvalidArgument: naming the grader, the field and the first such row.
    """
    for grader in graders:
        for index, row in enumerate(rows):
            try:
                require_item(grader, _item(*row))
            except InvalidArgument as error:
                raise InvalidArgument.field(
                    "spec.training_dataset",
                    f"grader {grader['name']}: {error.message} (row {index + 1} of {len(rows)}); add the field to the rows",
                ) from error


def build(options: RewardOptions) -> Reward:
    """The reward of its options, not weighted yet."""
    if options.name == "accuracy":
        return accuracy
    if options.name == "format":
        return lambda answer: float(_THOUGHT.fullmatch(answer.text) is not None)
    if options.name == "regex":
        pattern = re.compile(options.pattern or "", re.DOTALL)
        return lambda answer: float(pattern.search(answer.text) is not None)
    target = options.target or 1
    return lambda answer: max(0.0, 1.0 - abs(answer.tokens - target) / target)


def accuracy(answer: Answer) -> float:
    """1 where the answer is the row's ``solution``, else 0.

    The answer is what stands in ``<answer>``, else in the last ``\\boxed{}``, else all of it. Numbers are compared as numbers; where the
    solution is a number and the answer is not, its last number counts.
    """
    wanted, said = _plain(str(answer.columns["solution"])), _plain(_said(answer.text))
    if wanted == said:
        return 1.0
    number = _number(wanted)
    if number is None:
        return 0.0
    found = _number(said)
    if found is None:
        numbers = _NUMBER.findall(said)
        found = _number(numbers[-1]) if numbers else None
    return float(found is not None and abs(found - number) <= _SAME * max(1.0, abs(number)))


def require_columns(rewards: Sequence[RewardOptions], rows: Sequence[Mapping[str, Any]]) -> None:
    """Refuse rows that lack what a reward needs.

    Raises:
        InvalidArgument: naming the field and how many rows lack it.
    """
    if all(reward.name != "accuracy" for reward in rewards):
        return
    lacking = sum(1 for row in rows if not isinstance(row.get("solution"), (str, int, float)))
    if lacking:
        raise InvalidArgument.field(
            "spec.training_dataset",
            f"{lacking} of {len(rows)} rows have no `solution` (text or a number), which the reward accuracy compares with; add it,"
            " or choose other rewards in recipe_options.rewards",
        )


def _said(text: str) -> str:
    for pattern in (_ANSWER, _BOXED):
        if found := pattern.findall(text):
            return found[-1]
    return text


def _plain(text: str) -> str:
    return " ".join(text.strip().strip(".").split()).casefold()


def _number(text: str) -> float | None:
    try:
        return float(text.replace(",", "").strip("$% "))
    except ValueError:
        return None
