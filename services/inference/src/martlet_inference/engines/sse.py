"""Cuts a byte stream of server-sent events into their payloads without looking inside them."""

from __future__ import annotations

from collections.abc import Iterator

#: Payload with which OpenAI-shaped streams end.
DONE = b"[DONE]"


class EventSplitter:
    """Gives the ``data`` of each event as it came, whatever the pieces the network cut the stream into.

    Comments and other fields are left out; several ``data`` lines of one event are joined by newlines, as the
    specification of server-sent events says. ``done`` is set once ``[DONE]`` was seen; what follows it is ignored.
    """

    def __init__(self) -> None:
        self.done = False
        self._rest = b""

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """Payloads of the events that a piece of the stream completes."""
        buffer = self._rest + piece
        if b"\r" in buffer:
            held_back = b"\r" if buffer.endswith(b"\r") else b""  # its \n may be in the next piece
            buffer = buffer[: len(buffer) - len(held_back)].replace(b"\r\n", b"\n") + held_back
        *events, self._rest = buffer.split(b"\n\n")
        for event in events:
            if self.done:
                return
            payload = _payload(event)
            if payload == DONE:
                self.done = True
            elif payload:
                yield payload


def _payload(event: bytes) -> bytes:
    if event.startswith(b"data: ") and b"\n" not in event:  # the form that engines send
        return event[6:]
    lines = (line for line in event.split(b"\n") if line.startswith(b"data:"))
    return b"\n".join(line[5:].removeprefix(b" ") for line in lines)
