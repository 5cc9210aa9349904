"""Logs that can be joined: one JSON object a line on stderr, with the request id and job id of whatever is running."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from martlet_core.errors import InvalidArgument
from martlet_core.rpc.context import call_context

_job_id: ContextVar[str] = ContextVar("martlet_job_id", default="")

_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
_FORMATS = ("json", "text")
_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


def configure(service: str, level: str = "INFO", format: str = "json") -> None:
    """Send all logs of this process to stderr; replaces handlers set before. Called once, in ``__main__``.

    Args:
        service: name written into each line.
        level: DEBUG, INFO, WARNING or ERROR.
        format: ``json``, or ``text`` for people.

    Raises:
        InvalidArgument: an unknown level or format.
    """
    if level.upper() not in _LEVELS:
        raise InvalidArgument.field("log_level", f"{level!r} is none of {', '.join(_LEVELS)}.")
    if format not in _FORMATS:
        raise InvalidArgument.field("log_format", f"{format!r} is none of {', '.join(_FORMATS)}.")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(service) if format == "json" else TextFormatter(service))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


@contextmanager
def job_context(job_id: str) -> Iterator[None]:
    """Log lines written inside carry ``job_id``."""
    token = _job_id.set(job_id)
    try:
        yield
    finally:
        _job_id.reset(token)


class JsonFormatter(logging.Formatter):
    """One JSON object a line; values given as ``extra`` become fields of their own."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": _timestamp(record),
            "level": record.levelname,
            "service": self._service,
            "logger": record.name,
            "message": record.getMessage(),
            **_ids(),
            **_extras(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class TextFormatter(logging.Formatter):
    """A line for people, the ``extra`` values as ``name=value`` at its end."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        values = "".join(f" {key}={value}" for key, value in {**_ids(), **_extras(record)}.items())
        line = f"{_timestamp(record)} {record.levelname:7} {self._service} {record.name}: {record.getMessage()}{values}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _ids() -> dict[str, str]:
    ids = {"request_id": call_context().request_id, "job_id": _job_id.get()}
    return {key: value for key, value in ids.items() if value}


def _extras(record: logging.LogRecord) -> dict[str, object]:
    return {key: value for key, value in record.__dict__.items() if key not in _STANDARD}


def _timestamp(record: logging.LogRecord) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03}Z"
