"""What the transformers engine reads in a body. What it can't honour is refused by name, never left out silently."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from martlet_inference.engines.base import Route

_SAMPLING = {"temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed", "stop", "n", "logprobs"}
_ANY_ROUTE = _SAMPLING | {"model", "stream", "stream_options", "max_tokens", "ignore_eos", "return_token_ids"}
_CHAT = {"messages", "max_completion_tokens", "top_logprobs", "add_generation_prompt", "continue_final_message"}
#: Fields that are honoured, by route.
HONOURED: Mapping[Route, frozenset[str]] = {
    Route.CHAT_COMPLETIONS: frozenset(_ANY_ROUTE | _CHAT),
    Route.COMPLETIONS: frozenset(_ANY_ROUTE | {"prompt"}),
}
#: Fields that name the request or its sender, and never change an answer.
LABELS = frozenset({"user", "metadata", "service_tier", "safety_identifier", "prompt_cache_key"})
#: Fields that aren't honoured: the values with which they ask for nothing. Others, and fields named nowhere, are refused.
ASKS_FOR_NOTHING: Mapping[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),  # of tools, which are refused
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "store": (False,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
}
#: Keys of a message; tool calls and audio in it are refused.
MESSAGE_KEYS = frozenset({"role", "content", "name"})
ROLES = ("system", "developer", "user", "assistant", "tool")
#: Tokens of a text completion that names no maximum, as in OpenAI's interface; a chat may fill the context.
COMPLETION_TOKENS = 16
MAX_CHOICES = 128
MAX_TOP_LOGPROBS = 20


class BadRequest(ValueError):
    """A body that can't be answered; ``param`` names the field, ``status`` is HTTP's."""

    def __init__(self, message: str, param: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.param = param
        self.status = status


@dataclass(frozen=True)
class Request:
    """What was asked for.

    Attributes:
        route: chat or text completion.
        model: the whole model or an adapter.
        input: the messages, a text, or tokens.
        max_tokens: None leaves it to the context.
        sampling: ``temperature``, ``top_p``, ``top_k``, ``min_p``, ``repetition_penalty``, as far as they were named.
        top_logprobs: log-probabilities of the token and so many others; None for none.
        open_turn: a chat's last message is gone on with, instead of a new one begun (``continue_final_message``).
        new_turn: a chat's prompt ends with the beginning of an answer (``add_generation_prompt``).
        ignore_eos: an answer goes on behind its end, up to ``max_tokens``: for measurements, as vLLM has it.
        token_ids: the tokens are told too, an answer's end among them (vLLM's ``return_token_ids``).
    """

    route: Route
    model: str
    input: list[dict[str, Any]] | str | list[int]
    stream: bool
    include_usage: bool
    max_tokens: int | None
    sampling: Mapping[str, float]
    seed: int | None
    stop: tuple[str, ...]
    choices: int
    top_logprobs: int | None
    open_turn: bool = False
    new_turn: bool = True
    ignore_eos: bool = False
    token_ids: bool = False

    @property
    def chat(self) -> bool:
        """Whether it is a chat completion."""
        return self.route is Route.CHAT_COMPLETIONS


def parse(route: Route, body: bytes) -> Request:
    """Read a body of /v1/chat/completions or /v1/completions. BadRequest names what is wrong or not honoured."""
    fields = read_fields(body, HONOURED[route])
    chat = route is Route.CHAT_COMPLETIONS
    longest = "max_completion_tokens" if chat and "max_completion_tokens" in fields else "max_tokens"
    open_turn = flag(fields, "continue_final_message", False)
    new_turn = flag(fields, "add_generation_prompt", True)
    if open_turn and new_turn:
        raise BadRequest("continue_final_message needs add_generation_prompt false.", "continue_final_message")
    options = fields.get("stream_options", {})
    if not isinstance(options, dict) or set(options) - {"include_usage"}:
        raise BadRequest("stream_options may hold include_usage alone.", "stream_options")
    stream, token_ids = flag(fields, "stream", False), flag(fields, "return_token_ids", False)
    if stream and token_ids:
        raise BadRequest("return_token_ids needs stream false with the engine `transformers`.", "return_token_ids")
    return Request(
        route=route,
        model=str(fields.get("model", "")),
        input=messages_of(fields.get("messages")) if chat else _prompt(fields.get("prompt")),
        stream=stream,
        include_usage=flag(options, "include_usage", False),
        max_tokens=whole_number(fields, longest, 1, None, None if chat else COMPLETION_TOKENS),
        sampling=_sampling(fields),
        seed=whole_number(fields, "seed", None, None, None),
        stop=_stop(fields.get("stop", [])),
        choices=whole_number(fields, "n", 1, MAX_CHOICES, 1) or 1,
        top_logprobs=_top_logprobs(fields, chat),
        open_turn=open_turn,
        new_turn=new_turn,
        ignore_eos=flag(fields, "ignore_eos", False),
        token_ids=token_ids,
    )


def read_fields(body: bytes, honoured: frozenset[str]) -> dict[str, Any]:
    """The fields of a body that aren't null. BadRequest for no JSON object, and for a field that isn't honoured."""
    try:
        fields = json.loads(body)
    except ValueError as exc:
        raise BadRequest(f"The body is not JSON: {exc}") from exc
    if not isinstance(fields, dict):
        raise BadRequest("The body must be a JSON object.")
    fields = {name: value for name, value in fields.items() if value is not None}
    for name, value in fields.items():
        if name in honoured or name in LABELS:
            continue
        if not any(value == nothing for nothing in ASKS_FOR_NOTHING.get(name, ())):
            raise BadRequest(
                f"The engine `transformers` does not honour `{name}`; leave it out, or ask a replica whose engine is vllm.",
                name,
            )
    return fields


def messages_of(messages: Any) -> list[dict[str, Any]]:
    """A conversation whose messages hold text alone. BadRequest names the one that is wrong."""
    if not isinstance(messages, list) or not messages:
        raise BadRequest("messages must be a list of at least one message.", "messages")
    return [_message(message, f"messages[{index}]") for index, message in enumerate(messages)]


def _message(message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, dict) or message.get("role") not in ROLES:
        raise BadRequest(f"{where} must be an object whose role is one of {', '.join(ROLES)}.", where)
    told = {key: value for key, value in message.items() if value is not None and value != []}
    if unknown := sorted(set(told) - MESSAGE_KEYS):
        raise BadRequest(f"The engine `transformers` does not honour {where}.{unknown[0]}.", f"{where}.{unknown[0]}")
    content = told.get("content", "")
    if isinstance(content, list):
        for place, part in enumerate(content):
            if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
                at = f"{where}.content[{place}]"
                raise BadRequest(f"{at} must be a part of type text: the engine `transformers` reads text alone.", at)
        content = "\n".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise BadRequest(f"{where}.content must be text.", f"{where}.content")
    return {**told, "content": content}


def _prompt(prompt: Any) -> str | list[int]:
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, list) and prompt and all(type(token) is int for token in prompt):
        return prompt
    raise BadRequest("prompt must be a text or a list of tokens; a list of prompts is not taken.", "prompt")


def _sampling(fields: Mapping[str, Any]) -> dict[str, float]:
    ranges: tuple[tuple[str, float, float | None], ...] = (
        ("temperature", 0, 2),
        ("top_p", 0, 1),
        ("min_p", 0, 1),
        ("repetition_penalty", 0, 2),
    )
    found = {}
    for name, low, high in ranges:
        if name not in fields:
            continue
        value = fields[name]
        if type(value) not in (int, float) or not low <= value <= (high or value):
            raise BadRequest(f"{name} is {value!r}; it must be a number from {low} to {high}.", name)
        if value == 0 and name in ("top_p", "repetition_penalty"):
            raise BadRequest(f"{name} must be above 0.", name)
        found[name] = float(value)
    if (top_k := whole_number(fields, "top_k", -1, None, None)) is not None:
        found["top_k"] = top_k
    return found


def _top_logprobs(fields: Mapping[str, Any], chat: bool) -> int | None:
    if not chat:
        return whole_number(fields, "logprobs", 0, MAX_TOP_LOGPROBS, None)
    if flag(fields, "logprobs", False):
        return whole_number(fields, "top_logprobs", 0, MAX_TOP_LOGPROBS, 0)
    if fields.get("top_logprobs"):
        raise BadRequest("top_logprobs needs logprobs true.", "top_logprobs")
    return None


def _stop(stop: Any) -> tuple[str, ...]:
    texts = [stop] if isinstance(stop, str) else stop
    if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
        raise BadRequest("stop must be a text or a list of texts, none of them empty.", "stop")
    return tuple(texts)


def whole_number(
    fields: Mapping[str, Any], name: str, low: int | None, high: int | None, default: int | None
) -> int | None:
    """An integer within its bounds, which count as in it. BadRequest otherwise."""
    value = fields.get(name, default)
    if value is None:
        return None
    if type(value) is not int or (low is not None and value < low) or (high is not None and value > high):
        bounds = "".join([f" of at least {low}" if low is not None else "", f" and at most {high}" if high else ""])
        raise BadRequest(f"{name} is {value!r}; it must be an integer{bounds}.", name)
    return value


def flag(fields: Mapping[str, Any], name: str, default: bool) -> bool:
    """True or false. BadRequest otherwise."""
    value = fields.get(name, default)
    if not isinstance(value, bool):
        raise BadRequest(f"{name} is {value!r}; it must be true or false.", name)
    return value
