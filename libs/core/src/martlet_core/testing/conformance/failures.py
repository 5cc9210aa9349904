"""A failed call, as it came over the wire."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2

_STATUS_KEY = "grpc-status-details-bin"
_RETRY_INFO = error_details_pb2.RetryInfo.DESCRIPTOR.full_name


@dataclass(frozen=True)
class RpcFailure:
    """A failed call, read from the wire.

    Attributes:
        code: name of the gRPC status code.
        message: its text.
        info: the ErrorInfo detail; None without one.
        fields: field -> description of the BadRequest detail.
        retry_after: whether there is a RetryInfo detail.
    """

    code: str
    message: str
    info: error_details_pb2.ErrorInfo | None = None
    fields: Mapping[str, str] = field(default_factory=dict)
    retry_after: bool = False

    @classmethod
    def of(cls, error: grpc.RpcError) -> RpcFailure:
        """Read the failure of a call made with ``grpc.aio``."""
        call: Any = error
        details = [value for key, value in call.trailing_metadata() or () if key == _STATUS_KEY]
        status = status_pb2.Status.FromString(details[0]) if details else status_pb2.Status()
        info, bad_request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        has_info, retry_after = False, False
        for detail in status.details:
            has_info = has_info or detail.Unpack(info)
            detail.Unpack(bad_request)
            retry_after = retry_after or detail.TypeName() == _RETRY_INFO
        fields = {violation.field: violation.description for violation in bad_request.field_violations}
        return cls(call.code().name, call.details() or "", info if has_info else None, fields, retry_after)

    def __str__(self) -> str:
        reason = f" ({self.info.reason})" if self.info else ""
        return f"{self.code}{reason}: {self.message}"
