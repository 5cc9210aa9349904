"""S3ObjectStore behind a proxy that breaks connections."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from martlet_core.artifacts.s3 import S3ObjectStore
from martlet_core.backoff import GaveUp
from martlet_core.ids import new_id

BUFFER = 65536


class BreakingProxy:
    """Forwards TCP connections to a server, and breaks them on request.

    Attributes:
        lose_answers_to: requests containing these bytes are passed on, but the connection ends in place of their answer.
        cut_after: the next connection whose answers reach this many bytes is cut there; 0: none.
    """

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.lose_answers_to = b""
        self.cut_after = 0
        self.broken = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._target)
            lost = threading.Event()
            threading.Thread(target=self._forward, args=(client, server, lost), daemon=True).start()
            threading.Thread(target=self._answer, args=(server, client, lost), daemon=True).start()

    def _forward(self, client: socket.socket, server: socket.socket, lost: threading.Event) -> None:
        try:
            while data := client.recv(BUFFER):
                if self.lose_answers_to and self.lose_answers_to in data:
                    self.lose_answers_to = b""
                    lost.set()
                server.sendall(data)
            server.shutdown(socket.SHUT_WR)
        except OSError:
            server.close()

    def _answer(self, server: socket.socket, client: socket.socket, lost: threading.Event) -> None:
        passed = 0
        try:
            while data := server.recv(BUFFER):
                passed += len(data)
                cut = self.cut_after and passed > self.cut_after
                if cut or lost.is_set():
                    self.cut_after, self.broken = 0, self.broken + 1
                    break
                client.sendall(data)
        except OSError:
            pass
        for end in (client, server):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue


@pytest.fixture
def proxy(s3_settings: dict[str, str], s3_store: S3ObjectStore) -> Iterator[BreakingProxy]:
    host, port = s3_settings["s3_endpoint"].removeprefix("http://").split(":")
    proxy = BreakingProxy(host, int(port))
    yield proxy
    proxy.close()


@pytest.fixture
def store(proxy: BreakingProxy, s3_settings: dict[str, str]) -> Iterator[S3ObjectStore]:
    store = S3ObjectStore(
        f"http://127.0.0.1:{proxy.port}", s3_settings["s3_access_key"], s3_settings["s3_secret_key"], "martlet"
    )
    yield store
    store.close()


@pytest.mark.parametrize("size", [1024 * 1024, 30 * 1024 * 1024])
def test_a_read_survives_a_cut_connection(
    proxy: BreakingProxy, store: S3ObjectStore, tmp_path: Path, size: int
) -> None:
    data = os.urandom(size)
    (tmp_path / "source").write_bytes(data)
    key = f"faults/{new_id()}"
    store.upload(key, tmp_path / "source")
    proxy.cut_after = 500_000
    store.download(key, tmp_path / "target", size)
    assert (tmp_path / "target").read_bytes() == data
    assert proxy.broken == 1


def test_a_conditional_write_whose_answer_was_lost_has_won(proxy: BreakingProxy, store: S3ObjectStore) -> None:
    key = f"faults/{new_id()}"
    proxy.lose_answers_to = f"PUT /martlet/{key}".encode()
    assert store.put_if_absent(key, b"mine")
    assert proxy.broken == 1
    assert store.get(key) == b"mine"


def test_a_conditional_write_that_lost_stays_lost(proxy: BreakingProxy, store: S3ObjectStore) -> None:
    key = f"faults/{new_id()}"
    store.put(key, b"theirs")
    proxy.lose_answers_to = f"PUT /martlet/{key}".encode()
    assert not store.put_if_absent(key, b"mine")
    assert proxy.broken == 1
    assert store.get(key) == b"theirs"


def test_a_multipart_upload_whose_last_answer_was_lost(
    proxy: BreakingProxy, store: S3ObjectStore, tmp_path: Path
) -> None:
    data = os.urandom(20 * 1024 * 1024)
    (tmp_path / "source").write_bytes(data)
    key = f"faults/{new_id()}"
    proxy.lose_answers_to = f"POST /martlet/{key}?uploadId".encode()
    store.upload(key, tmp_path / "source")
    assert proxy.broken == 1
    assert store.get(key) == data


def test_a_download_is_given_up_while_nothing_comes(tmp_path: Path) -> None:
    """The server takes the call and never answers."""
    asked = threading.Event()
    connections: list[socket.socket] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def take() -> None:
        connection, _ = listener.accept()
        connections.append(connection)
        connection.recv(BUFFER)
        asked.set()

    taking = threading.Thread(target=take)
    taking.start()
    store = S3ObjectStore(f"http://127.0.0.1:{listener.getsockname()[1]}", "key", "secret", "martlet")
    with pytest.raises(GaveUp):
        store.download("blobs/sha256/x", tmp_path / "target", 1000, give_up=asked.is_set)
    assert list(tmp_path.iterdir()) == []
    taking.join()
    for end in (listener, *connections):
        end.close()
    store.close()
