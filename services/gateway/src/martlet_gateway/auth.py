"""API keys: who is calling. The tenant comes from the key and from nothing else."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Protocol

from martlet_core.errors import Unauthenticated
from martlet_core.rpc.context import DEFAULT_TENANT, INTERNAL_TOKEN_KEY

from martlet_gateway.errors import unauthenticated

_CACHE_SIZE = 10_000
_UNKNOWN_SECONDS = 2.0
_LONGEST_KEY = 512

REPLICA_SERVICE = "martlet.gateway.v1.ReplicaService"


class FindTenant(Protocol):
    """Looks a key up in the object store."""

    def __call__(self, key: str) -> str | None:
        """The key's tenant; None for a key that isn't known (any more). Blocks."""
        ...


class Authenticator:
    """Finds the tenant of a key, from a small cache that forgets after ``cache_seconds``: so long a deleted key may
    still work.

    The cache holds digests, never keys. Unknown keys are remembered for two seconds, so that guessing doesn't reach the
    store.

    Args:
        find_tenant: asks the store.
        internal_token: token of our own services; empty turns the check off.
        cache_seconds: how long a tenant is believed.
    """

    def __init__(self, find_tenant: FindTenant, *, internal_token: str = "", cache_seconds: float = 10.0) -> None:
        self._find_tenant = find_tenant
        self._internal_token = internal_token.encode()
        self._cache_seconds = cache_seconds
        self._cache: OrderedDict[bytes, tuple[float, str | None]] = OrderedDict()

    def cached_tenant(self, authorization: bytes | None) -> str | None:
        """The tenant of an ``Authorization`` header seen lately; None means ``tenant`` must be asked."""
        if authorization is None:
            return None
        entry = self._cache.get(hashlib.sha256(authorization).digest())
        return entry[1] if entry is not None and entry[0] > time.monotonic() else None

    async def tenant(self, authorization: bytes | None) -> str:
        """The tenant of an ``Authorization`` header.

        Raises:
            Unauthenticated: no key, a malformed header or an unknown key; always the same message.
        """
        scheme, _, key = (authorization or b"").decode("latin-1").partition(" ")
        key = key.strip()
        if scheme.lower() != "bearer" or not key or len(key) > _LONGEST_KEY or authorization is None:
            raise unauthenticated()
        fingerprint = hashlib.sha256(authorization).digest()
        now = time.monotonic()
        expires, tenant = self._cache.get(fingerprint, (0.0, None))
        if expires <= now:
            tenant = await asyncio.to_thread(self._find_tenant, key)
            life = self._cache_seconds if tenant is not None else min(_UNKNOWN_SECONDS, self._cache_seconds)
            self._cache[fingerprint] = (now + life, tenant)
            self._cache.move_to_end(fingerprint)
            while len(self._cache) > _CACHE_SIZE:
                self._cache.popitem(last=False)
        if tenant is None:
            raise unauthenticated()
        return tenant

    async def grpc_tenant(self, method: str, metadata: Mapping[str, str]) -> str:
        """The tenant of a gRPC call, for ``GrpcServer``: by ``authorization: Bearer``; ReplicaService asks for the
        internal token instead.
        """
        if method.split("/")[1] == REPLICA_SERVICE:
            shown = metadata.get(INTERNAL_TOKEN_KEY, "").encode()
            if self._internal_token and not hmac.compare_digest(shown, self._internal_token):
                raise Unauthenticated(
                    f"{method} is for Martlet's own services: send {INTERNAL_TOKEN_KEY}.",
                    reason="INTERNAL_TOKEN_REQUIRED",
                )
            return DEFAULT_TENANT
        header = metadata.get("authorization")
        return await self.tenant(None if header is None else header.encode("latin-1", "replace"))
