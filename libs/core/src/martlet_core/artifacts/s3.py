"""ObjectStore on anything that speaks S3, through the ``minio`` SDK.

The SDK's gaps are filled here and nowhere else: conditional PUT (it has no parameter for it, and silently overwrites
when the header is given as metadata), parallel ranged download, retries of a multipart upload's last step, and
time-outs (its defaults let a dead host hang for half an hour).
"""

from __future__ import annotations

import io
import logging
import os
import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import BinaryIO, TypeVar, cast

import urllib3
from minio import Minio
from minio.error import S3Error

from martlet_core.artifacts.ranges import PIECE_BYTES, RangedFile, await_range
from martlet_core.artifacts.s3_errors import not_found, refused, s3_errors
from martlet_core.backoff import never
from martlet_core.errors import FailedPrecondition, NotFound, Unavailable
from martlet_core.settings import CoreSettings

log = logging.getLogger(__name__)

#: Size of a ranged read, and of a part of a multipart upload.
RANGE_BYTES = 4 * 1024 * 1024
PART_BYTES = 16 * 1024 * 1024
#: How many of them a file has under way at a time.
PARALLEL_RANGES = 8
PARALLEL_PARTS = 4

_ATTEMPTS = 3
_CONNECTIONS = 32

T = TypeVar("T")


class S3ObjectStore:
    """One bucket of an S3 service. Thread-safe; make one a process.

    Args:
        endpoint: URL; its scheme decides about TLS.
        access_key: access key.
        secret_key: its secret.
        bucket: the bucket; ``prepare`` makes it.
        region: region used in signatures.
        public_endpoint: URL under which clients reach the service; written into presigned URLs. Default: ``endpoint``.
    """

    def __init__(
        self,
        endpoint: str,
        access_key: str,
        secret_key: str,
        bucket: str,
        *,
        region: str = "us-east-1",
        public_endpoint: str = "",
    ) -> None:
        self.bucket = bucket
        self.endpoint = endpoint
        self._http = urllib3.PoolManager(
            num_pools=4,
            maxsize=_CONNECTIONS,
            timeout=urllib3.Timeout(connect=5, read=60),
            retries=urllib3.Retry(
                total=_ATTEMPTS, backoff_factor=0.2, status_forcelist=(500, 502, 503, 504), raise_on_status=False
            ),
        )
        self._client = _client(endpoint, access_key, secret_key, region, self._http)
        self._signer = (
            _client(public_endpoint, access_key, secret_key, region, self._http) if public_endpoint else self._client
        )
        self._ranges = ThreadPoolExecutor(2 * PARALLEL_RANGES, thread_name_prefix="s3-range")

    @classmethod
    def from_settings(cls, settings: CoreSettings) -> S3ObjectStore:
        """The store that the settings name; ``prepare`` hasn't run yet."""
        return cls(
            settings.s3_endpoint,
            settings.s3_access_key,
            settings.s3_secret_key,
            settings.s3_bucket,
            region=settings.s3_region,
            public_endpoint=settings.s3_public_endpoint,
        )

    def prepare(self) -> None:
        """Make the bucket if it isn't there, and refuse a store that ignores conditional writes. Called once at start.

        Raises:
            FailedPrecondition: the store refuses our key, or overwrites in spite of ``If-None-Match: *``.
            Unavailable: it doesn't answer.
        """
        with self._errors():
            if not self._client.bucket_exists(self.bucket):
                try:
                    self._client.make_bucket(self.bucket)
                except S3Error as error:  # another service made it at the same moment
                    if error.code not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
                        raise
        self.verify_conditional_put()

    def verify_conditional_put(self) -> None:
        """Prove that ``If-None-Match: *`` is honoured: a second write must be refused and leave the first in place.

        Raises:
            FailedPrecondition: reason ``CONDITIONAL_PUT_IGNORED``. Committing artifacts relies on it: two workers could
                both believe that they finished a job.
        """
        key = f"probes/{secrets.token_hex(8)}"
        try:
            first = self.put_if_absent(key, b"first")
            second = self.put_if_absent(key, b"second")
            kept = self.get(key)
        finally:
            self.delete(key)
        if not first or second or kept != b"first":
            raise FailedPrecondition(
                f"The object store at {self.endpoint} ignores If-None-Match: a second conditional write won. "
                "Use a store that honours it (SeaweedFS 4.48, MinIO, AWS S3, Ceph RGW).",
                reason="CONDITIONAL_PUT_IGNORED",
            )

    def get(self, key: str) -> bytes:
        """The whole object; NotFound if there is none."""
        return self._again(lambda: self._read(key), key)

    def put(self, key: str, data: bytes, *, content_type: str = "application/octet-stream") -> None:
        """Write or overwrite."""
        with self._errors(key):
            self._client.put_object(self.bucket, key, io.BytesIO(data), len(data), content_type=content_type)

    def put_if_absent(self, key: str, data: bytes, *, content_type: str = "application/json") -> bool:
        """Write unless the key exists; False if it did.

        A presigned URL carries the condition as a plain header. When an answer got lost and the repetition is refused,
        the object is compared with ``data``: equal bytes mean that the lost request had won.
        """
        headers = {"If-None-Match": "*", "Content-Type": content_type}
        lost_answer = False
        for attempt in range(_ATTEMPTS):
            last = attempt == _ATTEMPTS - 1
            with self._errors(key):
                url = self._client.presigned_put_object(self.bucket, key, expires=timedelta(minutes=5))
                try:
                    response = self._http.urlopen("PUT", url, body=data, headers=headers, retries=False)
                except urllib3.exceptions.HTTPError:
                    if last:
                        raise
                    lost_answer = True
                    continue
            if response.status in (200, 201, 204):
                return True
            if response.status == 412:
                return lost_answer and self.get(key) == data
            if response.status == 409 or response.status >= 500:  # 409: a concurrent conditional write, to be repeated
                lost_answer = lost_answer or response.status >= 500
                if not last:
                    continue
            raise refused(response.status, response.data, self.endpoint)
        raise AssertionError("unreachable")

    def upload(self, key: str, path: Path) -> None:
        """Write a file, in parallel parts when it is large. Whole or not at all: readers never see a part of it."""
        size = path.stat().st_size
        for attempt in range(_ATTEMPTS):
            try:
                with self._errors(key):
                    self._client.fput_object(
                        self.bucket, key, str(path), part_size=PART_BYTES, num_parallel_uploads=PARALLEL_PARTS
                    )
                return
            except Unavailable:
                # The answer to the step that completes a multipart upload may be lost; it isn't repeated by the SDK.
                if attempt == _ATTEMPTS - 1 and self.size(key) != size:
                    raise
                if self.size(key) == size:
                    return

    def download(self, key: str, path: Path, size_bytes: int, *, give_up: Callable[[], bool] = never) -> str:
        """Read into a file, in parallel ranges when it is large; atomic (temporary file beside it, then rename).

        Returns:
            The sha256 of what was written, in hex; taken on the way, so that nobody has to read the file again.

        Raises:
            NotFound: no such key.
            FailedPrecondition: reason ``CONTENT_MISMATCH``: the object is shorter than ``size_bytes``.
            GaveUp: ``give_up()`` became true. It is looked at between ranges and while one doesn't come.
        """
        temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
        try:
            with temporary.open("x+b", buffering=0) as file:
                target = RangedFile(file)
                try:
                    self._fill(target, key, size_bytes, give_up)
                finally:
                    digest = target.finish()
            os.replace(temporary, path)
            return digest
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def open(self, key: str) -> BinaryIO:
        """Read as a stream; the caller closes it."""
        with self._errors(key):
            response = self._client.get_object(self.bucket, key)
        return cast(BinaryIO, _Stream(response, self._errors))

    def size(self, key: str) -> int | None:
        """Size in bytes; None if there is no such key."""
        try:
            with self._errors(key):
                return self._client.stat_object(self.bucket, key).size
        except NotFound:
            return None

    def delete(self, key: str) -> None:
        """Delete; no error if there is none."""
        with self._errors(key), suppress(NotFound):
            self._client.remove_object(self.bucket, key)

    def list(self, prefix: str, *, after: str = "", limit: int = 1000) -> Sequence[str]:
        """Keys with a prefix in order, behind ``after``."""
        with self._errors(prefix):
            found = self._client.list_objects(self.bucket, prefix=prefix, recursive=True, start_after=after or None)
            return [cast(str, item.object_name) for item in islice(found, limit)]

    def presign_get(self, key: str, expires_seconds: int) -> str:
        """URL for GETs."""
        return self._signer.presigned_get_object(self.bucket, key, expires=timedelta(seconds=expires_seconds))

    def presign_put(self, key: str, expires_seconds: int) -> str:
        """URL for PUTs."""
        return self._signer.presigned_put_object(self.bucket, key, expires=timedelta(seconds=expires_seconds))

    def uri(self, key: str) -> str:
        """``s3://bucket/key``."""
        return f"s3://{self.bucket}/{key}"

    def abort_stale_uploads(self, older_than_seconds: float = 86_400.0) -> int:
        """Abort multipart uploads that killed processes left: they take space, unseen. Returns how many."""
        limit = datetime.now(UTC) - timedelta(seconds=older_than_seconds)
        aborted = 0
        with self._errors():
            # Not in the SDK's public interface; tested against a real server.
            uploads = self._client._list_multipart_uploads(self.bucket).uploads
            for upload in uploads:
                started = upload.initiated_time
                if started is not None and started <= limit:
                    self._client._abort_multipart_upload(
                        self.bucket, cast(str, upload.object_name), cast(str, upload.upload_id)
                    )
                    aborted += 1
        return aborted

    def close(self) -> None:
        """Close connections and threads."""
        self._ranges.shutdown(wait=False, cancel_futures=True)
        self._http.clear()

    def _fill(self, target: RangedFile, key: str, size: int, give_up: Callable[[], bool]) -> None:
        """Write the object's first ``size`` bytes to a file.

        Ranges arrive in parallel and are written as they come, in small pieces, while this thread hashes behind them from
        the page cache: buffers of whole ranges cost more in page faults than the transfer itself on a virtual machine.
        """
        if size == 0 and self.size(key) is None:
            raise not_found(self.uri(key))
        offsets = range(0, size, RANGE_BYTES)
        waiting = iter(offsets)
        running: deque[Future[None]] = deque()

        def fetch(offset: int) -> None:
            length = min(RANGE_BYTES, size - offset)
            if self._again(lambda: self._receive(target, key, offset, length), key) != length:
                raise FailedPrecondition(
                    f"{self.uri(key)} has fewer than {size} bytes; it is damaged.", reason="CONTENT_MISMATCH"
                )

        try:
            running.extend(self._ranges.submit(fetch, offset) for offset in islice(waiting, PARALLEL_RANGES))
            for offset in offsets:
                await_range(running.popleft(), give_up, f"downloading {key}")
                running.extend(self._ranges.submit(fetch, offset) for offset in islice(waiting, 1))
                target.hash(offset, min(RANGE_BYTES, size - offset))
        finally:
            for future in running:  # those that are under way find the file finished, and end
                future.cancel()

    def _read(self, key: str) -> bytes:
        response = self._client.get_object(self.bucket, key)
        try:
            return response.read()
        finally:
            response.close()
            response.release_conn()

    def _receive(self, target: RangedFile, key: str, offset: int, length: int) -> int:
        """Write a range of the object to its place; returns how many bytes there were."""
        response = self._client.get_object(self.bucket, key, offset=offset, length=length)
        try:
            received = 0
            while piece := response.read(PIECE_BYTES):
                target.write(piece, offset + received)
                received += len(piece)
            return received
        finally:
            response.close()
            response.release_conn()

    def _again(self, read: Callable[[], T], key: str) -> T:
        """Run a read; repeat it when its body broke off (the SDK's own retries end with the headers)."""
        for attempt in range(_ATTEMPTS):
            try:
                with self._errors(key):
                    return read()
            except Unavailable:
                if attempt == _ATTEMPTS - 1:
                    raise
                time.sleep(0.2 * 2**attempt)
        raise AssertionError("unreachable")

    def _errors(self, key: str = "") -> AbstractContextManager[None]:
        return s3_errors(self.endpoint, self.uri(key))


class _Stream(io.RawIOBase):
    """A response body as a file object with our errors."""

    def __init__(self, response: urllib3.BaseHTTPResponse, errors: Callable[[], object]) -> None:
        self._response = response
        self._errors = errors

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        with self._errors():  # type: ignore[attr-defined]
            return self._response.read(None if size is None or size < 0 else size)

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._response.close()
            self._response.release_conn()
        super().close()


def _client(endpoint: str, access_key: str, secret_key: str, region: str, http: urllib3.PoolManager) -> Minio:
    scheme, _, host = endpoint.rstrip("/").rpartition("://")
    if scheme not in ("http", "https") or not host or "/" in host:
        raise FailedPrecondition(f"MARTLET_S3_ENDPOINT must be http(s)://host[:port]; it is {endpoint!r}.")
    return Minio(host, access_key, secret_key, secure=scheme == "https", region=region, http_client=http)
