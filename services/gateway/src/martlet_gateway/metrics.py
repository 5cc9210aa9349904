"""Prometheus metrics; one registry a gateway, so that two in one process don't meet."""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_OVERHEAD_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25)


class Metrics:
    """Counters of a gateway. Labelled children are looked up once and kept: the hot path must not pay for labels."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._requests = Counter(
            "martlet_gateway_requests", "REST requests answered.", ("method", "route", "status"), registry=self.registry
        )
        self._seconds = Histogram(
            "martlet_gateway_request_seconds",
            "Seconds from request to the last byte of the answer.",
            ("route",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.overhead_seconds = Histogram(
            "martlet_gateway_overhead_seconds",
            "Seconds the gateway itself spent on an inference request before its first byte.",
            buckets=_OVERHEAD_SECONDS,
            registry=self.registry,
        )
        self.first_byte_seconds = Histogram(
            "martlet_gateway_first_byte_seconds",
            "Seconds from an inference request to the first byte of its answer.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.active = Gauge("martlet_gateway_inference_active", "Inference requests in work.", registry=self.registry)
        self.disconnects = Counter(
            "martlet_gateway_client_disconnects", "Inference requests whose client went away.", registry=self.registry
        )
        tokens = Counter(
            "martlet_gateway_tokens", "Tokens that engines reported in `usage`.", ("kind",), registry=self.registry
        )
        self.prompt_tokens = tokens.labels("prompt")
        self.completion_tokens = tokens.labels("completion")
        self._upstream_errors = Counter(
            "martlet_gateway_replica_errors", "Calls to replicas that failed.", ("code",), registry=self.registry
        )
        self.replicas_ready = Gauge(
            "martlet_gateway_replicas_ready", "Replicas that take requests.", registry=self.registry
        )
        self.replicas_known = Gauge(
            "martlet_gateway_replicas_known", "Replicas whose lease holds.", registry=self.registry
        )
        self._request_children: dict[tuple[str, str, int], Counter] = {}
        self._seconds_children: dict[str, Histogram] = {}

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one answered request."""
        child = self._request_children.get((method, route, status))
        if child is None:
            child = self._request_children[method, route, status] = self._requests.labels(method, route, str(status))
        child.inc()
        timer = self._seconds_children.get(route)
        if timer is None:
            timer = self._seconds_children[route] = self._seconds.labels(route)
        timer.observe(seconds)

    def replica_error(self, code: str) -> None:
        """Count a failed call to a replica."""
        self._upstream_errors.labels(code).inc()

    def render(self) -> bytes:
        """The metrics as Prometheus reads them."""
        return generate_latest(self.registry)
