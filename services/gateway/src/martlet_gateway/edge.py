"""The outermost layer of REST: request id, key, size of bodies, errors, metrics; sends inference requests straight to
their handler.
"""

from __future__ import annotations

import logging
import os
import re
import time

from martlet_core.errors import Internal, MartletError
from martlet_core.ids import REQUEST_ID_PATTERN
from martlet_core.rpc.context import DEFAULT_TENANT, CallContext, set_call_context
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from martlet_gateway.asgi import has_body, header, read_body, replayed, send_error
from martlet_gateway.auth import Authenticator, Caller
from martlet_gateway.inference_routes import ROUTES as INFERENCE_ROUTES
from martlet_gateway.metrics import Metrics
from martlet_gateway.routes.chat import Chat

log = logging.getLogger(__name__)

#: Answered without a key: probes, scrapers, and the description of the API itself.
OPEN_PATHS = frozenset({"/healthz", "/readyz", "/metrics", "/docs", "/openapi.json", "/docs/oauth2-redirect"})
#: Routes whose bodies go to disk as they come and have limits of their own (``multipart.py``).
_STREAMED = re.compile(r"/v1/files/?|/v1/uploads/[^/]+/parts/?")


class Edge:
    """The gateway's ASGI application.

    Args:
        app: every route but the inference ones.
        chat: the inference routes.
        auth: finds the caller.
        metrics: counts.
        max_request_bytes: largest body, but for those that are streamed to disk.
        lingering_seconds: see ``asgi.send_error``.
        access_log: log one line a request.
    """

    def __init__(
        self,
        app: ASGIApp,
        chat: Chat,
        auth: Authenticator,
        metrics: Metrics,
        *,
        max_request_bytes: int,
        lingering_seconds: float = 2.0,
        access_log: bool = False,
    ) -> None:
        self._app = app
        self._chat = chat
        self._auth = auth
        self._metrics = metrics
        self._max_request_bytes = max_request_bytes
        self._lingering_seconds = lingering_seconds
        self._access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; other kinds of scope (lifespan) go to the inner application."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        path: str = scope["path"]
        inference = path in INFERENCE_ROUTES and scope["method"] == "POST"
        request_id = _request_id(scope)
        id_header = (b"x-request-id", request_id.encode())
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], id_header]
            await send(message)

        set_call_context(CallContext(DEFAULT_TENANT, request_id))
        try:
            if path not in OPEN_PATHS:
                caller = await self._caller(scope, path)
                set_call_context(CallContext(caller.tenant, request_id))
                scope.setdefault("state", {})["caller"] = caller
            if inference:
                await self._chat(scope, receive, send_with_id)
            else:
                await self._app(scope, await self._bounded(scope, receive), send_with_id)
        except MartletError as error:
            if status == 0:
                await send_error(receive, send_with_id, error, self._lingering_seconds)
        except Exception:
            log.exception("%s %s failed", scope["method"], path)
            if status:
                raise  # the answer has begun: the server cuts the connection
            await send_error(receive, send_with_id, _internal(request_id))
        finally:
            seconds = time.perf_counter() - started
            self._metrics.request(scope["method"], path if inference else _route(scope), status, seconds)
            if self._access_log:
                fields = {
                    "method": scope["method"],
                    "path": path,
                    "status": status,
                    "duration_ms": round(seconds * 1000, 2),
                }
                log.info("request", extra=fields)

    async def _caller(self, scope: Scope, path: str) -> Caller:
        """Who is calling: a user, by a key, or one of our services."""
        authorization = header(scope, b"authorization")
        caller = self._auth.known(authorization) or self._auth.service_caller(scope["method"], path, authorization)
        return caller or await self._auth.caller(authorization)

    async def _bounded(self, scope: Scope, receive: Receive) -> Receive:
        """A ``receive`` whose body is within the limit: frameworks read bodies whole, however long."""
        path = scope["path"]
        if not has_body(scope) or path in OPEN_PATHS or _STREAMED.fullmatch(path):
            return receive
        return replayed(await read_body(scope, receive, self._max_request_bytes), receive)


def _request_id(scope: Scope) -> str:
    given = header(scope, b"x-request-id")
    if given is not None:
        text = given.decode("latin-1")
        if REQUEST_ID_PATTERN.fullmatch(text):
            return text
    return f"req-{os.urandom(10).hex()}"


def _route(scope: Scope) -> str:
    """The route's template: paths with ids would make a metric of every job."""
    return getattr(scope.get("route"), "path", "other")


def _internal(request_id: str) -> Internal:
    return Internal(f"Internal error; the gateway's log has it under request id {request_id}.")
