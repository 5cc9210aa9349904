"""Work on large files in a process of its own, so that chats don't wait for it.

Runs ``python -m martlet_gateway.<module> ARGUMENT...``, which prints one JSON value.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import orjson
from martlet_core.errors import DeadlineExceeded, Internal

#: Files up to this size are read in a thread: a process takes longer to start.
IN_PROCESS_BYTES = 1024 * 1024
_TIMEOUT_SECONDS = 300.0


async def run_module(module: str, *arguments: str) -> Any:
    """What the module prints.

    Raises:
        Internal: it failed.
        DeadlineExceeded: it took longer than five minutes.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module, *arguments), stdout=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(_TIMEOUT_SECONDS):
            output, _ = await process.communicate()
    except TimeoutError as error:
        raise DeadlineExceeded(f"{module} took longer than {_TIMEOUT_SECONDS:g} s; send less at a time.") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        raise Internal(f"{module} ended with code {process.returncode}.")
    return orjson.loads(output)
