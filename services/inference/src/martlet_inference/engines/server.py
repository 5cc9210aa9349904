"""A server in OpenAI's shape behind the engine interface: a child process that is proved, watched, and started again when
it fails.

Requests and answers pass as the bytes they are. A request that is given up closes its connection, and the server aborts it.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
from martlet_core.errors import FailedPrecondition, Unavailable

from martlet_inference.engines.base import (
    EngineCall,
    EngineLoad,
    EngineReply,
    EngineState,
    Route,
    WholeModel,
)
from martlet_inference.engines.server_answers import error_text, in_envelope, once, sendable
from martlet_inference.engines.server_process import ServerProcess, ServerProgram
from martlet_inference.engines.sse import EventSplitter

log = logging.getLogger(__name__)

#: Between two looks at a server that is starting, in seconds.
START_POLL_SECONDS = 0.1
#: Between two looks at a ready server, and the time that a proof may take, in seconds.
PROBE_SECONDS = 30.0
PROBE_TIMEOUT_SECONDS = 120.0
#: First and longest pause before another start of a server that failed, in seconds.
RESTART_SECONDS = (1.0, 60.0)
#: Age at which the engine's figures are asked for anew, in seconds.
LOAD_SECONDS = 1.0
ADAPTER_TIMEOUT_SECONDS = 120.0
#: Idle connections are dropped before the server does so (vLLM: after 5 s), or a request may meet one that is just closing.
KEEP_ALIVE_SECONDS = 2.0

_TOKENS = re.compile(rb"^\w+:(?:prompt|generation)_tokens_total(?:\{[^}]*\})? ([0-9.e+-]+)$", re.MULTILINE)
_METRICS = re.compile(rb"^\w+:(num_requests_waiting|kv_cache_usage_perc)(?:\{[^}]*\})? ([0-9.e+-]+)$", re.MULTILINE)


class ServerEngine:
    """A supervised server.

    Args:
        program: what is started.
        start_seconds: how long it may take to get a model ready.
    """

    needs_files = True

    def __init__(self, program: ServerProgram, *, start_seconds: float = 900.0) -> None:
        self.name = program.name
        self.version = program.version
        self.device = program.device
        self._first_program = program
        self._choose(program)
        self._start_seconds = start_seconds
        self._model: WholeModel | None = None
        self._state = EngineState.STOPPED
        self._incarnation = 0
        self._context_length = 0
        self._process: ServerProcess | None = None
        self._session: aiohttp.ClientSession | None = None
        self._watch: asyncio.Task[None] | None = None
        self._active = 0
        self._load, self._load_time = EngineLoad(), 0.0
        self._listeners: list[Callable[[], None]] = []

    @property
    def state(self) -> EngineState:
        return self._state

    @property
    def incarnation(self) -> int:
        return self._incarnation

    @property
    def context_length(self) -> int:
        return self._context_length

    @property
    def pid(self) -> int | None:
        """Process id of the server; None while there is none."""
        return self._process.pid if self._process else None

    def on_change(self, listener: Callable[[], None]) -> None:
        self._listeners.append(listener)

    async def start(self, model: WholeModel) -> None:
        """Start a server for a model; one without adapters, if the engine takes none of this model's.

        Raises:
            FailedPrecondition: the server ended before it was ready (``ENGINE_REFUSED_MODEL``); says its last words.
            Unavailable: it was not ready in time.
        """
        await self.stop()
        self._model = model
        self._set_state(EngineState.STARTING)
        try:
            await self._launch_first(model)
        except BaseException:
            await self._end_process()
            self._model = None
            self._set_state(EngineState.STOPPED)
            raise
        # In a context of its own: what it logs belongs to no request.
        self._watch = asyncio.create_task(self._supervise(model), name=self.name, context=contextvars.Context())

    async def stop(self) -> None:
        """End the server."""
        if self._watch:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
            self._watch = None
        await self._end_process()
        self._model = None
        if self._state is not EngineState.STOPPED:
            self._set_state(EngineState.STOPPED)

    @asynccontextmanager
    async def call(self, call: EngineCall) -> AsyncIterator[EngineReply]:
        session = self._ready_session()
        headers = {"content-type": "application/json"}
        if call.request_id:
            headers["x-request-id"] = call.request_id
        self._active += 1
        try:
            async with session.post(call.route.value, data=call.body, headers=headers) as response:
                if response.status >= 500:
                    raise _unavailable(f"The engine failed: {error_text(await response.read())}", "ENGINE_FAILED")
                if response.status >= 400:
                    yield EngineReply(response.status, once(in_envelope(await response.read(), response.status)))
                elif call.stream:
                    yield EngineReply(response.status, self._events(response))
                else:
                    yield EngineReply(response.status, once(sendable(await response.read())))
        except (aiohttp.ClientError, ConnectionError) as exc:
            raise _unavailable(f"The engine broke off: {exc!r}.", "ENGINE_LOST") from exc
        finally:
            self._active -= 1

    async def load_adapter(self, name: str, directory: Path) -> None:
        """Load a peft directory under ``name``.

        Raises:
            FailedPrecondition: the engine refuses it (``ADAPTER_REFUSED``); the message has its reason.
        """
        body = {"lora_name": name, "lora_path": str(directory)}
        status, answer = await self._post("/v1/load_lora_adapter", body)
        if status != 200:  # weights that can't be read are a 500 too, and the server goes on
            raise FailedPrecondition(
                f"The engine can't take the adapter {name!r}: {error_text(answer)}", reason="ADAPTER_REFUSED"
            )

    async def unload_adapter(self, name: str) -> None:
        status, answer = await self._post("/v1/unload_lora_adapter", {"lora_name": name})
        if status not in (200, 404):
            raise _unavailable(f"The engine did not unload {name!r}: {error_text(answer)}", "ENGINE_FAILED")

    async def load(self) -> EngineLoad:
        """Requests waiting and the KV cache's use, at most ``LOAD_SECONDS`` old; zeros while nothing runs."""
        session = self._session
        if session is None or self._state is not EngineState.READY or not self._active:
            return EngineLoad()
        if time.monotonic() - self._load_time >= LOAD_SECONDS:
            self._load_time = time.monotonic()
            try:
                self._load = parse_metrics(await _metrics(session))
            except (aiohttp.ClientError, ConnectionError, TimeoutError) as exc:
                log.debug("no metrics from %s", self.name, extra={"error": repr(exc)})
        return self._load

    def _ready_session(self) -> aiohttp.ClientSession:
        if self._session is None or self._state is not EngineState.READY:
            raise _unavailable(f"The engine is {self._state.value}; try again.", "ENGINE_NOT_READY", 5)
        return self._session

    async def _events(self, response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        splitter = EventSplitter()
        async for piece in response.content.iter_any():
            for event in splitter.feed(piece):
                yield event
        if not splitter.done:
            raise _unavailable("The engine's answer ended too early.", "ENGINE_LOST")

    async def _post(self, path: str, body: Mapping[str, object]) -> tuple[int, bytes]:
        session = self._ready_session()
        timeout = aiohttp.ClientTimeout(total=ADAPTER_TIMEOUT_SECONDS)
        try:
            async with session.post(path, json=body, timeout=timeout) as response:
                return response.status, await response.read()
        except (aiohttp.ClientError, ConnectionError, TimeoutError) as exc:
            raise _unavailable(f"The engine broke off: {exc!r}.", "ENGINE_LOST") from exc

    async def _launch_first(self, model: WholeModel) -> None:
        """Start a process that takes adapters; one that doesn't, where that one's last words are about them (experts on a CPU, say)."""
        self._choose(self._first_program)
        try:
            await self._launch(model)
        except (FailedPrecondition, Unavailable) as refused:  # it ended, or it couldn't give its first answer
            bare = self._first_program.bare
            words = self._process.last_lines() if self._process else []
            if bare is None or not any("lora" in line.lower() for line in words):
                raise
            log.warning("%s serves this model without adapters", self.name, extra={"reason": refused.message})
            await self._end_process()
            self._choose(bare)
            await self._launch(model)

    def _choose(self, program: ServerProgram) -> None:
        self._program = program
        self.max_lora_rank = program.max_lora_rank
        self.max_adapters = program.max_adapters if program.max_lora_rank else 0

    async def _launch(self, model: WholeModel) -> None:
        """Start a process and wait until it gave an answer."""
        started = time.monotonic()
        process = self._process = await ServerProcess.start(self._program, model)
        session = self._session = _open_session(process.socket_path)
        try:
            async with asyncio.timeout(self._start_seconds):
                while not await self._answers(session):
                    if not process.running:
                        await process.read_rest()
                        raise FailedPrecondition(
                            f"{self.name} could not start {model.name!r}: {process.explain_end()}",
                            reason="ENGINE_REFUSED_MODEL",
                        )
                    await asyncio.sleep(START_POLL_SECONDS)
                await self._prove(session, model)
        except TimeoutError as exc:
            raise _unavailable(
                f"{self.name} did not get {model.name!r} ready in {self._start_seconds:g} s.", "ENGINE_NOT_READY"
            ) from exc
        except (aiohttp.ClientError, ConnectionError) as exc:
            raise _unavailable(f"{self.name} broke off while it was proved: {exc!r}.", "ENGINE_LOST") from exc
        self._incarnation += 1
        self._set_state(EngineState.READY)
        seconds = round(time.monotonic() - started, 2)
        log.info(
            "%s ready", self.name, extra={"model": model.name, "seconds": seconds, "incarnation": self._incarnation}
        )

    async def _answers(self, session: aiohttp.ClientSession) -> bool:
        try:
            async with session.get("/v1/models", timeout=aiohttp.ClientTimeout(total=10)) as response:
                if response.status != 200:
                    return False
                self._context_length = (await response.json())["data"][0].get("max_model_len") or 0
                return True
        except (aiohttp.ClientError, ConnectionError, TimeoutError):
            return False

    async def _prove(self, session: aiohttp.ClientSession, model: WholeModel) -> None:
        """The proof: /health is green in states that can't answer, so a token it must be, or an input that is pooled."""
        if model.use.generates:
            route, body = Route.COMPLETIONS, {"prompt": [1], "max_tokens": 1, "temperature": 0}
        else:
            route, body = Route.POOLING, {"input": "ready?"}
        async with session.post(route.value, json={"model": model.name, **body}) as response:
            answer = await response.read()
            if response.status != 200:
                raise _unavailable(f"{self.name} can't answer: {error_text(answer)}", "ENGINE_FAILED")

    async def _supervise(self, model: WholeModel) -> None:
        first_pause, longest_pause = RESTART_SECONDS
        pause = first_pause
        while True:
            ready_since = time.monotonic()
            reason = await self._until_failure(model)
            if time.monotonic() - ready_since > longest_pause:
                pause = first_pause
            self._set_state(EngineState.UNHEALTHY)
            while True:
                lines = self._process.last_lines()[-5:] if self._process else []
                details = {"reason": reason, "output": lines, "pause_seconds": pause}
                log.error("%s failed; starting it again", self.name, extra=details)
                await self._end_process()
                await asyncio.sleep(pause)
                pause = min(pause * 2, longest_pause)
                try:
                    await self._launch(model)
                    break
                except (FailedPrecondition, Unavailable) as exc:
                    reason = exc.message

    async def _until_failure(self, model: WholeModel) -> str:
        """Watch a ready server until it ends or gets nowhere; why it is to be started again."""
        process, session = self._process, self._session
        assert process is not None
        assert session is not None
        ended = asyncio.create_task(process.wait())
        tokens = 0.0
        try:
            while True:
                await asyncio.wait({ended}, timeout=PROBE_SECONDS)
                if ended.done():
                    return f"it ended with code {ended.result()}"
                before, tokens = tokens, await self._tokens_so_far(session)
                if tokens > before:
                    continue
                try:
                    async with asyncio.timeout(PROBE_TIMEOUT_SECONDS):
                        await self._prove(session, model)
                except (aiohttp.ClientError, ConnectionError, Unavailable, TimeoutError) as exc:
                    # Behind a long queue the probe itself may starve: as long as tokens are counted, all is well.
                    if await self._tokens_so_far(session) <= tokens:
                        return f"it answers no more: {exc!r}"
        finally:
            ended.cancel()

    async def _tokens_so_far(self, session: aiohttp.ClientSession) -> float:
        """Tokens that the server read and made since its start; 0 when it doesn't say."""
        try:
            return sum(map(float, _TOKENS.findall(await _metrics(session))))
        except (aiohttp.ClientError, ConnectionError, TimeoutError):
            return 0.0

    async def _end_process(self) -> None:
        session, self._session = self._session, None
        process, self._process = self._process, None
        if session:
            await session.close()
        if process:
            await process.stop()

    def _set_state(self, state: EngineState) -> None:
        self._state = state
        for listener in self._listeners:
            listener()


def parse_metrics(text: bytes) -> EngineLoad:
    """The load in a server's Prometheus page; the names are vLLM's, behind any prefix."""
    values = {name: float(value) for name, value in _METRICS.findall(text)}
    return EngineLoad(int(values.get(b"num_requests_waiting", 0)), values.get(b"kv_cache_usage_perc", 0.0))


def _open_session(socket_path: Path) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        "http://engine",
        connector=aiohttp.UnixConnector(str(socket_path), limit=0, keepalive_timeout=KEEP_ALIVE_SECONDS),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        read_bufsize=2**18,
    )


def _unavailable(message: str, reason: str, retry_after_seconds: float = 1.0) -> Unavailable:
    return Unavailable(message, reason=reason, retry_after_seconds=retry_after_seconds)


async def _metrics(session: aiohttp.ClientSession) -> bytes:
    async with session.get("/metrics", timeout=aiohttp.ClientTimeout(total=5)) as response:
        return await response.read()
