"""What goes wrong with an S3 service, as our errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import urllib3
from minio.error import InvalidResponseError, MinioException, S3Error, ServerError

from martlet_core.errors import FailedPrecondition, MartletError, NotFound, Unavailable

_MISSING = {"NoSuchKey", "NoSuchBucket", "NoSuchUpload"}
_REFUSALS = {"AccessDenied", "SignatureDoesNotMatch", "InvalidAccessKeyId", "RequestTimeTooSkewed", "ExpiredToken"}


@contextmanager
def s3_errors(endpoint: str, uri: str) -> Iterator[None]:
    """Turns the SDK's errors into ours.

    Args:
        endpoint: of the service, for the message.
        uri: the object in question.
    """
    try:
        yield
    except S3Error as error:
        if error.code in _MISSING:
            raise not_found(uri) from error
        if error.code in _REFUSALS:
            raise _bad_credentials(endpoint, error.code) from error
        raise Unavailable(f"The object store at {endpoint} failed: {error.code}: {error.message}") from error
    except InvalidResponseError as error:
        if getattr(error, "_code", 0) == 404:
            raise not_found(uri) from error
        raise Unavailable(f"The object store at {endpoint} gave an answer that is not S3's: {error}") from error
    except ServerError as error:
        raise Unavailable(f"The object store at {endpoint} failed: {error}") from error
    except (MinioException, urllib3.exceptions.HTTPError, OSError) as error:
        if isinstance(error, OSError) and error.filename is not None:  # a local file's error is not the store's
            raise
        raise Unavailable(f"The object store at {endpoint} doesn't answer: {error}") from error


def not_found(uri: str) -> NotFound:
    """The error for a missing object."""
    return NotFound(f"There is no object {uri}.", reason="OBJECT_NOT_FOUND")


def _bad_credentials(endpoint: str, code: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"The object store at {endpoint} refuses our key ({code}); "
        "check MARTLET_S3_ACCESS_KEY and MARTLET_S3_SECRET_KEY.",
        reason="OBJECT_STORE_REFUSES",
    )


def refused(status: int, body: bytes, endpoint: str) -> MartletError:
    """The error for a plain HTTP answer that isn't a success."""
    if status in (401, 403):
        return _bad_credentials(endpoint, f"HTTP {status}")
    if status == 404:
        return NotFound(f"The bucket isn't there: {body[:200]!r}", reason="OBJECT_NOT_FOUND")
    return Unavailable(f"The object store at {endpoint} failed: HTTP {status} {body[:200]!r}")
