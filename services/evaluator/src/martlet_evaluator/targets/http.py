"""An OpenAI-compatible endpoint as a target: the gateway of this deployment, or another that the operator allowed."""

from __future__ import annotations

import asyncio
import email.utils
import itertools
import json
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import aiohttp

from martlet_evaluator.targets import logprobs, pooling
from martlet_evaluator.targets.base import Answer, Messages, Sampling

#: Statuses that may go away by waiting.
RETRIED_STATUSES = frozenset({429, 502, 503, 504})
#: Tries without word from the server of when to come back; a server that names a time is believed until the deadline.
_MAX_BLIND_TRIES = 8
_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 0.5, 30.0
_ERROR_CHARACTERS = 500


@dataclass(frozen=True)
class Endpoint:
    """Where an endpoint is and how it is asked.

    Attributes:
        base_url: up to and without ``/chat/completions``.
        headers: sent with each request (the key).
        deadline_seconds: of one question, its repetitions included.
        connections: most at a time.
    """

    base_url: str
    headers: Mapping[str, str]
    deadline_seconds: float = 600.0
    connections: int = 64


class _Failed(Exception):
    """A request that won't be repeated; the text says why."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class _Again(Exception):
    """A request that may be repeated, and after how many seconds if the server said so."""

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


class HttpTarget:
    """A model behind an OpenAI-compatible endpoint. Redirects are not followed: the key is for this address alone.

    Args:
        name: in tables.
        model: in requests.
        endpoint: where.
    """

    def __init__(self, name: str, model: str, endpoint: Endpoint) -> None:
        self.name = name
        self.model = model
        self._endpoint = endpoint
        self._base_url = endpoint.base_url.rstrip("/")
        self._session: aiohttp.ClientSession | None = None
        self._refuses_choices = False
        self._jitter = random.Random(0)

    @property
    def constrains(self) -> bool:
        return not self._refuses_choices

    async def chat(
        self,
        messages: Messages,
        sampling: Sampling,
        *,
        choices: Sequence[str] = (),
        tools: Messages = (),
        extra: Mapping[str, Any] | None = None,
    ) -> Answer:
        body = self._chat_body(messages, sampling, tools, extra)
        if choices and not self._refuses_choices:
            limited = await self._ask(
                "chat/completions", {**body, "structured_outputs": {"choice": list(choices)}}, read_chat
            )
            if not (limited.error.startswith(("HTTP 400", "HTTP 422")) and "structured_outputs" in limited.error):
                return limited
            self._refuses_choices = True
        return await self._ask("chat/completions", body, read_chat)

    async def complete(self, prompt: str, sampling: Sampling, *, stop: Sequence[str] = ()) -> Answer:
        body = {"model": self.model, "prompt": prompt, **_sampling_fields(sampling)}
        if stop:
            body["stop"] = list(stop)
        return await self._ask("completions", body, read_completion)

    async def stream(self, messages: Messages, sampling: Sampling, *, extra: Mapping[str, Any] | None = None) -> Answer:
        body = self._chat_body(messages, sampling, (), extra)
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        return await self._ask("chat/completions", body, None)

    async def score_answer(self, messages: Messages, answer: str, tools: Messages = ()) -> Answer:
        asked = self._chat_body(messages, Sampling(max_tokens=1), tools, None)
        before = await self._ask("chat/completions", asked, read_chat)
        if before.error:
            return before
        whole = [*messages, {"role": "assistant", "content": answer}]
        body = self._chat_body(whole, Sampling(max_tokens=1), tools, None)
        # The turn is left open: what a template writes behind it (an end token, a line break) is not the answer.
        body |= {"add_generation_prompt": False, "continue_final_message": True, "prompt_logprobs": 0}
        scored = await self._ask("chat/completions", body, logprobs.read_prompt_logprobs)
        return _joined(before, logprobs.behind_prompt(scored, before.prompt_tokens))

    async def score_text(self, context: str, continuation: str) -> Answer:
        body = {"model": self.model, "prompt": context + continuation, "max_tokens": 1, "temperature": 0.0}
        body |= {"logprobs": 1, "echo": True}
        scored = await self._ask("completions", body, logprobs.read_echo)
        if scored.error:
            return scored
        start = logprobs.start_of(scored, context)
        before = Answer()
        if start is None:  # a token reaches over the border: count the context's tokens as the engine does
            before = await self._ask(
                "completions", {**body, "prompt": context, "logprobs": None, "echo": False}, read_completion
            )
            if before.error:
                return before
            start = before.prompt_tokens
        return _joined(before, logprobs.behind_context(scored, start))

    async def classify(self, text: str | Messages, *, raw: bool = False) -> Answer:
        body: dict[str, Any] = {"model": self.model} | ({"use_activation": False} if raw else {})
        if isinstance(text, str):
            return await self._ask("classify", {**body, "input": text}, pooling.read_class)
        answer = await self._ask("classify", {**body, "messages": list(text)}, pooling.read_class)
        if "chat template" in answer.error and len(text) == 1:  # an encoder that was trained on the message alone
            return await self._ask("classify", {**body, "input": text[0]["content"]}, pooling.read_class)
        return answer

    async def embed(self, texts: Sequence[str]) -> Answer:
        body = {"model": self.model, "input": list(texts), "encoding_format": "float"}
        return await self._ask("embeddings", body, partial(pooling.read_vectors, count=len(texts)))

    async def rerank(self, query: str, documents: Sequence[str]) -> Answer:
        body = {"model": self.model, "query": query, "documents": list(documents)}
        return await self._ask("rerank", body, partial(pooling.read_scores, count=len(documents)))

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    def _chat_body(
        self, messages: Messages, sampling: Sampling, tools: Messages, extra: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        body: dict[str, Any] = {"model": self.model, "messages": list(messages), **_sampling_fields(sampling)}
        if tools:
            body["tools"] = list(tools)
        return {**body, **(extra or {})}

    async def _ask(self, route: str, body: Mapping[str, Any], read: Any) -> Answer:
        """Send until there is an answer, a final refusal, or the deadline is over."""
        url, data = f"{self._base_url}/{route}", json.dumps(body).encode()
        begun = time.monotonic()
        deadline = begun + self._endpoint.deadline_seconds
        attempts = blind = 0
        while True:
            attempts += 1
            try:
                left = max(0.001, deadline - time.monotonic())
                async with asyncio.timeout(left):
                    answer = await self._send(url, data, read)
                return replace(answer, seconds=time.monotonic() - begun, attempts=attempts)
            except _Failed as error:
                return Answer(seconds=time.monotonic() - begun, error=str(error), attempts=attempts)
            except TimeoutError:
                text = f"no answer within {self._endpoint.deadline_seconds:g} s"
                return Answer(seconds=time.monotonic() - begun, error=text, attempts=attempts)
            except (_Again, aiohttp.ClientError, ConnectionError) as error:
                named = error.wait if isinstance(error, _Again) else None
                blind += named is None
                wait = self._backoff(blind) if named is None else named
                if blind >= _MAX_BLIND_TRIES or time.monotonic() + wait >= deadline:
                    text = f"{_describe(error)} (after {attempts} attempts)"
                    return Answer(seconds=time.monotonic() - begun, error=text, attempts=attempts)
                await asyncio.sleep(wait)

    async def _send(self, url: str, data: bytes, read: Any) -> Answer:
        begun = time.monotonic()  # of this attempt: what a stream's first token is timed from
        async with self._open().post(url, data=data, allow_redirects=False) as response:
            if response.status != 200:
                await _refused(response)
            if read is None:
                return await read_stream(response, begun)
            content = await response.read()
        try:
            return read(json.loads(content))
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise _Failed(f"the answer isn't OpenAI's: {type(error).__name__}: {error}") from error

    def _open(self) -> aiohttp.ClientSession:
        """The session is made in the loop that uses it."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self._endpoint.connections),
                headers={"content-type": "application/json", **self._endpoint.headers},
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=10.0),
                cookie_jar=aiohttp.DummyCookieJar(),
                max_line_size=2**20,
            )
        return self._session

    def _backoff(self, tries: int) -> float:
        return min(_LONGEST_WAIT_SECONDS, _FIRST_WAIT_SECONDS * 2 ** (tries - 1)) * self._jitter.uniform(0.75, 1.25)


def read_chat(values: Any) -> Answer:
    """A whole answer of /chat/completions."""
    choice = values["choices"][0]
    message = choice["message"]
    data = {"tool_calls": message["tool_calls"]} if message.get("tool_calls") else {}
    return _with_usage(
        values, Answer(message.get("content") or "", finish_reason=choice.get("finish_reason") or "", data=data)
    )


def read_completion(values: Any) -> Answer:
    """A whole answer of /completions."""
    choice = values["choices"][0]
    return _with_usage(values, Answer(choice["text"], finish_reason=choice.get("finish_reason") or ""))


async def read_stream(response: aiohttp.ClientResponse, begun: float) -> Answer:
    """A streamed answer; ``data`` holds the time from ``begun`` to the first token and the times between tokens, in
    seconds.
    """
    texts: list[str] = []
    times: list[float] = []
    usage: Mapping[str, Any] = {}
    finish_reason = ""
    async for line in response.content:
        if not line.startswith(b"data:"):
            continue
        payload = line[5:].strip()
        if payload == b"[DONE]":
            break
        event = json.loads(payload)
        if "error" in event:
            raise _Failed(f"the stream broke off: {_error_text(event)}")
        usage = event.get("usage") or usage
        for choice in event.get("choices", ())[:1]:
            finish_reason = choice.get("finish_reason") or finish_reason
            if text := choice["delta"].get("content"):
                times.append(time.monotonic() - begun)
                texts.append(text)
    else:
        raise _Again("the stream ended before its end")
    gaps = [after - before for before, after in itertools.pairwise(times)]
    data = {"first_token_seconds": times[0] if times else None, "gaps": gaps, "chunks": len(times)}
    answer = Answer("".join(texts), finish_reason=finish_reason, data=data)
    return _with_usage({"usage": usage}, answer)


def _with_usage(values: Mapping[str, Any], answer: Answer) -> Answer:
    usage = values.get("usage") or {}
    return replace(
        answer,
        prompt_tokens=int(usage.get("prompt_tokens") or 0),
        completion_tokens=int(usage.get("completion_tokens") or 0),
        cached_tokens=int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0),
    )


async def _refused(response: aiohttp.ClientResponse) -> None:
    content = (await response.read())[: 4 * _ERROR_CHARACTERS]
    try:
        text = _error_text(json.loads(content))
    except ValueError:
        text = content.decode("utf-8", "replace")
    message = f"HTTP {response.status}: {text[:_ERROR_CHARACTERS]}"
    if response.status in RETRIED_STATUSES:
        raise _Again(message, retry_after(response.headers.get("retry-after"), time.time()))
    raise _Failed(message, response.status)


def retry_after(header: str | None, now: float) -> float | None:
    """Seconds that a ``Retry-After`` header asks for, in seconds or as a date; None if there is none or it can't be read."""
    if header is None:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - now)
    except ValueError:
        return None


def _error_text(values: Any) -> str:
    error = values.get("error", values) if isinstance(values, dict) else values
    return str(error.get("message", error)) if isinstance(error, dict) else str(error)


def _describe(error: Exception) -> str:
    return str(error) if isinstance(error, _Again) else f"{type(error).__name__}: {error}"


def _sampling_fields(sampling: Sampling) -> dict[str, Any]:
    return {"max_tokens": sampling.max_tokens, "temperature": sampling.temperature, "seed": sampling.seed}


def _joined(first: Answer, second: Answer) -> Answer:
    """Two requests as one: times and attempts add up."""
    return replace(second, seconds=first.seconds + second.seconds, attempts=max(first.attempts, second.attempts))
