"""A kind of job as a resource of its stage's contract: its name, its spec as plain values, the message that shows it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from martlet_core.errors import InvalidArgument
from martlet_core.ids import ID_PATTERN
from martlet_core.job_proto import common_fields
from martlet_core.jobs import Job

M = TypeVar("M", bound=Message)


@dataclass(frozen=True)
class JobResource(Generic[M]):
    """A kind of job in the contract.

    Attributes:
        kind: ``Job.kind``.
        collection: first part of its resource names (``trainingJobs``).
        message: the resource's message, with the fields that all jobs have (``common_fields``), ``spec`` and ``result``.
    """

    kind: str
    collection: str
    message: type[M]

    def name(self, job_id: str) -> str:
        """The resource name of a job."""
        return f"{self.collection}/{job_id}"

    def job_id(self, name: str) -> str:
        """The id in a resource name. InvalidArgument if it is no name of this kind of job."""
        found = re.fullmatch(f"{self.collection}/({ID_PATTERN.pattern})", name)
        if found is None:
            raise InvalidArgument.field("name", f"is {name!r}; write {self.collection}/<id>")
        return found.group(1)

    def to_proto(self, job: Job, queue_position: int = 0) -> M:
        """The job as the contract shows it."""
        message: Any = self.message(name=self.name(job.id), **common_fields(job, queue_position))
        ParseDict(dict(job.spec), message.spec, ignore_unknown_fields=True)
        if job.result:
            ParseDict(dict(job.result), message.result, ignore_unknown_fields=True)
        return message


def spec_to_dict(spec: Message) -> dict[str, Any]:
    """A spec as it is kept in the job's record: what was asked for, fields by their names in the contract.

    Raises:
        InvalidArgument: it holds fields that the contract doesn't know, or of another type than it says; protobuf would
            ignore both in silence.
    """
    _refuse_unknown_fields(spec, "spec")
    return MessageToDict(spec, preserving_proto_field_name=True)


def _refuse_unknown_fields(message: Message, path: str) -> None:
    numbers = sorted({field.field_number for field in UnknownFieldSet(message)})
    if numbers:
        names: Mapping[int, Any] = message.DESCRIPTOR.fields_by_number
        said = [
            f"{names[n].name} (field {n}) is of another type" if n in names else f"field {n} isn't known"
            for n in numbers
        ]
        raise InvalidArgument.field(path, f"{', '.join(said)}; see {message.DESCRIPTOR.full_name} in the contract")
    for field, value in message.ListFields():
        if isinstance(value, Message):
            _refuse_unknown_fields(value, f"{path}.{field.name}")
