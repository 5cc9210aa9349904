"""API keys: random secrets, of which only hashes are kept, in the object store."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from time import time

from martlet_core.artifacts.types import ObjectStore
from martlet_core.errors import FailedPrecondition, InvalidArgument, NotFound, Unauthenticated
from martlet_core.ids import NAME_PATTERN, new_id

#: What a key may do. ``user``: everything of its tenant's. ``operator``: also what concerns all tenants.
USER, OPERATOR = "user", "operator"

SECRET_PATTERN = re.compile(r"mk-[A-Za-z0-9_-]{43}")

_PREFIX = "keys/"
_SECRET_BYTES = 32  # 256 bits: a plain hash is enough, there is nothing to guess


@dataclass(frozen=True)
class ApiKey:
    """A key without its secret.

    Attributes:
        id: for lists and for revoking.
        tenant: whose requests it makes.
        display_name: for people.
        hint: the secret's last four characters.
        create_time: seconds since the epoch.
        revoke_time: seconds since the epoch; 0 while it works.
        scope: ``user`` or ``operator``.
    """

    id: str
    tenant: str
    display_name: str = ""
    hint: str = ""
    create_time: float = 0.0
    revoke_time: float = 0.0
    scope: str = USER


class ApiKeyStore:
    """API keys in an ObjectStore. Thread-safe. ``verify`` reads the store each time: who calls it a lot caches."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects

    def create(self, tenant: str, display_name: str = "", *, scope: str = USER) -> tuple[str, ApiKey]:
        """Make a key; return its secret, which is shown this once, and its record. InvalidArgument: a bad tenant or scope."""
        if not NAME_PATTERN.fullmatch(tenant) or tenant in (".", ".."):
            raise InvalidArgument.field("tenant", f"{tenant[:100]!r} doesn't match {NAME_PATTERN.pattern}.")
        secret = "mk-" + secrets.token_urlsafe(_SECRET_BYTES)
        key = self.register(secret, tenant, display_name, scope=scope)
        return secret, key

    def register(self, secret: str, tenant: str, display_name: str = "", *, scope: str = USER) -> ApiKey:
        """Store a key whose secret was made elsewhere (a deployment's first key). The same again is fine; another scope
        takes the place of the one before.

        Raises:
            InvalidArgument: the secret hasn't the form of one, or there is no such scope.
            FailedPrecondition: it belongs to another tenant.
        """
        if not SECRET_PATTERN.fullmatch(secret):
            raise InvalidArgument.field("secret", f"must match {SECRET_PATTERN.pattern}.")
        if scope not in (USER, OPERATOR):
            raise InvalidArgument.field("scope", f"is {scope[:100]!r}; must be {USER} or {OPERATOR}.")
        key = ApiKey(new_id(), tenant, display_name, secret[-4:], time(), scope=scope)
        if self._objects.put_if_absent(_object_key(secret), _encode(key)):
            return key
        existing = self._read(_object_key(secret))
        if existing.tenant != tenant:
            raise FailedPrecondition("The key is another tenant's.", reason="API_KEY_TAKEN")
        if existing.scope != scope:
            existing = replace(existing, scope=scope)
            self._objects.put(_object_key(secret), _encode(existing), content_type="application/json")
        return existing

    def verify(self, secret: str) -> ApiKey:
        """The key of a secret. Unauthenticated if there is none, or it was revoked."""
        if not SECRET_PATTERN.fullmatch(secret):
            raise Unauthenticated("This is not an API key of ours; make one with `martlet keys create`.")
        try:
            key = self._read(_object_key(secret))
        except NotFound:
            raise Unauthenticated("Unknown API key; make one with `martlet keys create`.") from None
        if key.revoke_time:
            raise Unauthenticated("This API key was revoked.", reason="API_KEY_REVOKED")
        return key

    def list(self, *, tenant: str | None = None) -> Sequence[ApiKey]:
        """Keys, newest first, revoked ones too; of one tenant if given."""
        keys = [self._read(object_key) for object_key in self._object_keys()]
        found = [key for key in keys if tenant in (None, key.tenant)]
        return sorted(found, key=lambda key: key.create_time, reverse=True)

    def revoke(self, key_id: str) -> ApiKey:
        """Make a key useless; its record stays. Caches may let it in for a little longer. NotFound if there is none."""
        for object_key in self._object_keys():
            key = self._read(object_key)
            if key.id == key_id:
                key = replace(key, revoke_time=key.revoke_time or time())
                self._objects.put(object_key, _encode(key), content_type="application/json")
                return key
        raise NotFound(
            f"There is no API key {key_id[:100]!r}; `martlet keys list` shows them.", reason="API_KEY_NOT_FOUND"
        )

    def _object_keys(self) -> list[str]:
        found: list[str] = []
        while page := self._objects.list(_PREFIX, after=found[-1] if found else "", limit=1000):
            found.extend(page)
        return found

    def _read(self, object_key: str) -> ApiKey:
        try:
            return ApiKey(**json.loads(self._objects.get(object_key)))
        except (ValueError, TypeError) as error:
            raise FailedPrecondition(f"The record {self._objects.uri(object_key)} is damaged: {error}.") from error


def _object_key(secret: str) -> str:
    return f"{_PREFIX}{hashlib.sha256(secret.encode()).hexdigest()}.json"


def _encode(key: ApiKey) -> bytes:
    return json.dumps(asdict(key), ensure_ascii=False).encode()
