"""Aliases: names that move at once, and back; and the requests that name them."""

from __future__ import annotations

import threading
from typing import Any

import openai
import pytest
from martlet.gateway.v1 import alias_service_pb2 as pb
from martlet.gateway.v1 import alias_service_pb2_grpc
from martlet_core.artifacts.types import PublishedModel
from martlet_core.errors import Aborted, AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from martlet_core.models import ObjectModelRegistry
from martlet_core.testing.object_store import MemoryObjectStore
from martlet_gateway.aliases import MOVES_KEPT, AliasStore

ONE, TWO, THREE = "ft:a:acme::1", "ft:a:acme::2", "ft:a:acme::3"


@pytest.fixture
def aliases() -> AliasStore:
    objects = MemoryObjectStore()
    models = ObjectModelRegistry(objects)
    for name in (ONE, TWO, THREE):
        models.publish(PublishedModel(name, "whole", "acme", "a1"))
    return AliasStore(objects, models)


def test_an_alias_moves_and_rolls_back_step_by_step(aliases: AliasStore) -> None:
    assert [aliases.put("acme", "news", name).model for name in (ONE, TWO, THREE)] == [ONE, TWO, THREE]
    assert [aliases.rollback("acme", "news").model for _ in range(2)] == [TWO, ONE]
    with pytest.raises(FailedPrecondition, match="nothing to roll back to"):
        aliases.rollback("acme", "news")
    assert aliases.put("acme", "news", THREE).model == THREE
    assert aliases.rollback("acme", "news").model == ONE
    assert aliases.target("acme", "news") == ONE
    assert [move.model for move in aliases.get("acme", "news").moves] == [ONE, THREE, ONE, TWO, THREE, TWO, ONE]


def test_moves_are_conditional(aliases: AliasStore) -> None:
    first = aliases.put("acme", "news", ONE)
    assert aliases.put("acme", "news", ONE).etag == first.etag, "the same again changes nothing"
    aliases.put("acme", "news", TWO, etag=first.etag)
    with pytest.raises(Aborted):
        aliases.put("acme", "news", THREE, etag=first.etag)
    assert aliases.put("acme", "news", ONE, once="run-1").model == ONE
    aliases.rollback("acme", "news")
    assert aliases.put("acme", "news", ONE, once="run-1").model == TWO, "a move that was made isn't made again"


def test_of_many_at_once_each_move_has_its_own_version(aliases: AliasStore) -> None:
    refused: list[Exception] = []

    def move(name: str) -> None:
        try:
            aliases.put("acme", "news", name)
        except Aborted as error:
            refused.append(error)

    threads = [threading.Thread(target=move, args=(name,)) for name in (ONE, TWO, THREE) * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    moves = aliases.get("acme", "news").moves
    assert [move.version for move in moves] == list(range(len(moves), 0, -1))
    assert aliases.target("acme", "news") == moves[0].model


def test_old_moves_are_forgotten_and_a_deleted_alias_begins_anew(aliases: AliasStore) -> None:
    for number in range(MOVES_KEPT + 5):
        aliases.put("acme", "news", (ONE, TWO)[number % 2])
    assert len(aliases.get("acme", "news").moves) == MOVES_KEPT
    aliases.delete("acme", "news")
    assert aliases.target("acme", "news") is None
    assert aliases.list("acme") == []
    with pytest.raises(NotFound):
        aliases.get("acme", "news")
    assert len(aliases.put("acme", "news", ONE).moves) >= 1
    with pytest.raises(FailedPrecondition):
        aliases.rollback("acme", "news")


def test_names_that_models_have_or_could_have_are_refused(aliases: AliasStore) -> None:
    for name in (ONE, "org/model", "artifacts/x", "-a", "", "a" * 65, "file:x"):
        with pytest.raises(InvalidArgument):
            aliases.put("acme", name, ONE)
    aliases._models.publish(PublishedModel("served", "whole", "", "a2"))
    with pytest.raises(AlreadyExists):
        aliases.put("acme", "served", ONE)
    with pytest.raises(NotFound):
        aliases.put("globex", "news", ONE)
    aliases.put("acme", "news", ONE)
    assert aliases.target("globex", "news") is None


async def test_requests_by_an_alias_are_answered_by_its_model(gateway: Any, start_replica: Any, tools: Any) -> None:
    replica = await start_replica()
    one, two = (
        tools.publish(gateway, replica, PublishedModel(name, "adapter", "acme", "a", tools.base, 8))
        for name in (ONE, TWO)
    )
    http, client = gateway.http(), gateway.openai()
    put = await http.put("/v1/martlet/aliases/news", json={"model": one.name})
    assert (put.status_code, put.json()["model"]) == (200, one.name)
    ask: Any = {"model": "news", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
    assert (await client.chat.completions.create(**ask)).model == one.name
    stream = await client.chat.completions.create(**ask, stream=True)
    assert {chunk.model async for chunk in stream} == {one.name}
    moved = await http.put(
        "/v1/martlet/aliases/news", json={"model": two.name}, headers={"if-match": put.json()["etag"]}
    )
    assert moved.status_code == 200
    assert (await client.chat.completions.create(**ask)).model == two.name
    stale = await http.put("/v1/martlet/aliases/news", json={"model": one.name}, headers={"if-match": '"1"'})
    assert (stale.status_code, stale.json()["error"]["code"]) == (409, "alias_moved")
    assert (await http.post("/v1/martlet/aliases/news/rollback")).json()["model"] == one.name
    assert (await client.chat.completions.create(**ask)).model == one.name
    listed = {model.id: model async for model in client.models.list()}
    assert listed["news"].martlet["alias_of"] == one.name
    with pytest.raises(openai.NotFoundError):
        await gateway.openai(gateway.other_key).chat.completions.create(**ask)
    assert (await http.delete("/v1/martlet/aliases/news")).json()["deleted"]
    with pytest.raises(openai.NotFoundError):
        await client.chat.completions.create(**ask)


async def test_aliases_over_rest_are_refused_where_they_would_hide_a_model(gateway: Any, tools: Any) -> None:
    http = gateway.http()
    gateway.stores.models.publish(PublishedModel(ONE, "whole", "acme", "a1"))
    for name, model, status, code in (
        (tools.base, ONE, 409, "name_taken"),
        ("a:b", ONE, 400, "invalid_argument"),
        ("news", "ft:nothing", 404, "model_not_found"),
    ):
        answer = await http.put(f"/v1/martlet/aliases/{name}", json={"model": model})
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert (await http.get("/v1/martlet/aliases")).json()["data"] == []
    assert (await http.put("/v1/martlet/aliases/base", json={"model": tools.base})).json()["model"] == tools.base


async def test_aliases_over_grpc(gateway: Any) -> None:
    stub = alias_service_pb2_grpc.AliasServiceStub(gateway.channel())
    metadata = gateway.metadata()
    for name in (ONE, TWO):
        gateway.stores.models.publish(PublishedModel(name, "whole", "acme", "a1"))
        await stub.PutAlias(pb.PutAliasRequest(alias=pb.Alias(name="aliases/news", model=name)), metadata=metadata)
    got = await stub.GetAlias(pb.GetAliasRequest(name="aliases/news"), metadata=metadata)
    assert ([move.model for move in got.moves], got.etag) == ([TWO, ONE], "2")
    back = await stub.RollbackAlias(pb.RollbackAliasRequest(name="aliases/news"), metadata=metadata)
    assert (back.model, back.moves[0].reason) == (ONE, "rollback")
    listed = await stub.ListAliases(pb.ListAliasesRequest(), metadata=metadata)
    assert [alias.name for alias in listed.aliases] == ["aliases/news"]
    await stub.DeleteAlias(pb.DeleteAliasRequest(name="aliases/news"), metadata=metadata)
    assert not (await stub.ListAliases(pb.ListAliasesRequest(), metadata=metadata)).aliases
