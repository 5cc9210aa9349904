"""What both servers of the transformers engine answer alike."""

from __future__ import annotations

import asyncio
import signal

from aiohttp import web

from martlet_inference.engines.base import openai_error

MAX_BODY_BYTES = 17 * 2**20


def error_response(message: str, *, param: str | None = None, status: int = 400) -> web.Response:
    """An error in OpenAI's envelope."""
    body = openai_error(message, param=param, status=status)
    return web.Response(body=body, status=status, content_type="application/json")


def models_response(name: str, context_length: int) -> web.Response:
    """The one model, with its context in tokens as vLLM names it."""
    model = {"id": name, "object": "model", "max_model_len": context_length}
    return web.json_response({"object": "list", "data": [model]})


async def serve(app: web.Application, socket_path: str) -> None:
    """Serve until SIGINT or SIGTERM."""
    # A client that goes away cancels its handler, and with it the answer.
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
    await runner.setup()
    await web.UnixSite(runner, socket_path, backlog=1024).start()
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    await stopped.wait()
