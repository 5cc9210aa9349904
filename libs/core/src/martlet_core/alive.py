"""A sign of life of processes that listen on no port: a file that a worker touches, and that a health check looks at."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

TOUCH_SECONDS = 5.0


@contextmanager
def touching(path: Path | None, works: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """Touch a file every few seconds while the block runs and ``works`` says so; remove it afterwards.

    Args:
        path: the file; None does nothing.
        works: whether what the process is for still runs; it must return at once.
    """
    if path is None:
        yield
        return
    ended = threading.Event()

    def touch() -> None:
        while works():
            path.touch()
            if ended.wait(TOUCH_SECONDS):
                return

    thread = threading.Thread(target=touch, name="alive", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        path.unlink(missing_ok=True)
