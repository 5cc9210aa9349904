"""API keys: who is calling, and what they may do. Both come from the key and from nothing else. Our own services show a service
token instead (``martlet_core.service_tokens``).
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial

from martlet_core import service_tokens
from martlet_core.api_keys import OPERATOR, ApiKeyStore
from martlet_core.errors import InvalidArgument, PermissionDenied, Unauthenticated
from martlet_core.ids import NAME_PATTERN
from martlet_core.model_tasks import CHAT_COMPLETIONS, CLASSIFY, COMPLETIONS, EMBEDDINGS, POOLING, RERANK, SCORE
from martlet_core.rpc.context import DEFAULT_TENANT, INTERNAL_TOKEN_KEY, TENANT_KEY

from martlet_gateway.errors import unauthenticated
from martlet_gateway.lookups import Lookups, LookupThreads

_UNKNOWN_SECONDS = 2.0
_STALE_SECONDS = 300.0
_LONGEST_KEY = 512

REPLICA_SERVICE = "martlet.gateway.v1.ReplicaService"
_INFERENCE = "/martlet.inference.v1.InferenceService"
#: What changes how replicas serve everyone. Chats place and load models by themselves; that takes no such key.
OPERATOR_METHODS = frozenset(f"{_INFERENCE}/{name}" for name in ("LoadModel", "UnloadModel", "PinModel"))

_ARTIFACTS = "/martlet.gateway.v1.ArtifactService"
#: What a stage may call over gRPC with the internal token, for the tenant it names: a stage that isn't ours has no key to
#: the object store (docs/adr/0014-artifacts-for-foreign-stages.md).
STAGE_METHODS = frozenset(
    f"{_ARTIFACTS}/{name}"
    for name in ("CreateArtifactUpload", "CommitArtifact", "GetArtifact", "CreateArtifactDownload")
)

#: Routes that our own services may call over REST with a service token.
SERVICE_ROUTES = frozenset({CHAT_COMPLETIONS, COMPLETIONS, EMBEDDINGS, CLASSIFY, POOLING, SCORE, RERANK})


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is calling.

    Attributes:
        tenant: whose files, jobs and models they are.
        is_operator: may also change what replicas hold.
    """

    tenant: str
    is_operator: bool = False

    def require_operator(self, what: str) -> None:
        """PermissionDenied for a key that isn't an operator's."""
        if not self.is_operator:
            raise PermissionDenied(
                f"{what} changes what replicas serve to every tenant, so it needs an operator's key; an operator makes "
                "one with `martlet keys create --operator`. To use a model, just name it in a request."
            )


#: Asks the store about a key: its caller, or None for a key that isn't known (any more). Blocks.
FindCaller = Callable[[str], Caller | None]


class Authenticator:
    """Finds the caller of a key, from a small cache that believes the store for ``cache_seconds``: so long a revoked key
    may still work, and up to five minutes while the store doesn't answer.

    The cache holds digests, never keys. Unknown keys are remembered for two seconds, so that guessing doesn't reach the
    store.

    Args:
        find: asks the store.
        threads: where it is asked.
        internal_token: token of our own services; empty turns the check off.
        cache_seconds: how long an answer is believed.
    """

    def __init__(
        self, find: FindCaller, threads: LookupThreads, *, internal_token: str = "", cache_seconds: float = 10.0
    ) -> None:
        self._find = find
        self._threads = threads
        self._internal_token = internal_token.encode()
        self._lookups: Lookups[Caller] = Lookups(
            fresh_seconds=cache_seconds,
            absent_seconds=min(_UNKNOWN_SECONDS, cache_seconds),
            stale_seconds=_STALE_SECONDS,
        )

    def known(self, authorization: bytes | None) -> Caller | None:
        """The caller of an ``Authorization`` header seen lately; None means that ``caller`` must be asked."""
        if authorization is None:
            return None
        return self._lookups.known(hashlib.sha256(authorization).digest(), partial(self._look_up, authorization))

    async def caller(self, authorization: bytes | None) -> Caller:
        """The caller of an ``Authorization`` header.

        Raises:
            Unauthenticated: no key, a malformed header or an unknown key; always the same message.
            Unavailable: the store doesn't answer, and the key wasn't seen lately.
        """
        if authorization is None or not _key(authorization):
            raise unauthenticated()
        fingerprint = hashlib.sha256(authorization).digest()
        found = await self._lookups.get(fingerprint, partial(self._look_up, authorization))
        if found is None:
            raise unauthenticated()
        return found

    def service_caller(self, method: str, path: str, authorization: bytes | None) -> Caller | None:
        """The caller of a REST request that shows a service token; None if it shows something else. One of our own services
        then asks models, or looks one up, on behalf of a tenant, and may do nothing else.

        Raises:
            Unauthenticated: the token is not genuine, it is over, or the route takes keys only.
        """
        if authorization is None or not _key(authorization).startswith(service_tokens.PREFIX):
            return None
        tenant = service_tokens.tenant_of_service_token(_key(authorization), self._internal_token.decode())
        if tenant is None or not _is_for_services(method, path):
            raise unauthenticated()
        return Caller(tenant)

    async def grpc_tenant(self, method: str, metadata: Mapping[str, str]) -> str:
        """The tenant of a gRPC call, for ``GrpcServer``: by ``authorization: Bearer``; ReplicaService asks for the
        internal token instead, and methods that change replicas for an operator's key. Stages show the internal token
        and name the tenant for ``STAGE_METHODS``.
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
        if method in STAGE_METHODS and header is None and INTERNAL_TOKEN_KEY in metadata:
            return self._tenant_of_stage(metadata)
        authorization = None if header is None else header.encode("latin-1", "replace")
        caller = self.known(authorization) or await self.caller(authorization)
        if method in OPERATOR_METHODS:
            caller.require_operator(method.rpartition("/")[2])
        return caller.tenant

    def _tenant_of_stage(self, metadata: Mapping[str, str]) -> str:
        """The tenant that a stage names; a deployment without an internal token takes no such word from anybody."""
        shown = metadata[INTERNAL_TOKEN_KEY].encode()
        if not self._internal_token or not hmac.compare_digest(shown, self._internal_token):
            raise unauthenticated()
        tenant = metadata.get(TENANT_KEY, "")
        if not NAME_PATTERN.fullmatch(tenant):
            raise InvalidArgument(f"{TENANT_KEY} must name the tenant.", reason="INVALID_TENANT")
        return tenant

    def _look_up(self, authorization: bytes) -> Awaitable[Caller | None]:
        return self._threads.run(self._find, _key(authorization))


def _is_for_services(method: str, path: str) -> bool:
    return (method == "POST" and path in SERVICE_ROUTES) or (method == "GET" and path.startswith("/v1/models/"))


def caller_finder(keys: ApiKeyStore) -> FindCaller:
    """Looks callers up in the key store; None for keys that are unknown or revoked."""

    def find(secret: str) -> Caller | None:
        try:
            key = keys.verify(secret)
        except Unauthenticated:
            return None
        return Caller(key.tenant, is_operator=key.scope == OPERATOR)

    return find


def _key(authorization: bytes) -> str:
    """The key in an ``Authorization`` header; empty if there is none."""
    scheme, _, key = authorization.decode("latin-1").partition(" ")
    key = key.strip()
    return key if scheme.lower() == "bearer" and len(key) <= _LONGEST_KEY else ""
