"""Server-sent events come out whole, whatever pieces the network makes of them."""

from __future__ import annotations

import pytest
from martlet_inference.engines.sse import EventSplitter

STREAM = b'data: {"a": 1}\n\ndata: {"b": "\xc3\xa9"}\n\n: a comment\n\ndata: {"c": 3}\n\ndata: [DONE]\n\n'
EVENTS = [b'{"a": 1}', b'{"b": "\xc3\xa9"}', b'{"c": 3}']


def split(pieces: list[bytes]) -> tuple[list[bytes], bool]:
    splitter = EventSplitter()
    return [event for piece in pieces for event in splitter.feed(piece)], splitter.done


@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
def test_every_cut_gives_the_same_events(newline: bytes) -> None:
    stream = STREAM.replace(b"\n", newline)
    for at in range(len(stream) + 1):
        assert split([stream[:at], stream[at:]]) == (EVENTS, True), at


def test_byte_by_byte() -> None:
    assert split([bytes([byte]) for byte in STREAM]) == (EVENTS, True)


def test_a_stream_without_done_is_not_done() -> None:
    assert split([b"data: 1\n\ndata: 2\n\n"]) == ([b"1", b"2"], False)


def test_an_unfinished_event_is_held_back() -> None:
    assert split([b"data: 1\n\ndata: 2\n"]) == ([b"1"], False)


def test_what_follows_done_is_ignored() -> None:
    assert split([b"data: 1\n\ndata: [DONE]\n\ndata: 2\n\n"]) == ([b"1"], True)


def test_data_lines_of_one_event_are_joined_and_other_fields_left_out() -> None:
    assert split([b"event: x\ndata: 1\nid: 7\ndata:2\n\n"]) == ([b"1\n2"], False)
