"""Which beginnings of prompts a replica has seen: its engine still has their keys and values, and answers sooner.

A prompt is cut into blocks, and each block is named by a hash of itself and of all before it, as engines name the
blocks of their prefix caches (PagedAttention, arXiv 2309.06180; vLLM's automatic prefix caching). The gateway has no
tokenizer, so its blocks are bytes; what it believes is a guess that costs time when it is wrong and nothing else. Each
gateway remembers what it sent itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
from martlet.inference.v1 import inference_pb2

#: Bytes of a block: some 64 tokens of English.
BLOCK_BYTES = 256
#: Blocks of a prompt that are looked at, its first 64 KiB: replicas that share these hardly differ in the rest.
MAX_BLOCKS = 256
#: Blocks remembered for a replica, some 500,000 tokens; those unused for longest are forgotten.
CAPACITY = 8192

_ROUTES = frozenset({inference_pb2.OPEN_AI_ROUTE_CHAT_COMPLETIONS, inference_pb2.OPEN_AI_ROUTE_COMPLETIONS})


class Prompt:
    """The blocks of a request's prompt, computed when somebody asks.

    Args:
        request: a ``CallOpenAIRequest`` or ``GenerateRequest`` that names its model, not an alias.
    """

    __slots__ = ("_blocks", "_request")

    def __init__(self, request: Any) -> None:
        self._request = request
        self._blocks: Sequence[int] | None = None

    @property
    def blocks(self) -> Sequence[int]:
        """Hashes of the whole blocks from the prompt's beginning; other values in every process."""
        if self._blocks is None:
            text = _prompt_bytes(self._request)
            name, blocks = hash(self._request.model), []
            for end in range(BLOCK_BYTES, min(len(text), BLOCK_BYTES * MAX_BLOCKS) + 1, BLOCK_BYTES):
                name = hash((name, text[end - BLOCK_BYTES : end]))
                blocks.append(name)
            self._blocks = blocks
        return self._blocks


class PrefixMemory:
    """The blocks that went to one replica, the latest last."""

    __slots__ = ("_blocks", "_capacity")

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._blocks: dict[int, None] = {}
        self._capacity = capacity

    def __len__(self) -> int:
        return len(self._blocks)

    def matched(self, blocks: Sequence[int]) -> int:
        """How many of a prompt's blocks it has seen, from the beginning without a gap."""
        for index, block in enumerate(blocks):
            if block not in self._blocks:
                return index
        return len(blocks)

    def add(self, blocks: Sequence[int]) -> None:
        """Remember a prompt. Its beginning is kept longest: without it the rest can't be matched."""
        for block in reversed(blocks):
            self._blocks.pop(block, None)
            self._blocks[block] = None
        while len(self._blocks) > self._capacity:
            del self._blocks[next(iter(self._blocks))]

    def clear(self) -> None:
        """Forget everything: the engine holds another model."""
        self._blocks.clear()


def _prompt_bytes(request: Any) -> bytes:
    """What the model reads, in an order in which equal beginnings of prompts are equal beginnings of bytes."""
    if isinstance(request, inference_pb2.GenerateRequest):
        if request.WhichOneof("input") == "prompt":
            return request.prompt.encode()
        return request.conversation.SerializeToString()
    if request.route not in _ROUTES:
        return b""
    try:
        fields = orjson.loads(request.body)
    except orjson.JSONDecodeError:
        return b""  # the replica says what is wrong with it
    if not isinstance(fields, dict):
        return b""
    if request.route == inference_pb2.OPEN_AI_ROUTE_COMPLETIONS:
        prompt = fields.get("prompt")
        return prompt.encode("utf-8", "replace") if isinstance(prompt, str) else orjson.dumps(prompt)
    tools, messages = fields.get("tools"), fields.get("messages")
    return (orjson.dumps(tools) if tools else b"") + orjson.dumps(messages)
