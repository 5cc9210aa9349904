"""How far a tracker has been told of a training, kept in the object store: ``tracking/<job id>/<kind>.json``.

It is written after the tool took something, so a crash in between says the same again, and never loses it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

from martlet_core.artifacts.types import ObjectStore
from martlet_core.errors import NotFound
from martlet_core.jobs import JobEvent

from martlet_trainer.tracking.run import Point


@dataclass(frozen=True)
class Record:
    """How far it came.

    Attributes:
        cursor: of the last event that was looked at.
        points: how many the tool was told.
        steps: the last step told of each metric, by name.
        tool_run: the tool's own id of the run; empty before it was opened.
        done: nothing more is to be told.
    """

    cursor: str = ""
    points: int = 0
    steps: Mapping[str, int] = field(default_factory=dict)
    tool_run: str = ""
    done: bool = False

    @property
    def said_until(self) -> int:
        """The last step told; 0: none."""
        return max(self.steps.values(), default=0)

    def take(self, events: Sequence[JobEvent]) -> tuple[Record, list[Point]]:
        """The record behind some more events, and the points in them.

        A metric of a step that was told already is left out: an attempt that goes on from a checkpoint trains some steps
        again, and by exact resume finds the same numbers.
        """
        points: list[Point] = []
        steps = dict(self.steps)
        for event in events:
            if event.type != "metrics":
                continue
            step = int(event.data["step"])
            values = {name: value for name, value in event.data["values"].items() if step > steps.get(name, 0)}
            if values:
                points.append(Point(self.points + len(points) + 1, step, event.create_time, values))
                steps |= dict.fromkeys(values, step)
        cursor = events[-1].cursor if events else self.cursor
        return replace(self, cursor=cursor, points=self.points + len(points), steps=steps), points


def load_record(objects: ObjectStore, job_id: str, kind: str) -> Record:
    """The record as it was stored last; an empty one where nothing was told yet."""
    try:
        return Record(**json.loads(objects.get(_key(job_id, kind))))
    except NotFound:
        return Record()


def store_record(objects: ObjectStore, job_id: str, kind: str, record: Record) -> None:
    """Keep a record."""
    objects.put(_key(job_id, kind), json.dumps(asdict(record)).encode(), content_type="application/json")


def _key(job_id: str, kind: str) -> str:
    return f"tracking/{job_id}/{kind}.json"
