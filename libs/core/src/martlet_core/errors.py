"""The one error tree of Martlet.

Domain code raises these and nothing else; one server interceptor turns them into a ``google.rpc.Status`` with details
(``martlet_core.rpc.status``), the client turns that back into the same class, and the gateway maps each to one HTTP status.

    MartletError
    |- InvalidArgument      400  a field is wrong; carries the violations
    |- FailedPrecondition   409  right request, wrong state
    |- Unauthenticated      401  no key, or a wrong one
    |- PermissionDenied     403  the key may not do this
    |- NotFound             404  no such resource; may carry close matches
    |- AlreadyExists        409  the name or request id is taken by something else
    |- Aborted              409  a concurrent change won (compare-and-set, fencing token)
    |- ResourceExhausted    429  quota, size or capacity; may say when to retry
    |- Cancelled            499  the caller went away
    |- DeadlineExceeded     504  the deadline passed
    |- Unavailable          503  try again; may say when
    |- Unimplemented        501  this deployment can't do that
    `- Internal             500  a fault of ours; the text stays in the log
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

DOMAIN = "martlet"


@dataclass(frozen=True)
class FieldViolation:
    """One thing wrong with a request.

    Attributes:
        field: path of the field (``spec.hyperparameters.learning_rate``, ``messages[2].role``).
        description: what is wrong and how to mend it.
    """

    field: str
    description: str


class MartletError(Exception):
    """Base of all errors that Martlet raises on purpose.

    Attributes:
        code: gRPC status code by name.
        http_status: HTTP status the gateway answers with.
        reason: short UPPER_SNAKE word that programs can act on (AIP-193).
        message: text for people: what is wrong and what to do.
        metadata: further facts, all strings.
        violations: the fields at fault, for InvalidArgument.
        retry_after_seconds: when trying again may help; None where it won't or isn't known.
    """

    code = "UNKNOWN"
    http_status = 500
    default_reason = "UNKNOWN"

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        metadata: dict[str, str] | None = None,
        violations: tuple[FieldViolation, ...] | list[FieldViolation] = (),
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.metadata = dict(metadata or {})
        self.violations = tuple(violations)
        self.retry_after_seconds = retry_after_seconds

    def to_dict(self) -> dict[str, Any]:
        """The error as JSON-ready values; ``error_from_dict`` is its inverse."""
        return {
            "code": self.code,
            "message": self.message,
            "reason": self.reason,
            "metadata": self.metadata,
            "violations": [{"field": v.field, "description": v.description} for v in self.violations],
            "retry_after_seconds": self.retry_after_seconds,
        }


class InvalidArgument(MartletError):
    """A field is missing, malformed or out of range."""

    code, http_status, default_reason = "INVALID_ARGUMENT", 400, "INVALID_ARGUMENT"

    @classmethod
    def field(cls, field: str, description: str, *, reason: str | None = None) -> InvalidArgument:
        """An error about one field; its message is ``field: description``."""
        return cls(f"{field}: {description}", reason=reason, violations=[FieldViolation(field, description)])


class FailedPrecondition(MartletError):
    """The request is right, but the resource's state doesn't allow it."""

    code, http_status, default_reason = "FAILED_PRECONDITION", 409, "FAILED_PRECONDITION"


class Unauthenticated(MartletError):
    """No API key, or one that isn't known."""

    code, http_status, default_reason = "UNAUTHENTICATED", 401, "INVALID_API_KEY"


class PermissionDenied(MartletError):
    """The key is known, but may not do this."""

    code, http_status, default_reason = "PERMISSION_DENIED", 403, "PERMISSION_DENIED"


class NotFound(MartletError):
    """There is no such resource, or the caller may not know of it."""

    code, http_status, default_reason = "NOT_FOUND", 404, "NOT_FOUND"


class AlreadyExists(MartletError):
    """The name is taken, or the request id was used for another request."""

    code, http_status, default_reason = "ALREADY_EXISTS", 409, "ALREADY_EXISTS"


class Aborted(MartletError):
    """A concurrent change won; the caller's view is out of date."""

    code, http_status, default_reason = "ABORTED", 409, "ABORTED"


class LeaseLost(Aborted):
    """The fencing token is not the current one: another worker holds the job."""

    default_reason = "LEASE_LOST"


class ResourceExhausted(MartletError):
    """A quota, a size limit or the capacity is used up."""

    code, http_status, default_reason = "RESOURCE_EXHAUSTED", 429, "RESOURCE_EXHAUSTED"


class Cancelled(MartletError):
    """The caller cancelled the call."""

    code, http_status, default_reason = "CANCELLED", 499, "CANCELLED"


class DeadlineExceeded(MartletError):
    """The deadline passed before the work was done."""

    code, http_status, default_reason = "DEADLINE_EXCEEDED", 504, "DEADLINE_EXCEEDED"


class Unavailable(MartletError):
    """A part of the system doesn't answer now; try again."""

    code, http_status, default_reason = "UNAVAILABLE", 503, "UNAVAILABLE"


class Unimplemented(MartletError):
    """This deployment can't do that."""

    code, http_status, default_reason = "UNIMPLEMENTED", 501, "UNIMPLEMENTED"


class Internal(MartletError):
    """A fault of ours."""

    code, http_status, default_reason = "INTERNAL", 500, "INTERNAL"


#: gRPC status name -> class, for turning a status back into an error.
ERRORS_BY_CODE: dict[str, type[MartletError]] = {
    cls.code: cls
    for cls in (
        InvalidArgument,
        FailedPrecondition,
        Unauthenticated,
        PermissionDenied,
        NotFound,
        AlreadyExists,
        Aborted,
        ResourceExhausted,
        Cancelled,
        DeadlineExceeded,
        Unavailable,
        Unimplemented,
        Internal,
    )
}


def error_from_dict(data: dict[str, Any]) -> MartletError:
    """The error that ``MartletError.to_dict`` described; unknown codes become Internal."""
    cls = ERRORS_BY_CODE.get(data.get("code", ""), Internal)
    return cls(
        data.get("message", ""),
        reason=data.get("reason"),
        metadata=data.get("metadata"),
        violations=[FieldViolation(v["field"], v["description"]) for v in data.get("violations", [])],
        retry_after_seconds=data.get("retry_after_seconds"),
    )
