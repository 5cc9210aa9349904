"""Ports of a platform: those that were named, else those of the last start, else the usual ones, else free ones."""

from __future__ import annotations

from collections.abc import Mapping

from martlet_core.errors import FailedPrecondition
from martlet_core.local_servers import free_port, is_free

from martlet_cli.platform_options import PORTS

_HIGHEST = {"s3": 55535}  # SeaweedFS listens on port + 10000 too


def choose_ports(named: Mapping[str, int], last: Mapping[str, int]) -> dict[str, int]:
    """A free port for each name in ``PORTS``.

    Args:
        named: ports the user asked for; 0 asks for any free one.
        last: ports of the last start, taken again if they are free, so that a restart keeps its addresses.

    Raises:
        FailedPrecondition: if a named port is taken or can't be used.
    """
    chosen: dict[str, int] = {}
    for name, usual in PORTS.items():
        taken = set(chosen.values())
        if named.get(name):
            chosen[name] = _named(name, named[name], taken)
            continue
        candidates = [] if name in named else [last.get(name, 0), usual]
        fitting = [port for port in candidates if port and port not in taken and is_free(port)]
        chosen[name] = fitting[0] if fitting else _any(name, taken)
    return chosen


def _named(name: str, port: int, taken: set[int]) -> int:
    highest = _HIGHEST.get(name, 65535)
    if not 0 < port <= highest:
        raise FailedPrecondition(f"--{name}-port {port}: must be 1 to {highest}")
    if port in taken or not is_free(port):
        raise FailedPrecondition(
            f"--{name}-port {port}: something listens there already; name another one, or 0 for any free one"
        )
    return port


def _any(name: str, taken: set[int]) -> int:
    while True:
        port = free_port(with_grpc_offset=name in _HIGHEST)
        if port not in taken:
            return port
