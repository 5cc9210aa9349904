"""The gateway as a process on real Valkey and SeaweedFS."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
from martlet_core.api_keys import OPERATOR, USER, ApiKeyStore
from martlet_core.artifacts.s3 import S3ObjectStore
from martlet_core.local_servers import free_port
from martlet_core.settings import CoreSettings


@asynccontextmanager
async def running(environ: dict[str, str]) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """A gateway process that is ready, and what it had printed by then."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "martlet_gateway", "serve"),
        env={**os.environ, **environ, "PYTHONUNBUFFERED": "1"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr
    assert process.stdout
    try:
        async with asyncio.timeout(60):
            await _read_until(process.stderr, b"serving REST")
        yield process, environ["MARTLET_HTTP_PORT"]
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_first_start_makes_a_key_that_survives_and_sigterm_ends_it(
    valkey_url: str, s3_settings: dict[str, str], tmp_path: Path
) -> None:
    environ = {
        **{f"MARTLET_{name.upper()}": value for name, value in s3_settings.items()},
        "MARTLET_S3_BUCKET": "gateway-process",
        "MARTLET_REDIS_URL": valkey_url,
        "MARTLET_HTTP_PORT": str(free_port()),
        "MARTLET_GRPC_ADDRESS": "127.0.0.1:0",
        "MARTLET_TRAINER_ADDRESS": "127.0.0.1:1",
        "MARTLET_UPLOAD_DIR": str(tmp_path / "uploads"),
        "MARTLET_CACHE_DIR": str(tmp_path / "cache"),
        "MARTLET_HOUSEKEEPING_HOURS": "0.0005",
    }
    async with running(environ) as (process, port):
        ready: Any = await asyncio.to_thread(urllib.request.urlopen, f"http://127.0.0.1:{port}/readyz", timeout=10)
        assert b'"status":"ready"' in ready.read()
        key = await _stop(process)
        assert key
    async with running(environ) as (process, port):
        async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=key[0], max_retries=0) as client:
            made = await client.files.create(file=("a.txt", b"hello"), purpose="user_data")
            assert (await client.files.content(made.id)).content == b"hello"
            assert [file.id async for file in client.files.list()] == [made.id]
        assert process.stderr
        async with asyncio.timeout(60):
            await _read_until(process.stderr, b"swept uploads")
        assert await _stop(process) == [], "the key is printed once"


async def _read_until(log: asyncio.StreamReader, text: bytes) -> None:
    while text not in (line := await log.readline()):
        assert line, f"the gateway ended before it said {text!r}"


async def _stop(process: asyncio.subprocess.Process) -> list[str]:
    """End the process as an orchestrator would; returns the keys it had printed."""
    process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(30):
        output, _ = await process.communicate()
    assert process.returncode == 0
    return re.findall(r"mk-[A-Za-z0-9_-]{43}", output.decode())


async def test_set_up_by_command(valkey_url: str, s3_settings: dict[str, str], tmp_path: Path) -> None:
    """`init` registers the key that a file holds, the same again is fine, and `key` makes one for another tenant."""
    (tmp_path / "key").write_text("mk-" + "k" * 43 + "\n")
    environ = {
        **os.environ,
        **{f"MARTLET_{name.upper()}": value for name, value in s3_settings.items()},
        "MARTLET_S3_BUCKET": "gateway-set-up",
        "MARTLET_REDIS_URL": valkey_url,
        "MARTLET_CACHE_DIR": str(tmp_path / "cache"),
        "MARTLET_FIRST_API_KEY_FILE": str(tmp_path / "key"),
    }
    for _ in range(2):
        assert await _run("init", environ=environ) == ""
    made = (await _run("key", "lab", "--name", "a label", environ=environ)).strip()
    keys = ApiKeyStore(S3ObjectStore.from_settings(CoreSettings(**s3_settings | {"s3_bucket": "gateway-set-up"})))
    first, second = keys.verify("mk-" + "k" * 43), keys.verify(made)
    assert (first.tenant, first.scope) == ("default", OPERATOR)
    assert (second.tenant, second.scope, second.display_name) == ("lab", USER, "a label")


async def _run(*arguments: str, environ: dict[str, str]) -> str:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "martlet_gateway", *arguments), env=environ, stdout=asyncio.subprocess.PIPE
    )
    printed, _ = await process.communicate()
    assert process.returncode == 0
    return printed.decode()
