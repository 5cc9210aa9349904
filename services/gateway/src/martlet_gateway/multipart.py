"""multipart/form-data, streamed: the one file part goes to disk as it comes, within a limit; small fields stay in
memory.
"""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from martlet_core.errors import Cancelled, InvalidArgument
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from martlet_gateway.asgi import declared_length
from martlet_gateway.errors import too_large

_FIELD_LIMIT = 64 * 1024
_FIELD_COUNT = 64
_FORM_OVERHEAD = 1024 * 1024
_WRITE_SIZE = 1024 * 1024


@dataclass(slots=True)
class FormFile:
    """The file part of a form, on disk until the form is closed."""

    path: Path
    filename: str
    size_bytes: int
    sha256: str


@dataclass(slots=True)
class Form:
    """A form: fields by name as text, and the file part if there was one."""

    fields: dict[str, str] = field(default_factory=dict)
    file: FormFile | None = None


class _Parts:
    """Callbacks of the parser: sorts the bytes of each part into fields or the buffer of the file."""

    def __init__(self, file_field: str) -> None:
        self.fields: dict[str, bytearray] = {}
        self.filename: str | None = None
        self.buffer = bytearray()
        self.ended = False
        self._file_field = file_field
        self._header_name = bytearray()
        self._header_value = bytearray()
        self._headers: dict[bytes, bytes] = {}
        self._target: bytearray | None = None

    def callbacks(self) -> dict[str, object]:
        return {
            "on_part_begin": self._part_begin,
            "on_part_data": self._part_data,
            "on_header_field": lambda data, start, end: self._header_name.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._header_value.extend(data[start:end]),
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_end": self._end,
        }

    def _part_begin(self) -> None:
        self._headers.clear()

    def _header_end(self) -> None:
        self._headers[bytes(self._header_name).lower()] = bytes(self._header_value)
        self._header_name.clear()
        self._header_value.clear()

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if b"filename" in options:
            if name != self._file_field:
                raise InvalidArgument.field(
                    name, f"is not a file parameter of this call; the file goes into `{self._file_field}`."
                )
            if self.filename is not None:
                raise InvalidArgument.field(name, "was sent twice; send one file a request.")
            self.filename = options[b"filename"].decode("utf-8", "replace")
            self._target = self.buffer
            return
        if name in self.fields or len(self.fields) >= _FIELD_COUNT:
            raise InvalidArgument.field(name, f"was sent twice, or the form has more than {_FIELD_COUNT} fields.")
        self._target = self.fields.setdefault(name, bytearray())

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        target = self._target
        assert target is not None
        target += data[start:end]
        if target is not self.buffer and len(target) > _FIELD_LIMIT:
            raise InvalidArgument(f"A form field is longer than {_FIELD_LIMIT} bytes.")

    def _end(self) -> None:
        self.ended = True


@asynccontextmanager
async def read_form(
    request: Request, directory: Path, *, file_field: str, limit_bytes: int, remedy: str
) -> AsyncIterator[Form]:
    """Read a multipart form; the file part lies in a temporary file under ``directory`` while the block runs.

    Args:
        request: the request.
        directory: made if it isn't there.
        file_field: the name of the file part.
        limit_bytes: largest file; a declared length that can't fit is refused before anything is read.
        remedy: what to do about a file that is too large.

    Raises:
        ResourceExhausted: the file is larger than ``limit_bytes`` (413).
        InvalidArgument: not a well-formed form.
    """
    length = declared_length(request.scope)
    if length is not None and length > limit_bytes + _FORM_OVERHEAD:
        raise too_large("The file", limit_bytes, remedy, param="file")
    content_type, options = parse_options_header(request.headers.get("content-type", ""))
    if content_type != b"multipart/form-data" or b"boundary" not in options:
        raise InvalidArgument("Send the file as multipart/form-data.", reason="INVALID_CONTENT_TYPE")
    await asyncio.to_thread(directory.mkdir, parents=True, exist_ok=True)
    stream = await asyncio.to_thread(tempfile.NamedTemporaryFile, dir=directory, prefix="body-")
    try:
        parts = _Parts(file_field)
        parser = MultipartParser(options[b"boundary"], parts.callbacks())  # type: ignore[arg-type]
        size, sha256 = await _read_into(request, parser, parts, stream.file, limit_bytes, remedy)
        form = Form({name: bytes(value).decode("utf-8", "replace") for name, value in parts.fields.items()})
        if parts.filename is not None:
            form.file = FormFile(Path(stream.name), parts.filename, size, sha256)
        yield form
    finally:
        await asyncio.to_thread(stream.close)


async def _read_into(
    request: Request, parser: MultipartParser, parts: _Parts, stream: IO[bytes], limit_bytes: int, remedy: str
) -> tuple[int, str]:
    size, total = 0, hashlib.sha256()

    def flush(data: bytes) -> None:
        stream.write(data)
        total.update(data)

    try:
        async for chunk in request.stream():
            parser.write(chunk)
            if size + len(parts.buffer) > limit_bytes:
                raise too_large("The file", limit_bytes, remedy, param="file")
            if len(parts.buffer) >= _WRITE_SIZE:
                data = bytes(parts.buffer)
                parts.buffer.clear()
                size += len(data)
                await asyncio.to_thread(flush, data)
    except FormParserError as error:
        raise InvalidArgument(f"The body is not a well-formed form: {error}.", reason="INVALID_FORM") from error
    except ClientDisconnect as error:
        raise Cancelled("The client went away before its upload ended.") from error
    if not parts.ended:
        raise InvalidArgument(
            "The form ends before its closing boundary: the upload was cut off.", reason="INVALID_FORM"
        )
    size += len(parts.buffer)
    await asyncio.to_thread(flush, bytes(parts.buffer))
    await asyncio.to_thread(stream.flush)
    return size, total.hexdigest()
