"""Jobs in the object store: the spec before a job is queued, the final record and the events after it ended.

jobs/<id>/spec.json      the job as it was created
jobs/<id>/events.jsonl   its events, one a line
jobs/<id>/final.json     its final record; written last, so whoever has it has all
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace

from martlet_core.artifacts.types import Artifact, ArtifactStore, ObjectStore
from martlet_core.errors import NotFound, Unavailable
from martlet_core.job_rules import page_of_events, restored_event
from martlet_core.jobs import Job, JobEvent, JobState, JobStore
from martlet_core.wishes import Wish, read_wishes

logger = logging.getLogger(__name__)

_PAGE = 1000
_PROBE = "probe"
_PROBE_SECONDS = 0.01
_FOR_EVER_SECONDS = 100 * 365 * 24 * 3600.0


def spec_key(job_id: str) -> str:
    """Key of a job as it was created."""
    return f"jobs/{job_id}/spec.json"


def final_key(job_id: str) -> str:
    """Key of a job's final record."""
    return f"jobs/{job_id}/final.json"


def events_key(job_id: str) -> str:
    """Key of a finished job's events."""
    return f"jobs/{job_id}/events.jsonl"


def job_to_json(job: Job) -> bytes:
    """A job as it is kept in the object store."""
    return json.dumps({**asdict(job), "state": job.state.value}, separators=(",", ":")).encode()


def job_from_json(data: bytes) -> Job:
    """The inverse of ``job_to_json``; fields that this version doesn't know are left out."""
    values = json.loads(data)
    known = {name: value for name, value in values.items() if name in Job.__dataclass_fields__}
    return Job(**{**known, "state": JobState(known["state"])})


def store_spec(objects: ObjectStore, job: Job) -> None:
    """Keep a job as it was created."""
    objects.put(spec_key(job.id), job_to_json(job), content_type="application/json")


def archive_job(jobs: JobStore, objects: ObjectStore, job: Job) -> None:
    """Keep a final job's events and record."""
    lines = [json.dumps(asdict(event), separators=(",", ":")) for event in _all_events(jobs, job.id)]
    objects.put(events_key(job.id), "".join(line + "\n" for line in lines).encode(), content_type="application/jsonl")
    objects.put(final_key(job.id), job_to_json(job), content_type="application/json")


def restore_jobs(jobs: JobStore, objects: ObjectStore, artifacts: ArtifactStore, stage: str) -> int:
    """Put a stage's jobs back into an emptied job store; returns how many.

    Final jobs come back as they ended. The others are queued again with the checkpoints that their artifacts show, in
    an attempt that no artifact bears yet, so that they go on where they were; one whose pause was asked for is paused,
    and one whose cancel was asked for is cancelled.
    """
    restored = 0
    checkpoints = _Checkpoints(artifacts)
    wishes = read_wishes(objects, stage)
    for job_id in _job_ids(objects):
        job = _read_job(objects, job_id)
        if job is None or job.stage != stage:
            continue
        if job.state.is_final:
            restored += jobs.restore(job)
        else:
            restored += _restore_unfinished(jobs, job, checkpoints.of(job), wishes.get(job_id))
    return restored


def _restore_unfinished(jobs: JobStore, job: Job, checkpoints: Sequence[Artifact], wish: Wish | None) -> bool:
    # Never queued while there is a wish: a worker would have it before the wish is heard.
    state = JobState.PAUSED if wish else JobState.QUEUED
    restored = jobs.restore(_at_rest(job, checkpoints, state))
    if restored:
        said = restored_event(state, "PAUSE_REQUESTED" if wish is Wish.PAUSE else "RESTORED")
        jobs.append_event(job.id, JobEvent("state", said.message, said.level, data=said.data))
    if wish is Wish.CANCEL and not jobs.get(job.id).state.is_final:  # also if an earlier restoration got only thus far
        jobs.request_cancel(job.id)
    return restored


def is_whole(jobs: JobStore, stage: str) -> bool:
    """Whether the job store has all jobs of a stage: it kept them, or all are back after it lost them.

    A named lease that never ends is the mark; one that can be taken was lost with the rest, or never set.
    """
    return not jobs.acquire_lease(_mark(stage), _PROBE, _PROBE_SECONDS)


def mark_whole(jobs: JobStore, stage: str) -> None:
    """Say that all jobs of a stage are there."""
    jobs.release_lease(_mark(stage), _PROBE)
    jobs.acquire_lease(_mark(stage), "restored", _FOR_EVER_SECONDS)


def specs_in_use(jobs: JobStore, stages: Sequence[str]) -> str:
    """The specs of all jobs that aren't over, in one text: an artifact whose id isn't in it is needed by none of them.

    Raises:
        Unavailable: the job store is being rebuilt, so it can't be said.
    """
    states = [state for state in JobState if not state.is_final]
    specs: list[str] = []
    for stage in stages:
        if not is_whole(jobs, stage):
            raise Unavailable(f"The {stage} jobs are being restored; nobody can say yet what they need.")
        token = ""
        while True:
            page = jobs.list(stage=stage, states=states, page_size=_PAGE, page_token=token)
            specs += [json.dumps(job.spec) for job in page.jobs]
            token = page.next_page_token
            if not token:
                break
    return "\n".join(specs)


class EventLog:
    """Pages of a job's events, from the job store or, when they have expired there, from the archive."""

    def __init__(self, jobs: JobStore, objects: ObjectStore) -> None:
        self._jobs = jobs
        self._objects = objects

    def page(self, job: Job, after: str, limit: int, *, newest_first: bool = False) -> Sequence[JobEvent]:
        """Up to ``limit`` events behind the cursor ``after``, oldest first; or before it, newest first."""
        events = self._jobs.events(job.id, after=after, limit=limit, newest_first=newest_first)
        if events or not job.state.is_final:
            return events
        archived = self._archived(job.id)
        return page_of_events(archived, after, limit, newest_first=newest_first)

    def _archived(self, job_id: str) -> list[JobEvent]:
        try:
            data = self._objects.get(events_key(job_id))
        except NotFound:
            return []
        return [JobEvent(**json.loads(line)) for line in data.splitlines()]


def _mark(stage: str) -> str:
    return f"restored:{stage}"


def _all_events(jobs: JobStore, job_id: str) -> Iterator[JobEvent]:
    cursor = ""
    while True:
        events = jobs.events(job_id, after=cursor, limit=_PAGE)
        yield from events
        if len(events) < _PAGE:
            return
        cursor = events[-1].cursor


def _job_ids(objects: ObjectStore) -> list[str]:
    """Ids of all jobs that have a spec, oldest first."""
    ids: dict[str, None] = {}
    last = ""
    while keys := objects.list("jobs/", after=last, limit=_PAGE):
        ids.update((key.split("/")[1], None) for key in keys)
        last = keys[-1]
    return list(ids)


def _read_job(objects: ObjectStore, job_id: str) -> Job | None:
    for key in (final_key(job_id), spec_key(job_id)):
        try:
            return job_from_json(objects.get(key))
        except NotFound:
            continue
    return None  # events without a spec: nothing to go by


class _Checkpoints:
    """Checkpoint artifacts by job; each tenant's are listed once."""

    def __init__(self, artifacts: ArtifactStore) -> None:
        self._artifacts = artifacts
        self._by_tenant: dict[str, dict[str, list[Artifact]]] = {}

    def of(self, job: Job) -> list[Artifact]:
        """The checkpoints of a job, by step."""
        if job.tenant not in self._by_tenant:
            self._by_tenant[job.tenant] = self._list(job.tenant)
        found = self._by_tenant[job.tenant].get(job.id, [])
        return sorted(found, key=lambda artifact: (artifact.metadata["step"], artifact.create_time))

    def _list(self, tenant: str) -> dict[str, list[Artifact]]:
        by_job: dict[str, list[Artifact]] = {}
        token = ""
        while True:
            page = self._artifacts.list(tenant=tenant, kind="checkpoint", page_size=_PAGE, page_token=token)
            for artifact in page.artifacts:
                if artifact.source_job:
                    by_job.setdefault(artifact.source_job, []).append(artifact)
            token = page.next_page_token
            if not token:
                return by_job


def _at_rest(job: Job, checkpoints: Sequence[Artifact], state: JobState) -> Job:
    entries = [
        {
            "artifact_id": artifact.id,
            "step": artifact.metadata["step"],
            "create_time": artifact.create_time,
            "metrics": artifact.metadata.get("metrics", {}),
            "is_best": artifact.metadata.get("is_best", False),
        }
        for artifact in checkpoints
    ]
    # One more than any artifact shows: an attempt may have been lost before its first checkpoint.
    attempt = max([job.attempt, *(artifact.metadata["attempt"] for artifact in checkpoints)]) + 1
    return replace(
        job,
        state=state,
        attempt=attempt,
        lost_attempts=0,
        lease_owner="",
        lease_until=0.0,
        checkpoints=entries,
    )
