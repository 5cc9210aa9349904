"""The transformers engine's server: OpenAI's routes on a Unix socket, one model, adapters that come and go.

    python -m martlet_inference.engines.transformers_server --uds PATH --model DIR --served-model-name NAME

The replica starts it, and asks it for what it asks vLLM's server for: the same paths, and figures by the same names.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from aiohttp import web
from martlet_core.model_tasks import ModelTask

from martlet_inference.engines.base import Route, openai_error
from martlet_inference.engines.transformers_http import MAX_BODY_BYTES, error_response, models_response, serve
from martlet_inference.engines.transformers_model import Call, Model, Piece, TokenLogprobs
from martlet_inference.engines.transformers_request import BadRequest, Request, parse


class Server:
    """The routes.

    Args:
        model: what answers.
    """

    def __init__(self, model: Model) -> None:
        self._model = model

    def app(self) -> web.Application:
        """The web application."""
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.router.add_post(Route.CHAT_COMPLETIONS.value, self._answer)
        app.router.add_post(Route.COMPLETIONS.value, self._answer)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/load_lora_adapter", self._load_adapter)
        app.router.add_post("/v1/unload_lora_adapter", self._unload_adapter)
        app.router.add_get("/metrics", self._metrics)
        return app

    async def _models(self, _: web.Request) -> web.Response:
        return models_response(self._model.name, self._model.context_length)

    async def _metrics(self, _: web.Request) -> web.Response:
        lines = [f"martlet:generation_tokens_total {self._model.tokens_counted}"]
        lines += [f"martlet:num_requests_waiting {self._model.waiting}"]
        return web.Response(text="\n".join(lines) + "\n")

    async def _load_adapter(self, request: web.Request) -> web.Response:
        body = await request.json()
        name, directory = body["lora_name"], Path(body["lora_path"])
        try:
            await asyncio.wrap_future(self._model.do(lambda: self._model.load_adapter(name, directory)))
        except Exception as exc:  # noqa: BLE001  # peft, safetensors and torch each raise their own about broken files
            return error_response(f"{type(exc).__name__}: {exc}")
        return web.Response()

    async def _unload_adapter(self, request: web.Request) -> web.Response:
        name = (await request.json())["lora_name"]
        found = await asyncio.wrap_future(self._model.do(lambda: self._model.unload_adapter(name)))
        return web.Response() if found else error_response(f"no adapter {name!r} is loaded", status=404)

    async def _answer(self, http: web.Request) -> web.StreamResponse:
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[Piece] = asyncio.Queue()
        body, route = await http.read(), Route(http.path)

        def emit(piece: Piece) -> None:
            loop.call_soon_threadsafe(pieces.put_nowait, piece)

        call = Call(emit)
        try:
            request = parse(route, body)
            prompt_tokens = await asyncio.wrap_future(self._model.do(lambda: self._model.begin(request, call)))
            writer = Writer(request, prompt_tokens, self._model.tokenizer)
            if request.stream:
                return await _stream(http, writer.events(pieces))
            return web.Response(body=await writer.whole(pieces), content_type="application/json")
        except BadRequest as exc:
            return error_response(str(exc), param=exc.param, status=exc.status)
        except AnswerFailed as exc:
            return error_response(str(exc), status=500)
        finally:  # also when the client has gone away
            call.given_up = True


class AnswerFailed(Exception):
    """An answer ended with an error of the engine's; the text says which."""


class Writer:
    """Puts pieces into OpenAI's shape."""

    def __init__(self, request: Request, prompt_tokens: int, tokenizer: Any) -> None:
        self._request = request
        self._prompt_tokens = prompt_tokens
        self._tokenizer = tokenizer
        self._head = {
            "id": ("chatcmpl-" if request.chat else "cmpl-") + uuid.uuid4().hex,
            "created": int(time.time()),
            "model": request.model,
        }

    async def whole(self, pieces: asyncio.Queue[Piece]) -> bytes:
        """The JSON of an answer that isn't streamed."""
        request = self._request
        texts, reasons = [""] * request.choices, [""] * request.choices
        logprobs: list[list[TokenLogprobs]] = [[] for _ in range(request.choices)]
        ids: list[Sequence[int]] = [()] * request.choices
        tokens = 0
        async for piece in _until_all_ended(pieces, request.choices):
            texts[piece.choice] += piece.text
            logprobs[piece.choice] += piece.logprobs
            ids[piece.choice] = piece.tokens
            reasons[piece.choice] = piece.finish_reason or ""
            tokens += piece.completion_tokens
        choices = []
        for index, text in enumerate(texts):
            said: dict[str, Any] = {"text": text}
            if request.chat:
                said = {"message": {"role": "assistant", "content": text}}
            if request.token_ids:
                said["token_ids"] = list(ids[index])
            told = self._logprobs(logprobs[index], 0)
            choices.append({"index": index, **said, "logprobs": told, "finish_reason": reasons[index]})
        kind = "chat.completion" if request.chat else "text_completion"
        return json.dumps({**self._head, "object": kind, "choices": choices, "usage": self._usage(tokens)}).encode()

    async def events(self, pieces: asyncio.Queue[Piece]) -> AsyncIterator[bytes]:
        """The JSON of each event of a streamed answer."""
        request = self._request
        offsets = [0] * request.choices
        begun: set[int] = set()
        tokens = 0
        async for piece in _until_all_ended(pieces, request.choices):
            if request.chat and piece.choice not in begun:
                begun.add(piece.choice)
                yield self._chunk({"role": "assistant", "content": ""}, piece.choice, None, None)
            said = {"content": piece.text} if request.chat else piece.text
            told = self._logprobs(piece.logprobs, offsets[piece.choice])
            offsets[piece.choice] += len(piece.text)
            yield self._chunk(said, piece.choice, told, piece.finish_reason)
            tokens += piece.completion_tokens
        if request.include_usage:
            yield json.dumps({**self._head, "object": self._part, "choices": [], "usage": self._usage(tokens)}).encode()

    @property
    def _part(self) -> str:
        return "chat.completion.chunk" if self._request.chat else "text_completion"

    def _chunk(self, said: Any, choice: int, logprobs: Any, reason: str | None) -> bytes:
        key = "delta" if self._request.chat else "text"
        choices = [{"index": choice, key: said, "logprobs": logprobs, "finish_reason": reason}]
        return json.dumps({**self._head, "object": self._part, "choices": choices}).encode()

    def _usage(self, completion: int) -> dict[str, int]:
        prompt = self._prompt_tokens
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}

    def _logprobs(self, tokens: Sequence[TokenLogprobs], offset: int) -> dict[str, Any] | None:
        if self._request.top_logprobs is None:
            return None
        if self._request.chat:
            return {
                "content": [
                    self._entry(told.token, told.logprob) | {"top_logprobs": [self._entry(*pair) for pair in told.top]}
                    for told in tokens
                ]
            }
        texts = [self._text(told.token) for told in tokens]
        offsets = [offset + sum(map(len, texts[:index])) for index in range(len(texts))]
        return {
            "tokens": texts,
            "token_logprobs": [told.logprob for told in tokens],
            # Best last: of tokens that are written alike, the likelier one stays.
            "top_logprobs": [{self._text(token): value for token, value in reversed(told.top)} for told in tokens],
            "text_offset": offsets,
        }

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        text = self._text(token)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

    def _text(self, token: int) -> str:
        return self._tokenizer.decode([token])


async def _until_all_ended(pieces: asyncio.Queue[Piece], choices: int) -> AsyncIterator[Piece]:
    while choices:
        piece = await pieces.get()
        if piece.error:
            raise AnswerFailed(piece.error)
        choices -= piece.finish_reason is not None
        yield piece


async def _stream(http: web.Request, events: AsyncIterator[bytes]) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream", "cache-control": "no-cache"})
    await response.prepare(http)
    try:
        async for event in events:
            await response.write(b"data: " + event + b"\n\n")
    except AnswerFailed as exc:  # the status is sent: the error is an event, as vLLM's is
        await response.write(b"data: " + openai_error(str(exc), status=500) + b"\n\n")
    await response.write(b"data: [DONE]\n\n")
    return response


def main() -> int:
    """Load the model and serve it."""
    parser = argparse.ArgumentParser(description="OpenAI-shaped server of one model by transformers.")
    parser.add_argument("--uds", required=True, help="path of the Unix socket to listen on")
    parser.add_argument("--model", required=True, type=Path, help="model directory")
    parser.add_argument("--served-model-name", required=True)
    parser.add_argument("--task", type=ModelTask, choices=list(ModelTask), default=ModelTask.CAUSAL_LM)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--max-model-len", type=int, default=2048)
    parser.add_argument("--gpu-memory-share", type=float, default=1.0, help="most of a GPU's memory that is taken")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    try:
        app = build_app(options)
    except Exception as exc:  # noqa: BLE001  # whatever is wrong with the model: the replica reads the last line
        print(f"{type(exc).__name__}: {' '.join(str(exc).split())}", flush=True)
        return 1
    asyncio.run(serve(app, options.uds))
    return 0


def build_app(options: argparse.Namespace) -> web.Application:
    """The server of the model, loaded."""
    values = {name: getattr(options, name) for name in ("device", "dtype", "max_model_len", "gpu_memory_share")}
    if options.task is ModelTask.CAUSAL_LM:
        return Server(Model(options.model, options.served_model_name, **values)).app()
    # Only here: what one kind of model needs is not imported for the other.
    from martlet_inference.engines.transformers_pooling import PoolingModel
    from martlet_inference.engines.transformers_pooling_server import PoolingServer

    return PoolingServer(PoolingModel(options.model, options.served_model_name, options.task, **values)).app()


if __name__ == "__main__":
    sys.exit(main())
