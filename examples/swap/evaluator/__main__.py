"""``python -m evaluator``: serves martlet.evaluator.v1 with one suite, exact match. Jobs are kept in memory."""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import empty_pb2  # noqa: F401  # the contracts' modules need it registered
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from evaluator import errors
from evaluator.errors import Refused, bad_field
from evaluator.gateway import Gateway
from evaluator.measuring import METRIC, OPTIONS, SUITE, name_of, read_rows, work
from evaluator.stubs import common_pb, jobs_pb, service_grpc, service_pb
from evaluator.table import Table, read_token

SERVICE = "martlet.evaluator.v1.EvaluationService"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_ARTIFACT = re.compile(r"artifacts/[^/]+")
#: Field of a message -> lowest and highest value.
_RANGES: tuple[tuple[str, str, float, float], ...] = (
    ("", "max_rows", 1, 2**63),
    ("", "concurrency", 1, 512),
    ("", "max_failed_rows", 0, 2**63),
    ("", "seed", 0, 2**31 - 1),
    ("sampling", "max_tokens", 1, 2**31),
    ("sampling", "temperature", 0, 2),
    ("resources", "priority", 0, 9),
    ("resources", "max_attempts", 1, 100),
)


def guarded(method: Callable[..., Any]) -> Callable[..., Any]:
    """What a method refuses becomes the call's status."""

    def call(self: Service, request: Any, context: Any) -> Any:
        try:
            return method(self, request, context, self.tenant(context))
        except Refused as refused:
            errors.end(context, refused)

    return call


class Service(service_grpc.EvaluationServiceServicer):
    """The contract."""

    def __init__(self, table: Table, gateway: Gateway, internal_token: str) -> None:
        self._table = table
        self._gateway = gateway
        self._token = internal_token

    def tenant(self, context: Any) -> str:
        """Whose call it is. Only who knows the internal token may say so."""
        metadata = dict(context.invocation_metadata())
        if metadata.get("x-martlet-internal-token") != self._token:
            raise Refused("UNAUTHENTICATED", "INTERNAL_TOKEN_REQUIRED", "Send x-martlet-internal-token.")
        return metadata.get("x-martlet-tenant") or "default"

    @guarded
    def CreateEvaluationJob(self, request: Any, context: Any, tenant: str) -> Any:
        wish = request.evaluation_job
        job = jobs_pb.EvaluationJob(display_name=wish.display_name, spec=wish.spec, labels=wish.labels)
        if request.request_id and not _REQUEST_ID.fullmatch(request.request_id):
            raise bad_field("request_id", "must be 1 to 128 of A-Z, a-z, 0-9, '.', '_', ':' and '-'")
        self._check(job, tenant)
        if request.validate_only:
            return job
        return self._table.create(tenant, job, request.request_id)

    @guarded
    def GetEvaluationJob(self, request: Any, context: Any, tenant: str) -> Any:
        return self._table.get(tenant, request.name)

    @guarded
    def ListEvaluationJobs(self, request: Any, context: Any, tenant: str) -> Any:
        size = _page_size(request, 20)
        jobs, token = self._table.list(tenant, list(request.states), dict(request.labels), size, request.page_token)
        return service_pb.ListEvaluationJobsResponse(evaluation_jobs=jobs, next_page_token=token)

    @guarded
    def CancelEvaluationJob(self, request: Any, context: Any, tenant: str) -> Any:
        return self._table.cancel(tenant, request.name)

    @guarded
    def PauseEvaluationJob(self, request: Any, context: Any, tenant: str) -> Any:
        return self._table.pause(tenant, request.name)

    @guarded
    def ResumeEvaluationJob(self, request: Any, context: Any, tenant: str) -> Any:
        return self._table.resume(tenant, request.name)

    def WatchEvaluationJob(self, request: Any, context: Any) -> Iterator[Any]:
        try:
            yield from self._table.watch(self.tenant(context), request.name, request.after_cursor, context.is_active)
        except Refused as refused:
            errors.end(context, refused)

    @guarded
    def ListEvaluationJobEvents(self, request: Any, context: Any, tenant: str) -> Any:
        size = _page_size(request, 100)
        events, token = self._table.events(tenant, request.name, size, request.page_token, request.newest_first)
        return common_pb.ListJobEventsResponse(events=events, next_page_token=token)

    @guarded
    def ListEvaluationSuites(self, request: Any, context: Any, tenant: str) -> Any:
        suite = service_pb.EvaluationSuite(
            name=SUITE,
            description="Whether the answer is the expected one.",
            metrics=[METRIC],
            options=OPTIONS,
        )
        _page_size(request, 100)
        begin = read_token(request.page_token, [1]) if request.page_token else 0
        return service_pb.ListEvaluationSuitesResponse(suites=[suite][begin:])

    # What a job may ask for

    def _check(self, job: Any, tenant: str) -> None:
        spec = job.spec
        if len(job.display_name) > 128:
            raise bad_field("display_name", "has more than 128 characters")
        if len(job.labels) > 16 or any(not 0 < len(k) <= 64 or len(v) > 512 for k, v in job.labels.items()):
            raise bad_field("labels", "are at most 16, of at most 64 and 512 characters")
        for part, field, low, high in _RANGES:
            message = getattr(spec, part) if part else spec
            value = getattr(message, field)
            if message.HasField(field) and not low <= value <= high:
                raise bad_field(".".join(filter(None, ("spec", part, field))), f"is {value}; it is {low} to {high}")
        _check_targets(spec)
        _check_suites(spec)
        if not _ARTIFACT.fullmatch(spec.dataset):
            raise bad_field("spec.dataset", "must look like artifacts/{id}")
        for target in spec.targets:
            self._gateway.check_model(target.model, tenant)
        _, files = self._gateway.read(tenant, spec.dataset)
        read_rows(files)
        if spec.category_field:
            raise bad_field("spec.category_field", "must be empty: this evaluator divides no tables")


def _check_targets(spec: Any) -> None:
    if not 1 <= len(spec.targets) <= 16:
        raise bad_field("spec.targets", "must be 1 to 16")
    names = []
    for index, target in enumerate(spec.targets):
        where = f"spec.targets[{index}]"
        if not target.model:
            raise bad_field(f"{where}.model", "is required")
        if target.engine == jobs_pb.TARGET_ENGINE_EXTERNAL:
            if not target.base_url:
                raise bad_field(f"{where}.base_url", "is required for an external target")
            raise Refused("PERMISSION_DENIED", "ADDRESS_NOT_ALLOWED", "This evaluator asks its own gateway alone.")
        if target.engine == jobs_pb.TARGET_ENGINE_TRANSFORMERS:
            raise bad_field(f"{where}.engine", "must be TARGET_ENGINE_GATEWAY: this evaluator loads no models")
        for field in ("base_url", "api_key_env"):
            if getattr(target, field):
                raise bad_field(f"{where}.{field}", "is for external targets")
        if name_of(target) in names:
            raise bad_field(f"{where}.name", f"{name_of(target)!r} is there twice")
        names.append(name_of(target))
    if spec.baseline and spec.baseline not in names:
        raise bad_field("spec.baseline", f"must be one of {', '.join(names)}")


def _check_suites(spec: Any) -> None:
    if len(spec.suites) != 1:
        raise bad_field("spec.suites", "must be one: this evaluator has one suite")
    suite = spec.suites[0]
    if suite.suite != SUITE:
        raise bad_field("spec.suites[0].suite", f"must be {SUITE}")
    for option, value in dict(suite.options).items():
        if option not in OPTIONS:
            raise bad_field(f"spec.suites[0].options.{option}", f"isn't known; known are {', '.join(OPTIONS)}")
        if not isinstance(value, bool):
            raise bad_field(f"spec.suites[0].options.{option}", "must be true or false")


def _page_size(request: Any, default: int) -> int:
    size = request.page_size or default
    if not 1 <= size <= 1000:
        raise bad_field("page_size", "must be 1 to 1000")
    return size


def _internal_token() -> str:
    """From a file where one is named, as containers have it; else from the environment. Empty if neither is there."""
    path = os.environ.get("MARTLET_INTERNAL_TOKEN_FILE")
    return Path(path).read_text().strip() if path else os.environ.get("MARTLET_INTERNAL_TOKEN", "")


def main() -> int:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", default="127.0.0.1:50054", help="host:port to listen on")
    parser.add_argument("--gateway-url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--gateway-address", default="127.0.0.1:50051", help="host:port of the gateway's gRPC side")
    parser.add_argument("--workers", type=int, default=2, help="jobs at a time; 0 leaves them queued")
    options = parser.parse_args()
    token = _internal_token()
    if not token:
        print("MARTLET_INTERNAL_TOKEN must hold the deployment's internal token, or", file=sys.stderr)
        print("MARTLET_INTERNAL_TOKEN_FILE the path of a file that does", file=sys.stderr)
        return 2
    table, gateway = Table(), Gateway(options.gateway_url, options.gateway_address, token)
    for _ in range(options.workers):
        threading.Thread(target=work, args=(table, gateway, print), daemon=True).start()
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=64))
    service_grpc.add_EvaluationServiceServicer_to_server(Service(table, gateway, token), server)
    states = health.HealthServicer()
    states.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(states, server)
    server.add_insecure_port(options.address)
    server.start()
    print(f"serving on {options.address}", flush=True)
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    stopped.wait()
    server.stop(1.0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
