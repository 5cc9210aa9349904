"""What a server's answers are made into before the replica passes them on."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

from martlet_core.errors import InvalidArgument
from martlet_core.rpc.client import MAX_MESSAGE_BYTES

from martlet_inference.engines.base import openai_error

#: What a message holds beside the answer, in bytes, and more.
_MESSAGE_OVERHEAD = 1024


def error_text(body: bytes) -> str:
    """The text of an error body."""
    try:
        fields = json.loads(body)
        return str((fields.get("error") or fields).get("message") or fields.get("detail") or fields)
    except (ValueError, AttributeError):
        return body.decode(errors="replace")[:500]


def in_envelope(body: bytes, status: int) -> bytes:
    """An error body in OpenAI's envelope; it has that shape already unless the web framework wrote it."""
    try:
        if "error" in json.loads(body):
            return body
    except (ValueError, TypeError):
        pass
    return openai_error(error_text(body), status=status)


def sendable(body: bytes) -> bytes:
    """The body of an answer; InvalidArgument (``ANSWER_TOO_LARGE``) if no message can hold it."""
    if len(body) > MAX_MESSAGE_BYTES - _MESSAGE_OVERHEAD:
        raise InvalidArgument(
            f"The answer has {len(body)} bytes, more than the {MAX_MESSAGE_BYTES} that a message may have. Send fewer inputs "
            "at a time, or ask for embeddings with encoding_format base64.",
            reason="ANSWER_TOO_LARGE",
        )
    return body


async def once(body: bytes) -> AsyncIterator[bytes]:
    """A stream of one piece."""
    yield body
