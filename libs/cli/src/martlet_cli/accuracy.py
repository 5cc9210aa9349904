"""Ask a model held-out questions through the gateway, as a user would, and count the right answers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
from martlet_core.errors import InvalidArgument

from martlet_cli.gateway import translated

#: Room for a label; what follows it does not count, and takes time.
MAX_TOKENS = 4
_FIRST_WORD = re.compile(r"\W*(\w+)")


@dataclass(frozen=True)
class Question:
    """A held-out row: the messages up to the answer, and the answer."""

    messages: tuple[dict[str, str], ...]
    answer: str


@dataclass(frozen=True)
class Answers:
    """What a model said.

    Attributes:
        model: its name.
        texts: its answers, in the order of the questions.
        right: whether each was right.
        unreadable: answers that are none of the labels, though the request allows no other; they count as wrong.
    """

    model: str
    texts: tuple[str, ...]
    right: tuple[bool, ...]
    unreadable: int

    @property
    def accuracy(self) -> float:
        """Share of right answers, 0.0 to 1.0."""
        return sum(self.right) / len(self.right)


def load_questions(path: Path) -> list[Question]:
    """Held-out rows of a JSONL file in the ``messages`` format; the last message is the answer.

    Raises:
        InvalidArgument: naming the line that isn't such a row.
    """
    questions = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        try:
            *messages, answer = json.loads(line)["messages"]
            questions.append(Question(tuple(messages), str(answer["content"])))
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidArgument(f"{path}, line {number}: not a row of messages with an answer at its end") from error
    return questions


def ask(
    client: openai.OpenAI,
    model: str,
    questions: Sequence[Question],
    *,
    concurrency: int = 16,
    done: Callable[[int], Any] = lambda count: None,
) -> Answers:
    """Ask all questions, greedily, several at a time; only the labels are allowed as answers.

    A model that hasn't seen the task yet would otherwise be marked down for its phrasing. Held to the labels, it is
    compared by what it knows. (``structured_outputs.choice`` is vLLM's name for this.)

    Args:
        client: the stock client.
        model: name of the model.
        questions: what to ask; their answers are the labels.
        concurrency: requests in flight.
        done: told after each answer how many there are.

    Raises:
        MartletError: if a request fails; nothing is counted then.
    """
    labels = sorted({question.answer for question in questions})
    words = {first_word(label) for label in labels}
    answered = 0

    def one(question: Question) -> str:
        nonlocal answered
        messages: Any = list(question.messages)
        completion = client.chat.completions.create(
            model=model,
            messages=messages,
            max_tokens=MAX_TOKENS,
            temperature=0.0,
            extra_body={"structured_outputs": {"choice": labels}},
        )
        answered += 1
        done(answered)
        return completion.choices[0].message.content or ""

    with translated(), ThreadPoolExecutor(concurrency) as pool:
        texts = tuple(pool.map(one, questions))
    said = [first_word(text) for text in texts]
    right = tuple(word == first_word(question.answer) for word, question in zip(said, questions, strict=True))
    return Answers(model, texts, right, unreadable=sum(word not in words for word in said))


def first_word(text: str) -> str:
    """The first word in lower case; empty if there is none. A label is one word, and what follows it doesn't count."""
    match = _FIRST_WORD.match(text)
    return match.group(1).lower() if match else ""
