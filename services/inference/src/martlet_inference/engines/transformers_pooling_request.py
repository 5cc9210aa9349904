"""What the transformers engine reads in a body of vLLM's pooling routes. What it can't honour is refused by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from martlet_inference.engines.base import Route
from martlet_inference.engines.transformers_request import BadRequest, flag, messages_of, read_fields, whole_number

#: A text, its tokens, or two texts that are read together.
Input = str | list[int] | tuple[str, str]

_ANY_ROUTE = frozenset({"model", "stream", "truncate_prompt_tokens", "use_activation"})
_INPUT = frozenset({"input", "messages", "add_special_tokens", "add_generation_prompt", "continue_final_message"})
_ENCODED = frozenset({"encoding_format", "dimensions"})
#: The two sides of a score under each of the names that vLLM takes.
_SIDES = (("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2"))
#: Fields that are honoured, by route.
HONOURED: Mapping[Route, frozenset[str]] = {
    Route.EMBEDDINGS: _ANY_ROUTE | _INPUT | _ENCODED,
    Route.CLASSIFY: _ANY_ROUTE | _INPUT,
    Route.POOLING: _ANY_ROUTE | _INPUT | _ENCODED | {"task"},
    Route.SCORE: _ANY_ROUTE | {side for sides in _SIDES for side in sides},
    Route.RERANK: _ANY_ROUTE | {"query", "documents", "top_n", "return_documents"},
}


@dataclass(frozen=True)
class PoolingRequest:
    """What was asked for.

    Attributes:
        route: which of the pooling routes.
        model: the whole model.
        inputs: texts, lists of tokens, or pairs of texts; empty where there are messages.
        messages: a conversation to be written with the model's chat template.
        open_turn: its last message is gone on with (``continue_final_message``).
        new_turn: it ends with the beginning of an answer (``add_generation_prompt``).
        special_tokens: whether the tokenizer adds its own; None for a text's default.
        truncate: longest input in tokens, beyond which it is cut; -1 for what the model reads, None refuses longer ones.
        activation: False for what the head says as it is (no softmax, no scaling to length 1); None for the model's default.
        dimensions: of a vector, the first so many; None for all.
        base64: whether vectors are bytes in base64 instead of lists of numbers.
        task: of /pooling; empty for the model's own.
        top_n: how many documents are wanted; 0 for all.
        return_documents: whether the documents' texts come back.
    """

    route: Route
    model: str
    inputs: Sequence[Input] = ()
    messages: Sequence[Mapping[str, Any]] = ()
    open_turn: bool = False
    new_turn: bool = False
    special_tokens: bool | None = None
    truncate: int | None = None
    activation: bool | None = None
    dimensions: int | None = None
    base64: bool = False
    task: str = ""
    top_n: int = 0
    return_documents: bool = True

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The inputs that are pairs of texts."""
        return [item for item in self.inputs if isinstance(item, tuple)]


def parse(route: Route, body: bytes) -> PoolingRequest:
    """Read a body of a pooling route. BadRequest names what is wrong or not honoured."""
    fields = read_fields(body, HONOURED[route])
    open_turn, new_turn = flag(fields, "continue_final_message", False), flag(fields, "add_generation_prompt", False)
    if open_turn and new_turn:
        raise BadRequest("continue_final_message needs add_generation_prompt false.", "continue_final_message")
    truncate = whole_number(fields, "truncate_prompt_tokens", -1, None, None)
    if truncate == 0:
        raise BadRequest("truncate_prompt_tokens is 0; it must be at least 1, or -1.", "truncate_prompt_tokens")
    return PoolingRequest(
        route=route,
        model=str(fields.get("model", "")),
        inputs=_inputs(route, fields),
        messages=messages_of(fields["messages"]) if "messages" in fields else (),
        open_turn=open_turn,
        new_turn=new_turn,
        special_tokens=flag(fields, "add_special_tokens", True) if "add_special_tokens" in fields else None,
        truncate=truncate,
        activation=flag(fields, "use_activation", True) if "use_activation" in fields else None,
        dimensions=whole_number(fields, "dimensions", 1, None, None),
        base64=_base64(fields.get("encoding_format", "float")),
        task=str(fields.get("task", "")),
        top_n=whole_number(fields, "top_n", 0, None, 0) or 0,
        return_documents=flag(fields, "return_documents", True),
    )


def _inputs(route: Route, fields: Mapping[str, Any]) -> Sequence[Input]:
    if route is Route.RERANK:
        query = _text(fields.get("query"), "query")
        return [(query, document) for document in _texts(fields.get("documents"), "documents")]
    if route is Route.SCORE:
        return _pairs(fields)
    if "messages" in fields:
        if "input" in fields:
            raise BadRequest("input and messages were both given; give one of them.", "input")
        return ()
    return _input(fields.get("input"))


def _input(value: Any) -> Sequence[Input]:
    """OpenAI's ``input``: a text, its tokens, or a list of either."""
    if isinstance(value, str) or _is_tokens(value):
        return [value]
    if isinstance(value, list) and value and (all(isinstance(i, str) for i in value) or all(map(_is_tokens, value))):
        return value
    raise BadRequest("input must be a text, a list of tokens, or a list of one of these that is not empty.", "input")


def _is_tokens(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(token) is int for token in value)


def _pairs(fields: Mapping[str, Any]) -> Sequence[tuple[str, str]]:
    given = [sides for sides in _SIDES if all(side in fields for side in sides)]
    if len(given) != 1:
        names = " or ".join(f"{one} and {two}" for one, two in _SIDES)
        raise BadRequest(f"Give two sides, as {names}.", _SIDES[0][0])
    [(first, second)] = given
    lefts, rights = (_texts(fields[side], side) for side in (first, second))
    if len(lefts) == 1:
        lefts = list(lefts) * len(rights)
    if len(lefts) != len(rights):
        raise BadRequest(
            f"{first} has {len(lefts)} texts and {second} {len(rights)}; give as many, or one of {first}.", second
        )
    return list(zip(lefts, rights, strict=True))


def _texts(value: Any, name: str) -> Sequence[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts:
        raise BadRequest(f"{name} must be a text or a list of at least one.", name)
    return [_text(text, f"{name}[{index}]") for index, text in enumerate(texts)]


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise BadRequest(f"{where} must be a text.", where)
    return value


def _base64(encoding: Any) -> bool:
    if encoding not in ("float", "base64"):
        raise BadRequest(f"encoding_format is {encoding!r}; it must be float or base64.", "encoding_format")
    return encoding == "base64"
