"""Runs a piece of work in a fork of this process, with a limit of time."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any


def fork(life: Callable[[], object]) -> int:
    """Start a fork of this process, which does ``life`` and ends, whatever comes of it; returns its id."""
    child = os.fork()
    if child:
        return child
    try:
        life()
    except BaseException:  # noqa: BLE001  # a fork must never go on as its parent would
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def apart(work: Callable[[], dict[str, Any]], limit_seconds: float) -> dict[str, Any]:
    """What a function returns in a fork of this process, which is killed with its children after a time."""
    read, write = os.pipe()

    def told() -> None:
        os.setsid()
        os.write(write, json.dumps(work()).encode())

    child = fork(told)
    os.close(write)
    deadline, late = time.monotonic() + limit_seconds, False
    while not os.waitpid(child, os.WNOHANG)[0]:
        if time.monotonic() > deadline:
            late = True
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            break
        time.sleep(0.1)
    with os.fdopen(read, "rb") as pipe:
        said = b"" if late else pipe.read()
    if late:
        return {"message": f"it didn't end within {limit_seconds:g} s"}
    return json.loads(said) if said else {"message": "its process died"}
