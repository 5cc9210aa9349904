"""Opening channels and calling: keepalive, retries of reads, metadata, deadlines, errors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from types import TracebackType
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from google.rpc import status_pb2

from martlet_core.errors import MartletError
from martlet_core.rpc.context import INTERNAL_TOKEN_KEY, REQUEST_ID_KEY, TENANT_KEY, call_context
from martlet_core.rpc.status import STATUS_DETAILS_KEY, error_of_code, from_status

#: Cap of a single message, both ways. Weights and data sets never travel in messages; streams are cut into chunks.
MAX_MESSAGE_BYTES = 16 * 1024 * 1024
DEFAULT_TIMEOUT_SECONDS = 30.0

#: Methods that only read, by service: these alone are repeated by the channel on UNAVAILABLE.
#: Watch streams resume by cursor instead.
READ_METHODS: dict[str, tuple[str, ...]] = {
    "martlet.trainer.v1.TrainingService": (
        "GetTrainingJob",
        "ListTrainingJobs",
        "ListTrainingJobEvents",
        "ListTrainingCheckpoints",
        "ListBaseModels",
        "GetBaseModel",
    ),
    "martlet.trainer.v1.MergeService": ("GetMergeJob", "ListMergeJobs"),
    "martlet.quantizer.v1.QuantizationService": (
        "GetQuantizationJob",
        "ListQuantizationJobs",
        "ListQuantizationJobEvents",
        "ListQuantizationMethods",
    ),
    "martlet.evaluator.v1.EvaluationService": (
        "GetEvaluationJob",
        "ListEvaluationJobs",
        "ListEvaluationJobEvents",
        "ListEvaluationSuites",
    ),
    "martlet.inference.v1.InferenceService": ("ListServedModels", "GetReplicaInfo"),
    "martlet.gateway.v1.ArtifactService": ("GetArtifact", "ListArtifacts"),
    "martlet.gateway.v1.ModelService": ("GetModel", "ListModels"),
    "martlet.gateway.v1.ReplicaService": ("ListReplicas",),
    "martlet.gateway.v1.RunService": ("GetRun", "ListRuns", "ListRunEvents"),
    "martlet.gateway.v1.AliasService": ("GetAlias", "ListAliases"),
}

#: Options both ends share.
MESSAGE_OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
)


def open_channel(address: str, *, options: Sequence[tuple[str, Any]] = ()) -> grpc.aio.Channel:
    """Open a channel that lives as long as the process does; connections are made and renewed by it.

    It spreads calls over all addresses that a name resolves to, notices dead peers by keepalive (30 s + 10 s), and
    repeats reads (``READ_METHODS``) on UNAVAILABLE, up to four times in all.

    Args:
        address: ``host:port`` or any gRPC target (``dns:///trainer:50051``).
        options: more channel arguments; they win over the defaults.
    """
    defaults = (
        *MESSAGE_OPTIONS,
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.dns_min_time_between_resolutions_ms", 1_000),
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 5_000),
        ("grpc.enable_retries", 1),
        ("grpc.service_config", _service_config()),
    )
    chosen = {key for key, _ in options}
    return grpc.aio.insecure_channel(address, options=[o for o in defaults if o[0] not in chosen] + list(options))


def call_metadata(
    *, tenant: str | None = None, request_id: str | None = None, internal_token: str = ""
) -> tuple[tuple[str, str], ...]:
    """Metadata of a call between our services; tenant and request id come from the call being served unless given."""
    context = call_context()
    metadata = [(TENANT_KEY, context.tenant if tenant is None else tenant)]
    request_id = context.request_id if request_id is None else request_id
    if request_id:
        metadata.append((REQUEST_ID_KEY, request_id))
    if internal_token:
        metadata.append((INTERNAL_TOKEN_KEY, internal_token))
    return tuple(metadata)


def timeout_seconds(limit: float = DEFAULT_TIMEOUT_SECONDS) -> float:
    """Time-out for a call made now: ``limit``, or what is left of the deadline of the call being served if less."""
    remaining = call_context().remaining_seconds()
    return limit if remaining is None else min(limit, remaining)


def error_from_rpc(error: grpc.RpcError) -> MartletError:
    """The MartletError behind a failed call, from its status details; from its bare code where the peer sent none."""
    code: Any = getattr(error, "code", lambda: grpc.StatusCode.UNKNOWN)()
    text: str = getattr(error, "details", lambda: "")() or ""
    for key, value in getattr(error, "trailing_metadata", lambda: ())() or ():
        if key == STATUS_DETAILS_KEY:
            try:
                status = status_pb2.Status.FromString(value)
            except DecodeError:
                break  # not ours; the code still says enough
            if status.code == code.value[0]:
                return from_status(status)
    return error_of_code(code.name)(text or f"The call failed with {code.name}.")


def said_by_peer(error: grpc.RpcError) -> bool:
    """Whether the peer itself ended a call with an error, in its own words; a connection that breaks has none."""
    metadata = getattr(error, "trailing_metadata", lambda: ())() or ()
    return any(key == STATUS_DETAILS_KEY for key, _ in metadata)


class translate_errors:
    """Turns a ``grpc.RpcError`` that leaves the block into the MartletError behind it.

    Used like a function: ``with translate_errors(): ...`` or ``async with translate_errors(): ...``.
    """

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, grpc.RpcError):
            raise error_from_rpc(error) from error

    async def __aenter__(self) -> None:
        return None

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)


@cache
def _service_config() -> str:
    names = [{"service": service, "method": method} for service, methods in READ_METHODS.items() for method in methods]
    retry = {
        "maxAttempts": 4,
        "initialBackoff": "0.1s",
        "maxBackoff": "1s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    return json.dumps(
        {"loadBalancingConfig": [{"round_robin": {}}], "methodConfig": [{"name": names, "retryPolicy": retry}]}
    )
