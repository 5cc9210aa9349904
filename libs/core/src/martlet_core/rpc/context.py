"""Who is calling, for as long as a call runs."""

from __future__ import annotations

import time
from contextvars import ContextVar
from dataclasses import dataclass

DEFAULT_TENANT = "default"

TENANT_KEY = "x-martlet-tenant"
REQUEST_ID_KEY = "x-request-id"
INTERNAL_TOKEN_KEY = "x-martlet-internal-token"


@dataclass(frozen=True, slots=True)
class CallContext:
    """What a call carries beside its request.

    Attributes:
        tenant: owner on whose behalf the call is made.
        request_id: id that runs through the logs of every service; empty outside a call.
        deadline: when the caller stops waiting, on the clock of ``time.monotonic()``; None without a deadline.
    """

    tenant: str = DEFAULT_TENANT
    request_id: str = ""
    deadline: float | None = None

    def remaining_seconds(self) -> float | None:
        """Seconds to the deadline (never negative); None without one."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())


_OUTSIDE = CallContext()
_current: ContextVar[CallContext] = ContextVar("martlet_call_context", default=_OUTSIDE)


def call_context() -> CallContext:
    """The context of the call being served; outside a call: the default tenant, no request id."""
    return _current.get()


def set_call_context(context: CallContext) -> None:
    """Make ``context`` current for this task and those it starts."""
    _current.set(context)
