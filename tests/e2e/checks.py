"""What must hold of the containers themselves: users, ports, what can be reached from where."""

from __future__ import annotations

import json
from typing import Any

from tests.e2e.stack import Stack, check, output, service_of

#: Ports of every service of ours, and of the stores.
PORTS = (8000, 50051, 50052, 50053, 50054, 50055, 6379, 9000, 9333, 8080, 8888)
_KNOCK = """
import json, socket, sys
from concurrent.futures import ThreadPoolExecutor
def knock(place):
    try:
        socket.create_connection(place, timeout=2).close()
    except OSError:
        return ""
    return "%s:%d" % place
places = [(address, int(port)) for address in sys.argv[2].split(",") for port in sys.argv[1].split(",")]
with ThreadPoolExecutor(64) as pool:
    print(json.dumps([place for place in pool.map(knock, places) if place]))
"""


def nobody_is_root(stack: Stack) -> str:
    """No process of any container runs as root, no root file system can be written, no capability is left."""
    containers = stack.containers()
    for container in containers:
        name, host = service_of(container), container["HostConfig"]
        users = output("docker", "top", container["Id"], "-eo", "uid,pid,comm").splitlines()[1:]
        check(bool(users), f"{name}: no process")
        roots = [line for line in users if line.split()[0] in ("0", "root")]
        check(not roots, f"{name} has processes of root: {roots}")
        check(host["ReadonlyRootfs"] and not host["Privileged"], f"{name} may write to its image, or is privileged")
        check(host["CapDrop"] == ["ALL"] and not host["CapAdd"], f"{name} has capabilities")
        check("no-new-privileges:true" in host["SecurityOpt"], f"{name} may gain privileges")
        check(host["Memory"] > 0 and host["PidsLimit"] > 0, f"{name} has no limits")
    return f"{len(containers)} containers"


def only_the_gateway_is_published(stack: Stack, ports: dict[str, int]) -> str:
    """The one service with published ports is the gateway, on loopback."""
    published: dict[str, list[dict[str, str]]] = {}
    for container in stack.containers():
        for bindings in container["NetworkSettings"]["Ports"].values():
            if bindings:
                published.setdefault(service_of(container), []).extend(bindings)
    check(set(published) == {"gateway"}, f"published are {published}")
    found = {(binding["HostIp"], int(binding["HostPort"])) for binding in published["gateway"]}
    check(found == {("127.0.0.1", port) for port in ports.values()}, f"the gateway is published at {found}")
    return "gateway, on 127.0.0.1"


def _addresses(container: dict[str, Any]) -> list[str]:
    networks = container["NetworkSettings"]["Networks"].values()
    return [network["IPAddress"] for network in networks if network["IPAddress"]]


def neighbours_reach_nothing(stack: Stack) -> str:
    """A container of another project knocks at every port of every container and finds all of them closed.

    The same knocking from inside finds the gateway: so it is the networks that keep the neighbour out, not the knocking.
    """
    addresses = ",".join(address for container in stack.containers() for address in _addresses(container))
    ports = ",".join(map(str, PORTS))
    image = stack.containers("gateway")[0]["Config"]["Image"]
    argv = (
        "docker",
        "run",
        "--rm",
        "--network",
        "bridge",
        "--entrypoint",
        "python",
        image,
        "-c",
        _KNOCK,
        ports,
        addresses,
    )
    found = json.loads(output(*argv, timeout=600))
    check(not found, f"a neighbour reaches {found}")
    gateway = ",".join(_addresses(stack.containers("gateway")[0]))
    inside = json.loads(stack.capture("exec", "-T", "trainer", "python", "-c", _KNOCK, "8000,50051", gateway))
    check(len(inside) >= 2, f"from inside, the gateway answers at {inside}")
    return f"{len(addresses.split(','))} addresses, {len(PORTS)} ports, none open"


def stores_lead_nowhere(stack: Stack) -> str:
    """Containers on the inner network alone have no way out: no route leads anywhere else."""
    for service in ("valkey", "object-store", "trainer", "evaluator"):
        routes = stack.capture("exec", "-T", service, "cat", "/proc/net/route").splitlines()[1:]
        defaults = [line for line in routes if line.split()[1] == "00000000"]
        check(not defaults, f"{service} has a way out: {defaults}")
    return "no default route"
