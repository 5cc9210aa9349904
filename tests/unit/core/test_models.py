"""Published model names."""

from __future__ import annotations

import pytest
from martlet_core.artifacts.types import PublishedModel
from martlet_core.errors import AlreadyExists, InvalidArgument, NotFound
from martlet_core.models import ObjectModelRegistry
from martlet_core.testing.object_store import MemoryObjectStore

MINE = PublishedModel("ft:smollm2:acme:headlines:01ab", "adapter", "acme", "a1", "smollm2", 16, create_time=2.0)
OTHER = PublishedModel("ft:smollm2:evil:headlines:01ac", "adapter", "evil", "a2", "smollm2", 16, create_time=3.0)
SHARED = PublishedModel("org/smollm2@main", "base", create_time=1.0)


@pytest.fixture
def models() -> ObjectModelRegistry:
    registry = ObjectModelRegistry(MemoryObjectStore())
    for model in (MINE, OTHER, SHARED):
        registry.publish(model)
    return registry


def test_names_resolve_for_those_who_may_use_them(models: ObjectModelRegistry) -> None:
    assert models.get(MINE.name, tenant="acme") == MINE
    assert models.get(SHARED.name, tenant="acme") == SHARED
    assert models.get(OTHER.name) == OTHER
    with pytest.raises(NotFound):
        models.get(OTHER.name, tenant="acme")
    assert models.list(tenant="acme") == [MINE, SHARED]
    assert models.list(tenant="evil") == [OTHER, SHARED]


def test_close_matches_are_the_tenants_own(models: ObjectModelRegistry) -> None:
    with pytest.raises(NotFound, match="Did you mean") as caught:
        models.get("ft:smollm2:acme:headline:01ab", tenant="acme")
    assert caught.value.metadata["close_matches"] == MINE.name
    with pytest.raises(NotFound) as caught:
        models.get("quite-different", tenant="acme")
    assert caught.value.metadata["close_matches"] == ""


def test_publishing_again(models: ObjectModelRegistry) -> None:
    again = PublishedModel(MINE.name, "adapter", "acme", "a1", "smollm2", 16)
    assert models.publish(again) == MINE
    with pytest.raises(AlreadyExists, match=MINE.name):
        models.publish(PublishedModel(MINE.name, "adapter", "acme", "another", "smollm2", 16))


def test_deleting_is_the_owners_right(models: ObjectModelRegistry) -> None:
    for name in (OTHER.name, SHARED.name, "nothing"):
        with pytest.raises(NotFound):
            models.delete(name, tenant="acme")
    models.delete(MINE.name, tenant="acme")
    with pytest.raises(NotFound):
        models.get(MINE.name)


@pytest.mark.parametrize("name", ["", "a b", "../x", "a%2Fb", "a\0", "ünï", "x" * 256])
def test_bad_names(models: ObjectModelRegistry, name: str) -> None:
    with pytest.raises(InvalidArgument, match="name"):
        models.publish(PublishedModel(name, "base"))
    with pytest.raises(NotFound):
        models.get(name)


def test_a_bad_kind(models: ObjectModelRegistry) -> None:
    with pytest.raises(InvalidArgument, match="kind"):
        models.publish(PublishedModel("a", "lora"))
