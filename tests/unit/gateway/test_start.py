"""Starting: settings, the first key, addresses that are taken."""

from __future__ import annotations

import socket
import sys
from typing import Any

import pytest
from martlet_core.api_keys import ApiKeyStore
from martlet_core.errors import FailedPrecondition
from martlet_core.stores import Stores
from martlet_gateway.__main__ import main, make_first_key
from martlet_gateway.idempotency import LocalRetryMemory
from martlet_gateway.replica_store import LocalReplicaStore
from martlet_gateway.server import GatewayServer, SharedMemory, is_loopback


def test_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("MARTLET_HTTP_PORT", "many")
    monkeypatch.setattr(sys, "argv", ["martlet_gateway", "serve"])
    assert main() == 2
    assert "MARTLET_HTTP_PORT" in capsys.readouterr().err


async def test_first_key_is_made_once(stores: Stores, capsys: pytest.CaptureFixture[str]) -> None:
    secret = make_first_key(stores)
    assert secret
    assert secret in capsys.readouterr().out
    key = ApiKeyStore(stores.objects).verify(secret)
    assert (key.tenant, key.scope) == ("default", "operator")
    assert make_first_key(stores) is None
    assert capsys.readouterr().out == ""


async def test_taken_port_is_said_and_nothing_is_left_open(stores: Stores, settings: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        busy = settings.model_copy(update={"http_port": port})
        server = GatewayServer(busy, stores, SharedMemory(LocalReplicaStore(), LocalRetryMemory()))
        with pytest.raises(FailedPrecondition, match="MARTLET_HTTP_PORT"):
            await server.start()
        await server.stop()


@pytest.mark.parametrize(
    ("address", "is_open"),
    [
        ("127.0.0.1:0", False),
        ("localhost:50051", False),
        ("[::1]:50051", False),
        ("unix:/run/martlet.sock", False),
        ("0.0.0.0:0", True),
        ("[::]:0", True),
        ("gateway:50051", True),
        (":50051", True),
    ],
)
def test_addresses_that_others_reach(address: str, is_open: bool) -> None:
    assert is_loopback(address) is not is_open


async def test_replicas_of_anyone_are_refused(stores: Stores, settings: Any) -> None:
    memory = SharedMemory(LocalReplicaStore(), LocalRetryMemory())
    open_settings = settings.model_copy(update={"grpc_address": "0.0.0.0:0", "internal_token": ""})
    server = GatewayServer(open_settings, stores, memory)
    with pytest.raises(FailedPrecondition, match="MARTLET_INTERNAL_TOKEN"):
        await server.start()
    await server.stop()
    server = GatewayServer(open_settings.model_copy(update={"internal_token": "t"}), stores, memory)
    await server.start()
    await server.stop()
