"""MartletError <-> google.rpc.Status with the standard details (AIP-193): ErrorInfo, BadRequest, RetryInfo."""

from __future__ import annotations

from urllib.parse import quote

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2

from martlet_core.errors import DOMAIN, ERRORS_BY_CODE, FieldViolation, Internal, MartletError

#: Trailing metadata that carries the Status (gRPC's richer error model).
STATUS_DETAILS_KEY = "grpc-status-details-bin"

# A stock client takes 8 KiB of metadata in all. The message travels twice (percent-encoded, and inside the Status).
_MESSAGE_LIMIT_BYTES = 2048
_STATUS_LIMIT_BYTES = 4096
_VALUE_LIMIT_CHARS = 256
_DESCRIPTION_LIMIT_CHARS = 400

_CODE_NUMBERS: dict[str, int] = {code.name: code.value[0] for code in grpc.StatusCode}
_CODE_NAMES: dict[int, str] = {number: name for name, number in _CODE_NUMBERS.items()}


def grpc_code(error: MartletError) -> grpc.StatusCode:
    """The gRPC status code of an error."""
    return grpc.StatusCode[error.code]


def to_status(error: MartletError) -> status_pb2.Status:
    """The error as a Status. What doesn't fit into a call's metadata is cut, and the cut is marked."""
    status = status_pb2.Status(code=_CODE_NUMBERS[error.code], message=_fit_message(error.message))
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN)
    for key, value in error.metadata.items():
        info.metadata[key] = _shorten(value, _VALUE_LIMIT_CHARS)
    status.details.add().Pack(info)
    if error.retry_after_seconds is not None:
        delay = Duration()
        delay.FromNanoseconds(int(error.retry_after_seconds * 1e9))
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    if error.violations:
        room = _STATUS_LIMIT_BYTES - status.ByteSize()
        status.details.add().Pack(_bad_request(error.violations, room))
    return status


def from_status(status: status_pb2.Status) -> MartletError:
    """The error that a Status describes; a code without a class of its own becomes Internal."""
    reason = None
    metadata: dict[str, str] = {}
    violations: list[FieldViolation] = []
    retry_after_seconds = None
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    bad_request = error_details_pb2.BadRequest()
    for detail in status.details:
        if detail.Unpack(info):
            reason, metadata = info.reason or None, dict(info.metadata)
        elif detail.Unpack(bad_request):
            violations = [FieldViolation(v.field, v.description) for v in bad_request.field_violations]
        elif detail.Unpack(retry):
            retry_after_seconds = retry.retry_delay.ToNanoseconds() / 1e9
    return error_of_code(_CODE_NAMES.get(status.code, "UNKNOWN"))(
        status.message,
        reason=reason,
        metadata=metadata,
        violations=violations,
        retry_after_seconds=retry_after_seconds,
    )


def error_of_code(code: str) -> type[MartletError]:
    """Class for a gRPC code by name. OUT_OF_RANGE is a bad argument; UNKNOWN, DATA_LOSS and OK are Internal."""
    if code == "OUT_OF_RANGE":
        return ERRORS_BY_CODE["INVALID_ARGUMENT"]
    return ERRORS_BY_CODE.get(code, Internal)


def _bad_request(violations: tuple[FieldViolation, ...], room: int) -> error_details_pb2.BadRequest:
    bad_request = error_details_pb2.BadRequest()
    for index, violation in enumerate(violations):
        field = _shorten(violation.field, _VALUE_LIMIT_CHARS)
        description = _shorten(violation.description, _DESCRIPTION_LIMIT_CHARS)
        bad_request.field_violations.add(field=field, description=description)
        if index and bad_request.ByteSize() + 128 > room:
            del bad_request.field_violations[-1]
            rest = len(violations) - index
            bad_request.field_violations.add(field="...", description=f"and {rest} more")
            break
    return bad_request


def _fit_message(message: str) -> str:
    if len(quote(message)) <= _MESSAGE_LIMIT_BYTES:
        return message
    low, high = 0, len(message)
    while low < high:  # longest prefix whose percent-encoded form fits
        middle = (low + high + 1) // 2
        if len(quote(message[:middle])) + 3 * 3 <= _MESSAGE_LIMIT_BYTES:
            low = middle
        else:
            high = middle - 1
    return message[:low] + "..."


def _shorten(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."
