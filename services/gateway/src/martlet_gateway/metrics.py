"""Prometheus metrics; one registry a gateway, so that two in one process don't meet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from martlet_core.jobs import QueueLoad
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
        self._replica_requests = Gauge(
            "martlet_replica_requests",
            "Requests in work or waiting on replicas, by the replicas' own model. The same at every gateway.",
            ("model",),
            registry=self.registry,
        )
        self.job_store_up = Gauge(
            "martlet_gateway_job_store_up", "1 if the job store answered this scrape.", registry=self.registry
        )
        labels = ("stage", "queue")
        self._jobs_queued = Gauge(
            "martlet_jobs_queued",
            "Jobs that wait for a worker. The same at every gateway.",
            labels,
            registry=self.registry,
        )
        self._jobs_held = Gauge(
            "martlet_jobs_held", "Jobs that a worker holds. The same at every gateway.", labels, registry=self.registry
        )
        self._jobs_unfinished = Gauge(
            "martlet_jobs_unfinished",
            "Jobs that wait or are held: as many workers are of use. The same at every gateway.",
            labels,
            registry=self.registry,
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

    def show_jobs(self, loads: Mapping[str, Sequence[QueueLoad]] | None) -> None:
        """Show the loads of the stages' queues; None shows none, for old numbers would be believed."""
        self.job_store_up.set(loads is not None)
        for gauge in (self._jobs_queued, self._jobs_held, self._jobs_unfinished):
            gauge.clear()
        for stage, queues in (loads or {}).items():
            for load in queues:
                self._jobs_queued.labels(stage, load.queue).set(load.queued)
                self._jobs_held.labels(stage, load.queue).set(load.held)
                self._jobs_unfinished.labels(stage, load.queue).set(load.queued + load.held)

    def show_replicas(self, requests: Mapping[str, int]) -> None:
        """Show the requests on replicas, by model."""
        self._replica_requests.clear()
        for model, count in requests.items():
            self._replica_requests.labels(model).set(count)

    def render(self) -> bytes:
        """The metrics as Prometheus reads them."""
        return generate_latest(self.registry)
