"""What a training learns from, example by example, whatever the recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from martlet_inputs.rows.exchanges import Exchange
from martlet_inputs.rows.preferences import Feedback, Preference
from martlet_inputs.rows.prompts import Prompt

from martlet_trainer.data.encode import EncodedRow, RowEncoder


class Example(Protocol):
    """An example as tokens."""

    @property
    def token_count(self) -> int:
        """Tokens that are computed for it."""
        ...

    @property
    def target_count(self) -> int:
        """Tokens that carry loss."""
        ...

    @property
    def weight(self) -> float:
        """What it adds to the number that a step's loss is divided by."""
        ...

    @property
    def truncated(self) -> bool:
        """Whether it was cut at the longest length."""
        ...


#: Makes examples of a row's content and its format: one, but of long texts. Raises RowError.
Encode = Callable[[Any, str], Sequence[Example]]


@dataclass(frozen=True)
class EncodedGroup:
    """Rows that are one example together, such as a better answer and a worse one.

    Attributes:
        rows: in an order that the recipe knows.
        good: whether its answer is good, of recipes that learn from verdicts.
        reference: log-probability of each row's targets under the model that training starts from; empty where it isn't needed.
    """

    rows: tuple[EncodedRow, ...]
    good: bool = True
    reference: tuple[float, ...] = ()

    @property
    def token_count(self) -> int:
        return sum(row.token_count for row in self.rows)

    @property
    def target_count(self) -> int:
        return sum(row.target_count for row in self.rows)

    @property
    def weight(self) -> int:
        return 1

    @property
    def truncated(self) -> bool:
        return any(row.truncated for row in self.rows)


@dataclass(frozen=True)
class EncodedPrompt:
    """A question as tokens.

    Attributes:
        input_ids: Shape (length,), int32.
        columns: what rewards need to know of the row.
        turns: the question as the row has it.
    """

    input_ids: np.ndarray
    columns: Mapping[str, Any]
    turns: Sequence[Mapping[str, Any]] = ()

    @property
    def token_count(self) -> int:
        return len(self.input_ids)

    @property
    def target_count(self) -> int:
        return 0

    @property
    def weight(self) -> int:
        return 1

    @property
    def truncated(self) -> bool:
        return False


@dataclass(frozen=True)
class EncodedExchange:
    """A question as tokens, and perhaps its answer.

    Attributes:
        question: alone.
        answered: with its answer; None where the row has none.
    """

    question: EncodedPrompt
    answered: EncodedRow | None

    @property
    def token_count(self) -> int:
        return (self.answered or self.question).token_count

    @property
    def target_count(self) -> int:
        return self.answered.target_count if self.answered else 0

    @property
    def weight(self) -> int:
        return 1

    @property
    def truncated(self) -> bool:
        return self.answered is not None and self.answered.truncated


def encode_exchange(encoder: RowEncoder) -> Encode:
    """Questions with their answers, where they have any."""

    def encode(content: Exchange, format_name: str) -> Sequence[EncodedExchange]:
        question = EncodedPrompt(encoder.encode_prompt(content.question), {})
        answered = encoder.encode(content.conversation, format_name) if content.conversation else None
        return (EncodedExchange(question, answered),)

    return encode


def encode_question(encoder: RowEncoder) -> Encode:
    """Questions, each an example."""

    def encode(content: Prompt, format_name: str) -> Sequence[EncodedPrompt]:
        asked = content.conversation
        return (EncodedPrompt(encoder.encode_prompt(asked), content.columns, asked.messages),)

    return encode


def encode_conversation(encoder: RowEncoder) -> Encode:
    """Conversations, each an example."""
    return lambda content, format_name: (encoder.encode(content, format_name),)


def encode_text(encoder: RowEncoder) -> Encode:
    """Plain texts, in as many pieces as they need."""
    return lambda content, format_name: encoder.encode_text(content)


def encode_preference(encoder: RowEncoder) -> Encode:
    """Pairs: the chosen row, then the rejected one."""

    def encode(content: Preference, format_name: str) -> Sequence[EncodedGroup]:
        rows = (encoder.encode(content.chosen, format_name), encoder.encode(content.rejected, format_name))
        return (EncodedGroup(rows),)

    return encode


def encode_feedback(encoder: RowEncoder) -> Encode:
    """Rows with a verdict."""

    def encode(content: Feedback, format_name: str) -> Sequence[EncodedGroup]:
        return (EncodedGroup((encoder.encode(content.conversation, format_name),), good=content.good),)

    return encode


def rows_of(examples: Sequence[Any]) -> list[EncodedRow]:
    """All rows of examples, group by group."""
    return [row for example in examples for row in (example.rows if isinstance(example, EncodedGroup) else (example,))]
