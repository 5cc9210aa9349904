"""MartletError -> OpenAI's error envelope: ``{"error": {"message", "type", "param", "code"}}`` and the headers that
steer retries.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from fastapi.exceptions import RequestValidationError
from martlet_core.errors import FieldViolation, InvalidArgument, MartletError, ResourceExhausted, Unauthenticated
from starlette.exceptions import HTTPException

TOO_LARGE = "PAYLOAD_TOO_LARGE"

#: HTTP statuses that a reason overrides; every other error answers with its class's status.
STATUS_BY_REASON = {TOO_LARGE: 413}

#: ``type`` of OpenAI's envelope by HTTP status.
TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    499: "request_cancelled",
}

#: Conflicts that trying again can't mend; the stock client would repeat any 409.
FINAL_CODES = frozenset({"FAILED_PRECONDITION", "ALREADY_EXISTS", "UNIMPLEMENTED", "INVALID_ARGUMENT"})

_CODES_BY_STATUS = {404: "not_found", 405: "method_not_allowed"}


def unauthenticated() -> Unauthenticated:
    """The one answer to a missing, malformed, unknown or deleted key: it tells none of them apart."""
    return Unauthenticated(
        "Incorrect or missing API key. Send `Authorization: Bearer <key>`; `martlet keys create` makes a key.",
        reason="INVALID_API_KEY",
    )


def too_large(what: str, limit_bytes: int, remedy: str, *, param: str = "") -> ResourceExhausted:
    """Something over its limit; answered with 413. ``param`` is the field at fault, if it is one."""
    return ResourceExhausted(
        f"{what} is larger than {limit_bytes} bytes ({limit_bytes / 2**20:g} MiB). {remedy}",
        reason=TOO_LARGE,
        metadata={"limit_bytes": str(limit_bytes)} | ({"param": param} if param else {}),
    )


def http_status(error: MartletError) -> int:
    """HTTP status of an error."""
    return STATUS_BY_REASON.get(error.reason, error.http_status)


def envelope(error: MartletError) -> dict[str, Any]:
    """OpenAI's envelope of an error; the text of our own faults was replaced before it got here."""
    status = http_status(error)
    param = error.violations[0].field if error.violations else error.metadata.get("param")
    return {
        "error": {
            "message": error.message,
            "type": TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error"),
            "param": param or None,
            "code": error.metadata.get("code") or error.reason.lower(),
        }
    }


def envelope_bytes(error: MartletError) -> bytes:
    """The envelope as JSON."""
    return orjson.dumps(envelope(error))


def retry_headers(error: MartletError) -> dict[str, str]:
    """``retry-after`` where it is known when to try again, ``x-should-retry: false`` where trying again can't help."""
    headers = {}
    if error.retry_after_seconds is not None:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_seconds)))
    if error.code in FINAL_CODES or error.reason == TOO_LARGE:
        headers["x-should-retry"] = "false"
    return headers


def from_http_exception(error: HTTPException, method: str, path: str) -> dict[str, Any]:
    """Envelope of what the router itself refuses: no such route, or not with this method."""
    if error.status_code == 404:
        message = f"Invalid URL ({method} {path}). The routes are listed at /docs."
    elif error.status_code == 405:
        message = f"{method} is not allowed on {path}."
    else:
        message = str(error.detail)
    return {
        "error": {
            "message": message,
            "type": "invalid_request_error",
            "param": None,
            "code": _CODES_BY_STATUS.get(error.status_code, "http_error"),
        }
    }


def from_validation_error(error: RequestValidationError) -> InvalidArgument:
    """FastAPI's list of validation errors as one InvalidArgument: 400 with ``param``, as OpenAI answers."""
    violations = [_violation(item) for item in error.errors()]
    first = violations[0]
    message = f"{first.field}: {first.description}" if first.field else first.description
    if len(violations) > 1:
        message += f" (and {len(violations) - 1} more: {', '.join(v.field for v in violations[1:6])})"
    reason = "UNKNOWN_PARAMETER" if error.errors()[0]["type"] == "extra_forbidden" else "INVALID_ARGUMENT"
    if error.errors()[0]["type"] == "missing":
        reason = "MISSING_REQUIRED_PARAMETER"
    return InvalidArgument(message, reason=reason, violations=violations)


def _violation(item: Mapping[str, Any]) -> FieldViolation:
    location = [part for part in item["loc"] if part not in ("body", "query", "path", "header")]
    kind, text = item["type"], str(item["msg"])
    if kind == "missing":
        text = "is required."
    elif kind == "extra_forbidden":
        text = "is not a parameter of this call. What Martlet adds to OpenAI's parameters goes under `martlet`."
    elif kind == "json_invalid":
        location, text = [], f"The body is not valid JSON: {item.get('ctx', {}).get('error', text)}."
    else:
        text = re.sub(r"^(Value|Assertion) error, ", "", text)
        if not text.endswith("."):
            text += f"; got {item.get('input')!r:.80}."
    return FieldViolation(field_path(location), text)


def field_path(parts: Sequence[str | int]) -> str:
    """``("messages", 2, "role")`` -> ``messages[2].role``."""
    path = ""
    for part in parts:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    return path
