"""What FastAPI can't see of the OpenAPI page: the key, and the inference routes, which don't pass through it."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

_DESCRIPTION = "OpenAI-shaped REST for fine-tuning, files and inference, and Martlet's own resources under /v1/martlet."
_STREAM = {"stream": {"type": "boolean"}}
_INFERENCE = {
    "/v1/chat/completions": (
        "Chat with a model",
        ["model", "messages"],
        {"messages": {"type": "array", "items": {"type": "object"}}, **_STREAM},
    ),
    "/v1/completions": ("Continue a text", ["model", "prompt"], {"prompt": {"type": "string"}, **_STREAM}),
    "/v1/embeddings": ("Embed texts", ["model", "input"], {"input": {}}),
    "/v1/classify": ("Classify texts", ["model"], {"input": {}, "messages": {"type": "array"}}),
    "/v1/pooling": ("What a model's head makes of texts", ["model"], {"input": {}, "messages": {"type": "array"}}),
    "/v1/score": ("Score pairs of texts", ["model", "text_1", "text_2"], {"text_1": {}, "text_2": {}}),
    "/v1/rerank": (
        "Documents by their relevance to a query",
        ["model", "query", "documents"],
        {"query": {"type": "string"}, "documents": {"type": "array"}, "top_n": {"type": "integer"}},
    ),
}


def describe(app: FastAPI) -> None:
    """Make ``app.openapi`` answer with the whole surface."""

    def build() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title="Martlet", version=app.version, description=_DESCRIPTION, routes=app.routes)
            for path, (summary, required, properties) in _INFERENCE.items():
                schema["paths"][path] = {"post": _operation(summary, required, properties)}
            schema.setdefault("components", {})["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            schema["security"] = [{"key": []}]
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = build  # type: ignore[method-assign]


def _operation(summary: str, required: list[str], properties: dict[str, Any]) -> dict[str, Any]:
    body = {
        "type": "object",
        "required": required,
        "additionalProperties": True,
        "properties": {"model": {"type": "string"}, **properties},
        "description": "OpenAI's request, or vLLM's where OpenAI has none; every field travels to the engine unchanged.",
    }
    answers = {"application/json": {"schema": {"type": "object"}}}
    if "stream" in properties:
        answers["text/event-stream"] = {"schema": {"type": "string"}}
    return {
        "summary": summary,
        "tags": ["inference"],
        "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
        "responses": {"200": {"description": "The engine's answer; with `stream` its events.", "content": answers}},
    }
