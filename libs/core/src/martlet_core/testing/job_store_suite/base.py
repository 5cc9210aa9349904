"""What the cases share: fixtures to fill in, and jobs in any state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from martlet_core.ids import new_id
from martlet_core.jobs import Claim, Job, JobState, JobStore

LONG_LEASE = 60.0
SHORT_LEASE = 0.05

PassTime = Callable[[float], None]


class StoreCases:
    """Base of the cases: a subclass of the suite gives the fixtures."""

    @pytest.fixture
    def store(self) -> JobStore:
        """An empty store."""
        raise NotImplementedError("the suite's subclass gives the fixture `store`")

    @pytest.fixture
    def pass_time(self) -> PassTime:
        """A function that returns when so many seconds have passed on the store's clock."""
        raise NotImplementedError("the suite's subclass gives the fixture `pass_time`")


def new_job(**changes: Any) -> Job:
    """A job to create, with a fresh id."""
    values: dict[str, Any] = {
        "id": new_id(),
        "stage": "trainer",
        "kind": "training",
        "tenant": "acme",
        "spec": {"base_model": "tiny", "hyperparameters": {"learning_rate": 1e-4}, "files": []},
        "queue": "trainer",
    }
    return Job(**{**values, **changes})


def create(store: JobStore, **changes: Any) -> Job:
    """A job that was just created."""
    job, created = store.create(new_job(**changes))
    assert created
    return job


def claim(store: JobStore, job: Job, *, owner: str = "worker-1", lease_seconds: float = LONG_LEASE) -> Claim:
    """The claim of a job that can be claimed."""
    claimed = store.claim(job.id, owner, lease_seconds)
    assert claimed is not None
    return claimed


def job_in(store: JobStore, state: JobState, *, lease_seconds: float = LONG_LEASE) -> tuple[Job, int]:
    """A job in that state, and the token of its attempt (0 when there was none)."""
    if state is JobState.VALIDATING:
        return create(store, state=JobState.VALIDATING), 0
    job = create(store)
    if state is JobState.QUEUED:
        return job, 0
    if state is JobState.PAUSED:
        return store.request_pause(job.id), 0
    token = claim(store, job, lease_seconds=lease_seconds).token
    if state is JobState.PAUSING:
        store.request_pause(job.id)
    elif state is JobState.CANCELLING:
        store.request_cancel(job.id)
    elif state is not JobState.RUNNING:
        store.finish(job.id, token, state, error={"message": "out of memory"} if state is JobState.FAILED else None)
    job = store.get(job.id)
    assert job.state is state
    return job, token
