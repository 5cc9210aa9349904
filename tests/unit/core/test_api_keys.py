"""API keys."""

from __future__ import annotations

import pytest
from martlet_core.api_keys import SECRET_PATTERN, ApiKeyStore
from martlet_core.errors import FailedPrecondition, InvalidArgument, NotFound, Unauthenticated
from martlet_core.testing.object_store import MemoryObjectStore


@pytest.fixture
def objects() -> MemoryObjectStore:
    return MemoryObjectStore()


@pytest.fixture
def keys(objects: MemoryObjectStore) -> ApiKeyStore:
    return ApiKeyStore(objects)


def test_a_key_is_verified_and_its_secret_is_stored_nowhere(keys: ApiKeyStore, objects: MemoryObjectStore) -> None:
    secret, key = keys.create("acme", "laptop")
    assert SECRET_PATTERN.fullmatch(secret)
    assert keys.verify(secret) == key
    assert (key.tenant, key.display_name, key.hint) == ("acme", "laptop", secret[-4:])
    stored = [name.encode() + objects.get(name) for name in objects.list("")]
    assert len(stored) == 1
    assert secret.removeprefix("mk-").encode() not in stored[0]


def test_wrong_secrets(keys: ApiKeyStore) -> None:
    secret, _ = keys.create("acme")
    flipped = secret[:-1] + ("A" if secret[-1] != "A" else "B")
    for wrong in ("", "mk-", secret[:-1], secret + "x", flipped, "../" + secret, "sk-" + secret[3:]):
        with pytest.raises(Unauthenticated):
            keys.verify(wrong)


def test_revoking(keys: ApiKeyStore) -> None:
    secret, key = keys.create("acme")
    other, _ = keys.create("acme")
    revoked = keys.revoke(key.id)
    assert revoked.revoke_time > 0
    assert keys.revoke(key.id) == revoked
    with pytest.raises(Unauthenticated, match="revoked"):
        keys.verify(secret)
    assert keys.verify(other).tenant == "acme"
    with pytest.raises(NotFound):
        keys.revoke("nothing")


def test_listing(keys: ApiKeyStore) -> None:
    _, first = keys.create("acme")
    _, second = keys.create("acme")
    _, other = keys.create("evil")
    assert list(keys.list()) == [other, second, first]
    assert list(keys.list(tenant="acme")) == [second, first]


def test_registering_a_given_secret(keys: ApiKeyStore) -> None:
    secret = "mk-" + "x" * 43
    key = keys.register(secret, "acme", "first")
    assert keys.register(secret, "acme") == key
    with pytest.raises(FailedPrecondition):
        keys.register(secret, "evil")
    with pytest.raises(InvalidArgument):
        keys.register("short", "acme")


@pytest.mark.parametrize("tenant", ["", "..", "a/b", "x" * 129])
def test_bad_tenants(keys: ApiKeyStore, tenant: str) -> None:
    with pytest.raises(InvalidArgument, match="tenant"):
        keys.create(tenant)
