"""The echo engine's tokens over HTTP: the bare upstream of the gateway benchmark."""

from __future__ import annotations

import asyncio
import signal

from aiohttp import web

from martlet_inference.engines.base import Route, openai_error
from martlet_inference.engines.echo import BadEchoRequest, paced_answer, parse_request


def echo_app(tokens_per_second: float, default_tokens: int) -> web.Application:
    """A web application that serves /v1/chat/completions, /v1/completions and /health."""

    async def answer(request: web.Request) -> web.StreamResponse:
        body = await request.read()
        try:
            parsed = parse_request(Route(request.path), body, default_tokens)
        except BadEchoRequest as exc:
            return web.Response(
                body=openai_error(str(exc), param=exc.param), status=400, content_type="application/json"
            )
        events = paced_answer(parsed, parsed.stream, tokens_per_second)
        if not parsed.stream:
            return web.Response(body=await anext(events), content_type="application/json")
        response = web.StreamResponse(headers={"content-type": "text/event-stream", "cache-control": "no-cache"})
        await response.prepare(request)
        async for event in events:
            await response.write(b"data: " + event + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
        return response

    async def health(_: web.Request) -> web.Response:
        return web.Response()

    app = web.Application(client_max_size=16 * 2**20)
    app.router.add_post(Route.CHAT_COMPLETIONS.value, answer)
    app.router.add_post(Route.COMPLETIONS.value, answer)
    app.router.add_get("/health", health)
    return app


async def serve_echo(host: str, port: int, tokens_per_second: float, default_tokens: int) -> None:
    """Serve until SIGINT or SIGTERM; prints the port, which port 0 leaves to the system."""
    runner = web.AppRunner(echo_app(tokens_per_second, default_tokens), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, host, port, backlog=4096)
    await site.start()
    print(f"listening on {host}:{runner.addresses[0][1]}", flush=True)
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    await stopped.wait()
    await runner.cleanup()
