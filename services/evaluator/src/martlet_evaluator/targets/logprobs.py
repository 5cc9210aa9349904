"""Log-probabilities of given text, out of what engines return: vLLM's ``prompt_logprobs``, and OpenAI's ``echo``.

vLLM 0.32: /chat/completions returns ``prompt_logprobs`` at the top, a list with one entry a prompt token (null for the
first), each a map of token id -> {logprob, rank, decoded_token}; /completions with ``echo`` and ``logprobs`` returns
OpenAI's older shape, prompt tokens first.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from martlet_evaluator.targets.base import Answer

FIRST_TOKEN_ALONE = "the text is one token, and the first token of a text has no probability; give it a context"
_NOT_OFFERED = "the engine returned no log-probabilities of the prompt; measure perplexity with engine transformers"


def read_prompt_logprobs(values: Any) -> Answer:
    """Of a chat: ``data["logprobs"]`` has one entry a prompt token, None for the first."""
    entries = values.get("prompt_logprobs")
    if not isinstance(entries, list):
        return Answer(error=_NOT_OFFERED)
    # With prompt_logprobs=0 an entry holds the prompt's own token alone.
    found = [None if not entry else float(next(iter(entry.values()))["logprob"]) for entry in entries]
    return Answer(data={"logprobs": found})


def behind_prompt(scored: Answer, prompt_tokens: int) -> Answer:
    """Only the tokens behind the prompt."""
    if scored.error:
        return scored
    found = scored.data["logprobs"]
    if not 0 < prompt_tokens < len(found):
        text = (
            f"the conversation has {len(found)} tokens with the answer and {prompt_tokens} without; they must be more"
        )
        return replace(scored, error=text, data={})
    return replace(scored, data={"logprobs": found[prompt_tokens:]})


def read_echo(values: Any) -> Answer:
    """Of a completion with ``echo``: tokens, log-probabilities and the most likely ones, without the generated token."""
    found = values["choices"][0].get("logprobs") or {}
    generated = int((values.get("usage") or {}).get("completion_tokens") or 0)
    tokens, numbers, best = found.get("tokens"), found.get("token_logprobs"), found.get("top_logprobs")
    if not tokens or not numbers or len(tokens) <= generated:
        return Answer(error=_NOT_OFFERED)
    end = len(tokens) - generated
    greedy = [
        number is None or not entry or number >= max(entry.values())
        for number, entry in zip(numbers, best or [None] * len(numbers), strict=True)
    ]
    return Answer(data={"tokens": tokens[:end], "logprobs": numbers[:end], "greedy": greedy[:end]})


def start_of(scored: Answer, context: str) -> int | None:
    """Index of the first token behind the context; None where no token begins there."""
    seen = ""
    for index, token in enumerate(scored.data["tokens"]):
        if seen == context:
            return index
        seen += token
        if not context.startswith(seen):
            return None
    return None


def behind_context(scored: Answer, start: int) -> Answer:
    """Only the tokens behind the context."""
    numbers, greedy = scored.data["logprobs"][start:], scored.data["greedy"][start:]
    if not numbers:
        return replace(scored, error=f"nothing is left behind the context's {start} tokens", data={})
    if numbers[0] is None:  # an empty context: an engine gives the first token no probability
        numbers, greedy = numbers[1:], greedy[1:]
    if not numbers:
        return replace(scored, error=FIRST_TOKEN_ALONE, data={})
    return replace(scored, data={"logprobs": numbers, "is_greedy": all(greedy)})
