"""Short-lived tokens by which one of our services asks the gateway on behalf of one tenant.

Whoever holds the deployment's internal token can make one; the gateway, which holds it too, can tell that it is genuine without
keeping anything. A job's process gets such a token and never the internal one: it names one tenant, ends by itself, and
the gateway lets it ask models and nothing else.

    mst-<end, seconds since the epoch>-<HMAC-SHA256 in hex>-<tenant>
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Callable

from martlet_core.ids import NAME_PATTERN

PREFIX = "mst-"
#: Longer than an attempt at a job lasts; each attempt gets a new one.
DEFAULT_SECONDS = 7 * 24 * 3600.0


def make_service_token(
    internal_token: str, tenant: str, seconds: float = DEFAULT_SECONDS, *, clock: Callable[[], float] = time.time
) -> str:
    """A token for a tenant; empty where the deployment has no internal token, since nobody could check it."""
    if not internal_token:
        return ""
    end = int(clock() + seconds)
    return f"{PREFIX}{end}-{_sign(internal_token, end, tenant)}-{tenant}"


def tenant_of_service_token(token: str, internal_token: str, *, clock: Callable[[], float] = time.time) -> str | None:
    """The tenant that a token was made for; None if it wasn't made with this internal token, or is over."""
    parts = token.removeprefix(PREFIX).split("-", 2)
    if not internal_token or not token.startswith(PREFIX) or len(parts) != 3:
        return None
    end, signature, tenant = parts
    if not (end.isascii() and end.isdigit() and len(end) <= 15 and NAME_PATTERN.fullmatch(tenant)):
        return None
    expected = _sign(internal_token, int(end), tenant)
    genuine = hmac.compare_digest(signature.encode(), expected.encode())
    return tenant if genuine and clock() < int(end) else None


def has_ended(token: str, *, clock: Callable[[], float] = time.time) -> bool:
    """Whether a token is over, by what it says itself."""
    end = token.removeprefix(PREFIX).partition("-")[0]
    return end.isascii() and end.isdigit() and clock() >= int(end)


def _sign(internal_token: str, end: int, tenant: str) -> str:
    text = f"martlet service token 1\n{end}\n{tenant}"
    return hmac.new(internal_token.encode(), text.encode(), hashlib.sha256).hexdigest()
