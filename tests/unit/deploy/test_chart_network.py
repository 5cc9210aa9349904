"""Who may call whom: the NetworkPolicies, worked out for every pair of pods and every port."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

#: Every wire inside the deployment: caller -> callee and port. None beside them may pass.
WIRES = {
    *((caller, "trainer", 50052) for caller in ("gateway", "gateway-worker")),
    *((caller, "quantizer", 50055) for caller in ("gateway", "gateway-worker")),
    *((caller, "evaluator", 50054) for caller in ("gateway", "gateway-worker")),
    ("gateway", "inference", 50053),
    ("inference", "gateway", 50051),
    *((caller, "gateway", 8000) for caller in ("trainer-worker", "quantizer-worker", "evaluator", "evaluator-worker")),
    *(
        (caller, "valkey", 6379)
        for caller in (
            *("gateway", "gateway-worker", "bootstrap", "trainer", "trainer-worker"),
            *("quantizer", "quantizer-worker", "evaluator", "evaluator-worker"),
        )
    ),
}
#: Who may leave the cluster at port 443 for anything but the object store: downloads from the hub, external targets.
TO_THE_INTERNET = {"trainer-worker", "quantizer-worker", "evaluator-worker", "inference"}
STORE = {"ipBlock": {"cidr": "192.0.2.1/32"}}
OUTSIDE = None


class Network:
    """The policies of a rendering."""

    def __init__(self, rendered: Any) -> None:
        self.policies = [policy["spec"] for policy in rendered.kind("NetworkPolicy").values()]

    def rules(self, labels: Mapping[str, str], direction: str) -> list[Mapping[str, Any]] | None:
        """The rules for a pod; None where no policy isolates it, so that everything passes."""
        chosen = [p for p in self.policies if p["podSelector"]["matchLabels"].items() <= labels.items()]
        isolating = [policy for policy in chosen if direction in policy["policyTypes"]]
        return [rule for policy in isolating for rule in policy.get(direction.lower(), [])] if isolating else None

    def passes(self, labels: Mapping[str, str], direction: str, other: Mapping[str, str] | None, port: int) -> bool:
        """Whether a pod's policies let a connection to or from the pod with the labels ``other`` (None: outside) pass."""
        rules = self.rules(labels, direction)
        side = "from" if direction == "Ingress" else "to"
        return rules is None or any(
            port in [entry["port"] for entry in rule["ports"]]
            and (side not in rule or any(_is(peer, other) for peer in rule[side]))
            for rule in rules
        )


def _is(peer: Mapping[str, Any], labels: Mapping[str, str] | None) -> bool:
    if labels is OUTSIDE or set(peer) != {"podSelector"}:
        return False  # an ipBlock is meant for addresses outside, a namespace for another namespace
    return peer["podSelector"]["matchLabels"].items() <= labels.items()


@pytest.mark.parametrize("values", [{}, {"networkPolicy": {"gatewayFrom": [{"namespaceSelector": {}}]}}])
def test_the_wires_pass_and_no_others(render: Any, values: Mapping[str, Any]) -> None:
    rendered = render(values)
    network = Network(rendered)
    pods = {pod.component: pod for pod in rendered.pods()}
    passing = {
        (caller, callee, port)
        for caller, from_pod in pods.items()
        for callee, to_pod in pods.items()
        for port in {port for pod in pods.values() for port in pod.ports.values()}
        if network.passes(from_pod.labels, "Egress", to_pod.labels, port)
        and network.passes(to_pod.labels, "Ingress", from_pod.labels, port)
    }
    assert passing == WIRES


def test_only_gateways_are_reached_from_outside(render: Any) -> None:
    rendered = render()
    network = Network(rendered)
    reached = {
        (pod.component, port)
        for pod in rendered.pods()
        for port in (6379, 8000, 50051, 50052, 50053, 50054, 50055)
        if network.passes(pod.labels, "Ingress", OUTSIDE, port)
    }
    assert reached == {("gateway", 8000), ("gateway", 50051)}


def test_who_may_leave_the_cluster(render: Any) -> None:
    rendered = render({"networkPolicy": {"objectStoreTo": [STORE]}})
    network = Network(rendered)
    store, internet = set(), set()
    for pod in rendered.pods():
        for rule in network.rules(pod.labels, "Egress") or []:
            addresses = [peer for peer in rule["to"] if "ipBlock" in peer]
            if addresses:
                assert rule["ports"] == [{"port": 443, "protocol": "TCP"}]
                (store if addresses == [STORE] else internet).add(pod.component)
    assert internet == TO_THE_INTERNET
    assert store == {pod.component for pod in rendered.pods()} - {"valkey"}


@pytest.mark.parametrize(
    ("endpoint", "port"),
    [("https://s3.example.org", 443), ("http://s3.example.org", 80), ("http://minio.store.svc:9000", 9000)],
)
def test_the_store_is_reached_at_its_port(render: Any, endpoint: str, port: int) -> None:
    rendered = render({"objectStore": {"endpoint": endpoint}, "networkPolicy": {"objectStoreTo": [STORE]}})
    rules = Network(rendered).rules(rendered.pod("demo-martlet-trainer").labels, "Egress") or []
    assert [rule["ports"][0]["port"] for rule in rules if rule["to"] == [STORE]] == [port]


def test_a_redis_outside_is_reached_at_its_port(render: Any) -> None:
    there = [{"ipBlock": {"cidr": "192.0.2.7/32"}}]
    values = {
        "valkey": {"enabled": False},
        "secrets": {"valkeyPassword": "", "redisUrl": "rediss://u:p@redis.example.org:6380/0"},
        "networkPolicy": {"redisPort": 6380, "redisTo": there},
    }
    rendered = render(values)
    network = Network(rendered)
    callers = set()
    for pod in rendered.pods():
        rules = network.rules(pod.labels, "Egress") or []
        if any(rule["to"] == there and rule["ports"] == [{"port": 6380, "protocol": "TCP"}] for rule in rules):
            callers.add(pod.component)
    assert callers == {caller for caller, callee, _ in WIRES if callee == "valkey"}


def test_what_is_not_deployed_has_no_wires(render: Any) -> None:
    rendered = render({"quantizer": {"enabled": False}, "evaluator": {"enabled": False}})
    text = str(rendered.kind("NetworkPolicy"))
    assert "quantizer" not in text
    assert "evaluator" not in text
    assert rendered.kind("NetworkPolicy")
    assert not render({"networkPolicy": {"enabled": False}}).kind("NetworkPolicy")
