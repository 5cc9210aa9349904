"""What a suite may ask of a target, and what it gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, runtime_checkable

Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Sampling:
    """How an answer is drawn; temperature 0 takes the most likely token each time."""

    max_tokens: int = 256
    temperature: float = 0.0
    seed: int = 42


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one request.

    Attributes:
        text: the answer.
        seconds: from the first attempt to the end, waits between attempts included.
        finish_reason: as the engine says: ``stop``, ``length``.
        prompt_tokens: as the engine counts them; 0 where it doesn't.
        completion_tokens: the same of the answer.
        cached_tokens: of the prompt's, those that the engine had from before.
        error: why there is no answer; empty where there is one.
        attempts: requests sent.
        data: what was asked for beside: ``logprobs``, ``is_greedy``, ``first_token_seconds``, ``gaps``, ``tool_calls``.
    """

    text: str = ""
    seconds: float = 0.0
    finish_reason: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    error: str = ""
    attempts: int = 1
    data: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; ``Answer(**values)`` is the inverse."""
        return asdict(self)


class Target(Protocol):
    """A model that answers. No method raises because of a request: the answer says why there is none."""

    name: str
    model: str

    @property
    def constrains(self) -> bool:
        """Whether ``choices`` are enforced; False once the endpoint refused them."""
        ...

    async def chat(
        self,
        messages: Messages,
        sampling: Sampling,
        *,
        choices: Sequence[str] = (),
        tools: Messages = (),
        extra: Mapping[str, Any] | None = None,
    ) -> Answer:
        """The next turn; ``choices`` are the only answers allowed, ``extra`` goes into the request as it is."""
        ...

    async def complete(self, prompt: str, sampling: Sampling, *, stop: Sequence[str] = ()) -> Answer:
        """Go on with a text, without a chat template."""
        ...

    async def stream(self, messages: Messages, sampling: Sampling, *, extra: Mapping[str, Any] | None = None) -> Answer:
        """As ``chat``, with the time to the first token and between tokens in ``data``."""
        ...

    async def score_answer(self, messages: Messages, answer: str, tools: Messages = ()) -> Answer:
        """Log-probabilities (nats) of the tokens of ``answer`` as the next turn, in ``data["logprobs"]``."""
        ...

    async def score_text(self, context: str, continuation: str) -> Answer:
        """The same of ``continuation`` behind ``context``, as plain text; ``data["is_greedy"]`` says whether each of its
        tokens was the most likely one."""
        ...

    async def close(self) -> None:
        """Let go of what it holds."""
        ...


@runtime_checkable
class PoolingTarget(Protocol):
    """A model that doesn't generate. As with ``Target``, no method raises because of a request."""

    name: str

    async def classify(self, text: str | Messages, *, raw: bool = False) -> Answer:
        """The label in ``text``, and in ``data["probs"]`` the numbers of all labels in their order: probabilities, or with ``raw``
        what the head says before they are made."""
        ...

    async def embed(self, texts: Sequence[str]) -> Answer:
        """A vector a text in ``data["vectors"]``, in the order of the texts."""
        ...

    async def rerank(self, query: str, documents: Sequence[str]) -> Answer:
        """A number a document in ``data["scores"]``, in the order of the documents."""
        ...
