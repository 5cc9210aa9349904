"""A file that several threads fill with ranges, while one waits for them and hashes behind them."""

from __future__ import annotations

import hashlib
import io
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait

from martlet_core.backoff import GaveUp, stop_if

#: How much of a file is read or written at once.
PIECE_BYTES = 256 * 1024
_POLL_SECONDS = 0.1


class RangedFile:
    """The file. Whoever opened it calls ``finish`` before closing it."""

    def __init__(self, file: io.FileIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self._buffer = bytearray(PIECE_BYTES)
        # Taken around each write: threads that write to one file would otherwise spin on its lock in the kernel.
        self._lock = threading.Lock()
        self._finished = False

    def write(self, data: bytes, offset: int) -> None:
        """Write at a place. GaveUp once the file is finished: nobody waits for this range any more."""
        view = memoryview(data)
        with self._lock:
            while view:
                if self._finished:
                    raise GaveUp("writing a range")
                written = os.pwrite(self._file.fileno(), view, offset)
                view, offset = view[written:], offset + written

    def hash(self, offset: int, length: int) -> None:
        """Hash a range that was written, from the page cache; ranges are hashed in their order."""
        end = offset + length
        while offset < end:
            view = memoryview(self._buffer)[: end - offset]
            count = os.preadv(self._file.fileno(), [view], offset)
            self._digest.update(view[:count])
            offset += count

    def finish(self) -> str:
        """Take no more writes; returns the sha256 of what was hashed, in hex."""
        with self._lock:
            self._finished = True
        return self._digest.hexdigest()


def await_range(future: Future[None], give_up: Callable[[], bool], what: str) -> None:
    """Wait for a range to be written; its error is raised. GaveUp if the caller gave up first."""
    stop_if(give_up, what)
    while not wait((future,), _POLL_SECONDS).done:
        stop_if(give_up, what)
    future.result()
