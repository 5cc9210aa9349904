"""Whether a name answers at the gateway for a tenant, asked as the job will ask later."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import quote

import aiohttp
from martlet_core.errors import InvalidArgument, MartletError, NotFound, PermissionDenied, Unavailable
from martlet_core.model_tasks import ModelTask, check_route, told_task
from martlet_core.service_tokens import make_service_token

_SECONDS = 30.0


class GatewayModels:
    """Looks models up at the gateway.

    Args:
        url: the gateway's REST address, ending in ``/v1``.
        internal_token: names us there.
    """

    def __init__(self, url: str, internal_token: str) -> None:
        self._url = url.rstrip("/")
        self._token = internal_token

    async def require(self, name: str, tenant: str, field: str, routes: Sequence[str] = ()) -> None:
        """Refuse a name that doesn't answer for the tenant, or not on these routes.

        Raises:
            NotFound: there is none.
            InvalidArgument: it was made for something else.
            PermissionDenied: the gateway doesn't take us for one of its own services.
            Unavailable: it doesn't answer.
        """
        headers = {"authorization": f"Bearer {make_service_token(self._token, tenant, _SECONDS + 60)}"}
        timeout = aiohttp.ClientTimeout(total=_SECONDS)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout, headers=headers) as session,
                session.get(f"{self._url}/models/{quote(name, safe='')}", allow_redirects=False) as response,
            ):
                status, body = response.status, await response.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise Unavailable(
                f"The gateway at {self._url} can't be asked about {name}: {type(error).__name__}.",
                reason="GATEWAY_UNAVAILABLE",
                retry_after_seconds=1.0,
            ) from error
        if status != 200:
            raise _refusal(name, field, status, body)
        _check_task(name, told_task((body or {}).get("martlet") or {}), field, routes)


def _check_task(name: str, task: ModelTask | None, field: str, routes: Sequence[str]) -> None:
    if task is None:
        return
    for route in routes:
        try:
            check_route(name, task, route)
        except InvalidArgument as error:
            raise InvalidArgument.field(field, error.message, reason=error.reason) from error


def _refusal(name: str, field: str, status: int, body: object) -> MartletError:
    found = body.get("error") if isinstance(body, dict) else None
    said = str(found.get("message", "")) if isinstance(found, dict) else ""
    if status == 404:
        return NotFound(f"{field}: {said or name}", reason="MODEL_NOT_FOUND", metadata={"model": name, "param": field})
    if status in (401, 403):
        return PermissionDenied(
            "The gateway refuses the evaluator; both need the same MARTLET_INTERNAL_TOKEN.",
            reason="INTERNAL_TOKEN_REQUIRED",
        )
    return Unavailable(f"The gateway says {status} about {name}: {said}", retry_after_seconds=1.0)
