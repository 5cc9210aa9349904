"""Builds the gateway's ASGI application from its parts."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from martlet_core.errors import MartletError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from martlet_gateway import errors
from martlet_gateway.asgi import send_error
from martlet_gateway.auth import Authenticator
from martlet_gateway.context import GatewayContext, Json
from martlet_gateway.edge import Edge
from martlet_gateway.openapi import describe
from martlet_gateway.routes import (
    aliases,
    artifacts,
    base_models,
    evals,
    files,
    fine_tuning,
    graders,
    health,
    lineage,
    models,
    replicas,
    runs,
    uploads,
)
from martlet_gateway.routes.chat import Chat
from martlet_gateway.routes.jobs import job_routers

_ROUTERS = (
    *(files, uploads, fine_tuning, graders, evals, models, base_models, artifacts, replicas, runs, aliases, lineage),
    health,
)


class _ErrorResponse(Response):
    """OpenAI's envelope, sent with care for a body that wasn't read (see ``asgi.send_error``)."""

    def __init__(self, error: MartletError, lingering_seconds: float) -> None:
        super().__init__(status_code=errors.http_status(error))
        self._error = error
        self._lingering_seconds = lingering_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_error(receive, send, self._error, self._lingering_seconds)


def build_app(context: GatewayContext, auth: Authenticator) -> Edge:
    """The ASGI application: ``Edge`` around FastAPI, with the inference routes on a path of their own."""
    app = FastAPI(title="Martlet", version="0.1.0", redoc_url=None)
    app.state.gateway = context
    for module in _ROUTERS:
        app.include_router(module.router)
    for router in job_routers():
        app.include_router(router)
    describe(app)
    lingering_seconds = context.settings.lingering_seconds

    @app.exception_handler(MartletError)
    async def known(request: Request, error: MartletError) -> Response:
        return _ErrorResponse(error, lingering_seconds)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return _ErrorResponse(errors.from_validation_error(error), lingering_seconds)

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        body = errors.from_http_exception(error, request.method, request.url.path)
        return Json(body, status_code=error.status_code, headers=dict(error.headers or {}))

    chat = Chat(context.router, context.metrics, context.settings.max_request_bytes)
    return Edge(
        app,
        chat,
        auth,
        context.metrics,
        max_request_bytes=context.settings.max_request_bytes,
        lingering_seconds=lingering_seconds,
        access_log=context.settings.access_log,
    )
