"""Jobs and events as flat text fields, the way Redis hashes and streams hold them.

Numbers and plain strings are fields of their own, times are whole microseconds, and what the store never looks into is
JSON. Labels and results take one field each (``label.<key>``, ``result.<key>``), so that a script can compare or merge
them without parsing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from martlet_core.job_rules import fingerprint, to_json
from martlet_core.jobs import Job, JobEvent, JobState

LABEL = "label."
RESULT = "result."
_TEXTS = ("id", "stage", "kind", "tenant", "queue", "display_name", "request_id", "lease_owner", "queued_reason")
_NUMBERS = ("priority", "attempt", "max_attempts", "lost_attempts")
_TIMES = ("lease_until", "create_time", "start_time", "end_time", "update_time")
_STORE_SETS = frozenset({"create_time", "update_time"})  # of a new job


def to_micros(seconds: float) -> int:
    """Seconds as whole microseconds."""
    return round(seconds * 1_000_000)


def from_micros(micros: str | int) -> float:
    """Whole microseconds as seconds."""
    return int(micros) / 1_000_000


def job_to_fields(job: Job, *, new: bool) -> list[str]:
    """Names and values in turn. For a ``new`` job without the fields that the store sets by its clock."""
    fields: dict[str, str] = {name: getattr(job, name) for name in _TEXTS}
    fields |= {name: str(getattr(job, name)) for name in _NUMBERS}
    fields |= {name: str(to_micros(getattr(job, name))) for name in _TIMES if not (new and name in _STORE_SETS)}
    fields |= {
        "state": job.state.value,
        "spec": to_json("spec", job.spec),
        "progress": to_json("progress", job.progress),
        "checkpoints": to_json("checkpoints", job.checkpoints),
        "error": error_to_text(job.error),
        "fingerprint": fingerprint(job),
    }
    fields |= {LABEL + name: value for name, value in job.labels.items()}
    return [text for pair in fields.items() for text in pair] + result_to_fields(job.result)


def result_to_fields(result: Mapping[str, Any] | None) -> list[str]:
    """Names and values in turn; empty for None."""
    return [
        text for name, value in (result or {}).items() for text in (RESULT + name, to_json(f"result.{name}", value))
    ]


def error_to_text(error: Mapping[str, Any] | None) -> str:
    """JSON, or nothing."""
    return to_json("error", error) if error else ""


def job_from_fields(fields: Sequence[str]) -> Job:
    """The job that names and values in turn describe."""
    return job_from_mapping(_pairs(fields))


def job_from_mapping(fields: Mapping[str, str]) -> Job:
    """The job that a hash's fields describe."""
    # Records of earlier versions lack the newest texts.
    values: dict[str, Any] = {name: fields.get(name, "") for name in _TEXTS}
    values |= {name: int(fields[name]) for name in _NUMBERS}
    values |= {name: from_micros(fields[name]) for name in _TIMES}
    return Job(
        **values,
        state=JobState(fields["state"]),
        spec=json.loads(fields["spec"]),
        progress=json.loads(fields["progress"]),
        checkpoints=json.loads(fields["checkpoints"]),
        error=json.loads(fields["error"]) if fields["error"] else None,
        labels=_with_prefix(fields, LABEL),
        result={name: json.loads(text) for name, text in _with_prefix(fields, RESULT).items()},
    )


def stored_event(event: JobEvent, *, cursor: str, create_time: float) -> JobEvent:
    """``event`` with its place and time."""
    return replace(event, cursor=cursor, create_time=create_time)


def event_from_fields(cursor: str, fields: Sequence[str]) -> JobEvent:
    """The event at ``cursor`` whose names and values come in turn."""
    return event_from_mapping(cursor, _pairs(fields))


def event_from_mapping(cursor: str, fields: Mapping[str, str]) -> JobEvent:
    """The event at ``cursor`` of a stream."""
    return JobEvent(
        type=fields["type"],
        message=fields["message"],
        level=fields["level"],
        attempt=int(fields["attempt"]),
        data=json.loads(fields["data"]),
        cursor=cursor,
        create_time=from_micros(fields["time"]),
    )


def _pairs(fields: Iterable[str]) -> dict[str, str]:
    turns = iter(fields)
    return dict(zip(turns, turns, strict=True))


def _with_prefix(fields: Mapping[str, str], prefix: str) -> dict[str, str]:
    return {name[len(prefix) :]: text for name, text in fields.items() if name.startswith(prefix)}
