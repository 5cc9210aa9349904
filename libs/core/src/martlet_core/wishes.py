"""What users asked of jobs that aren't over, kept in the object store beside the job store that owns the truth: so a job
store that lost everything is rebuilt with it.

    wishes/<stage>/<job id>.<pause|cancel>    an empty object; its key says all

The job service writes and deletes them as it goes, without insisting; the reconciler makes them agree with the jobs.
"""

from __future__ import annotations

from enum import Enum

from martlet_core.artifacts.collector import every_key
from martlet_core.artifacts.types import ObjectStore
from martlet_core.jobs import JobState


class Wish(str, Enum):
    """What was asked for."""

    PAUSE = "pause"
    CANCEL = "cancel"


#: The wish that a job's state shows; none in the other states.
WISH_OF_STATE = {
    JobState.PAUSING: Wish.PAUSE,
    JobState.PAUSED: Wish.PAUSE,
    JobState.CANCELLING: Wish.CANCEL,
}


def keep_wish(objects: ObjectStore, stage: str, job_id: str, wish: Wish) -> None:
    """Store a wish."""
    objects.put(_key(stage, job_id, wish), b"")


def forget_wishes(objects: ObjectStore, stage: str, job_id: str) -> None:
    """Delete the wishes about a job; no error if there are none."""
    for wish in Wish:
        objects.delete(_key(stage, job_id, wish))


def read_wishes(objects: ObjectStore, stage: str) -> dict[str, Wish]:
    """The wishes about a stage's jobs by job; a cancel wins over a pause."""
    wishes: dict[str, Wish] = {}
    for key in every_key(objects, f"wishes/{stage}/"):
        job_id, _, text = key.rsplit("/", 1)[1].partition(".")
        if wishes.get(job_id) is not Wish.CANCEL:
            wishes[job_id] = Wish(text)
    return wishes


def _key(stage: str, job_id: str, wish: Wish) -> str:
    return f"wishes/{stage}/{job_id}.{wish.value}"
