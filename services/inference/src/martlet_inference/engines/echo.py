"""A trivial engine: it answers with the words of the question, at a chosen rate and count, and costs next to nothing.

Tests stand on it because its answers are known beforehand, benchmarks because what they measure is then the path to
the engine. It also serves the same tokens over plain HTTP, as the bare upstream that a gateway is compared with:

    python -m martlet_inference.engines.echo --port 18000
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from martlet_core.errors import FailedPrecondition, Unavailable

from martlet_inference.engines.base import (
    EngineCall,
    EngineLoad,
    EngineReply,
    EngineState,
    Route,
    WholeModel,
    openai_error,
)

DEFAULT_TOKENS = 16


@dataclass(frozen=True)
class EchoRequest:
    """What the echo engine reads in a body. ``words`` are repeated in order until ``tokens`` are out."""

    model: str
    chat: bool
    stream: bool
    words: tuple[str, ...]
    prompt_tokens: int
    tokens: int
    finish_reason: str
    choices: int
    include_usage: bool
    id: str
    created: int

    def token(self, index: int) -> str:
        """Text of the token at ``index``."""
        word = self.words[index % len(self.words)]
        return word if index == 0 else " " + word

    def text(self) -> str:
        """All tokens together."""
        return "".join(self.token(i) for i in range(self.tokens))

    def usage(self) -> dict[str, int]:
        """Token counts; a word counts as one."""
        completion = self.tokens * self.choices
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": completion,
            "total_tokens": self.prompt_tokens + completion,
        }


class BadEchoRequest(ValueError):
    """A body the echo engine can't answer; ``param`` names the field."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


def parse_request(route: Route, body: bytes, default_tokens: int = DEFAULT_TOKENS) -> EchoRequest:
    """Read a body of /v1/chat/completions or /v1/completions.

    Raises:
        BadEchoRequest: the body isn't JSON, or a field is missing or malformed.
    """
    try:
        fields = json.loads(body)
    except ValueError as exc:
        raise BadEchoRequest(f"The body is not JSON: {exc}") from exc
    if not isinstance(fields, dict):
        raise BadEchoRequest("The body must be a JSON object.")
    chat = route is Route.CHAT_COMPLETIONS
    prompt, prompt_tokens = _chat_prompt(fields) if chat else _text_prompt(fields)
    limit = fields.get("max_completion_tokens")
    limit = fields.get("max_tokens") if limit is None else limit
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise BadEchoRequest("max_tokens must be an integer of at least 1.", "max_tokens")
    choices = 1 if fields.get("n") is None else fields["n"]
    if not isinstance(choices, int) or choices < 1:
        raise BadEchoRequest("n must be an integer of at least 1.", "n")
    return EchoRequest(
        model=str(fields.get("model", "")),
        chat=chat,
        stream=fields.get("stream") is True,
        words=tuple(prompt.split()) or ("…",),
        prompt_tokens=prompt_tokens,
        tokens=limit or default_tokens,
        finish_reason="length" if limit else "stop",
        choices=choices,
        include_usage=bool((fields.get("stream_options") or {}).get("include_usage")),
        id=("chatcmpl-" if chat else "cmpl-") + uuid.uuid4().hex,
        created=int(time.time()),
    )


def _chat_prompt(fields: Mapping[str, Any]) -> tuple[str, int]:
    messages = fields.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadEchoRequest("messages must be a list of at least one message.", "messages")
    texts = []
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or "role" not in message:
            raise BadEchoRequest("each message must be an object with a role.", f"messages[{index}]")
        content = message.get("content") or ""
        if isinstance(content, list):
            content = " ".join(part.get("text", "") for part in content if isinstance(part, dict))
        texts.append(content)
    return texts[-1], sum(len(text.split()) for text in texts)


def _text_prompt(fields: Mapping[str, Any]) -> tuple[str, int]:
    prompt = fields.get("prompt")
    if not isinstance(prompt, str):
        raise BadEchoRequest("prompt must be a string.", "prompt")
    return prompt, len(prompt.split())


def whole_answer(request: EchoRequest) -> bytes:
    """The JSON body of an answer that isn't streamed."""
    text = request.text()
    part = {"message": {"role": "assistant", "content": text}} if request.chat else {"text": text}
    choices = [
        {"index": index, **part, "logprobs": None, "finish_reason": request.finish_reason}
        for index in range(request.choices)
    ]
    kind = "chat.completion" if request.chat else "text_completion"
    return json.dumps(_envelope(request, kind) | {"choices": choices, "usage": request.usage()}).encode()


def stream_answer(request: EchoRequest) -> Iterator[tuple[int, bytes]]:
    """The events of a streamed answer with the index of the token each carries; -1 for those that carry none."""
    kind = "chat.completion.chunk" if request.chat else "text_completion"
    head = json.dumps(_envelope(request, kind))[:-1]
    # Only the token's text differs from event to event: the rest is rendered once.
    before = [f'{head}, "choices": [{{"index": {index}, ' for index in range(request.choices)]
    words = [json.dumps(" " + word)[1:-1] for word in request.words]
    opening, closing = ('"delta": {"content": "', '"}') if request.chat else ('"text": "', '"')
    middle = closing + ', "logprobs": null, "finish_reason": null}]}'
    end = closing + f', "logprobs": null, "finish_reason": "{request.finish_reason}"}}]}}'
    if request.chat:
        role = '"delta": {"role": "assistant", "content": ""}, "logprobs": null, "finish_reason": null}]}'
        for prefix in before:
            yield -1, (prefix + role).encode()
    last = request.tokens - 1
    for index in range(request.tokens):
        word = words[index % len(words)] if index else json.dumps(request.words[0])[1:-1]
        rest = opening + word + (end if index == last else middle)
        for prefix in before:
            yield index, (prefix + rest).encode()
    if request.include_usage:
        yield -1, f'{head}, "choices": [], "usage": {json.dumps(request.usage())}}}'.encode()


def _envelope(request: EchoRequest, kind: str) -> dict[str, Any]:
    return {"id": request.id, "object": kind, "created": request.created, "model": request.model}


async def paced_answer(request: EchoRequest, stream: bool, tokens_per_second: float) -> AsyncIterator[bytes]:
    """The answer at a rate: token ``i`` is due ``(i + 1) / tokens_per_second`` after the start; 0 means at once."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    if not stream:
        if tokens_per_second:
            await asyncio.sleep(request.tokens / tokens_per_second)
        yield whole_answer(request)
        return
    for index, event in stream_answer(request):
        if tokens_per_second and index >= 0:
            delay = start + (index + 1) / tokens_per_second - loop.time()
            if delay > 0:
                await asyncio.sleep(delay)
        yield event


class EchoEngine:
    """The trivial engine.

    Args:
        tokens_per_second: rate of each stream; 0 sends as fast as it is read.
        default_tokens: tokens of an answer whose request names no maximum.
        slots: answers given at a time, as an engine's largest batch; others wait their turn. 0 for no limit.
    """

    name = "echo"
    version = "1"
    device = "cpu"
    needs_files = False

    def __init__(
        self,
        *,
        tokens_per_second: float = 0.0,
        default_tokens: int = DEFAULT_TOKENS,
        max_lora_rank: int = 64,
        max_adapters: int = 8,
        slots: int = 0,
    ) -> None:
        self.max_lora_rank = max_lora_rank
        self.max_adapters = max_adapters
        self.adapters: set[str] = set()
        self.aborted_calls = 0
        self._rate = tokens_per_second
        self._default_tokens = default_tokens
        self._model: WholeModel | None = None
        self._incarnation = 0
        self.active_calls = 0
        self._slots = asyncio.Semaphore(slots) if slots else None
        self._waiting = 0
        self._listeners: list[Callable[[], None]] = []

    @property
    def state(self) -> EngineState:
        return EngineState.READY if self._model else EngineState.STOPPED

    @property
    def incarnation(self) -> int:
        return self._incarnation

    @property
    def context_length(self) -> int:
        return 0

    def on_change(self, listener: Callable[[], None]) -> None:
        self._listeners.append(listener)

    async def start(self, model: WholeModel) -> None:
        self._model = model
        self._incarnation += 1
        self.adapters.clear()
        self._changed()

    async def stop(self) -> None:
        self._model = None
        self.adapters.clear()
        self._changed()

    @asynccontextmanager
    async def call(self, call: EngineCall) -> AsyncIterator[EngineReply]:
        if self._model is None:
            raise Unavailable("The echo engine holds no model.", reason="ENGINE_NOT_READY")
        try:
            request = parse_request(call.route, call.body, self._default_tokens)
        except BadEchoRequest as exc:
            yield EngineReply(400, _once(openai_error(str(exc), param=exc.param)))
            return
        if request.model != self._model.name and request.model not in self.adapters:
            yield EngineReply(404, _once(openai_error(f"The model `{request.model}` does not exist.", status=404)))
            return
        answer = paced_answer(request, call.stream, self._rate)
        finished = False

        async def watched() -> AsyncIterator[bytes]:
            nonlocal finished
            async for item in answer:
                yield item
            finished = True

        async with self._slot():
            self.active_calls += 1
            try:
                yield EngineReply(200, watched())
            finally:
                self.active_calls -= 1
                if not finished:
                    self.aborted_calls += 1

    @asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        if self._slots is None:
            yield
            return
        self._waiting += 1
        try:
            await self._slots.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._slots.release()

    async def load_adapter(self, name: str, directory: Path) -> None:
        if len(self.adapters) >= self.max_adapters:
            raise FailedPrecondition(f"{name}: the echo engine holds {self.max_adapters} adapters already.")
        self.adapters.add(name)

    async def unload_adapter(self, name: str) -> None:
        self.adapters.discard(name)

    async def load(self) -> EngineLoad:
        return EngineLoad(waiting_requests=self._waiting)

    def _changed(self) -> None:
        for listener in self._listeners:
            listener()


async def _once(body: bytes) -> AsyncIterator[bytes]:
    yield body


def main() -> None:
    """Serve the echo engine's tokens over HTTP on loopback until interrupted."""
    parser = argparse.ArgumentParser(description="OpenAI-shaped HTTP server with the echo engine's tokens.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=18000)
    parser.add_argument("--tokens-per-second", type=float, default=0.0, help="rate of each stream; 0: at once")
    parser.add_argument("--default-tokens", type=int, default=DEFAULT_TOKENS)
    args = parser.parse_args()
    from martlet_inference.engines.echo_http import serve_echo  # aiohttp's server is needed only here

    asyncio.run(serve_echo(args.host, args.port, args.tokens_per_second, args.default_tokens))


if __name__ == "__main__":
    main()
