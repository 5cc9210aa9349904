"""How a call fails: a gRPC status with google.rpc.ErrorInfo, and BadRequest where a field is at fault."""

from __future__ import annotations

from typing import Any

from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

DOMAIN = "exact-match.example"


class Refused(Exception):
    """A call ends with a status. ``field`` is set where one is at fault."""

    def __init__(self, code: str, reason: str, message: str, field: str = "") -> None:
        super().__init__(message)
        self.code, self.reason, self.field = code, reason, field

    def status(self) -> status_pb2.Status:
        """As it travels, and as a failed job keeps it."""
        status = status_pb2.Status(code=code_pb2.Code.Value(self.code), message=str(self))
        status.details.add().Pack(error_details_pb2.ErrorInfo(reason=self.reason, domain=DOMAIN))
        if self.field:
            violation = error_details_pb2.BadRequest.FieldViolation(field=self.field, description=str(self))
            status.details.add().Pack(error_details_pb2.BadRequest(field_violations=[violation]))
        return status


def bad_field(field: str, problem: str) -> Refused:
    """INVALID_ARGUMENT about a field."""
    return Refused("INVALID_ARGUMENT", "INVALID_FIELD", f"{field} {problem}", field)


def end(context: Any, refused: Refused) -> None:
    """End a call with the status."""
    context.abort_with_status(rpc_status.to_status(refused.status()))
