"""Models that a job publishes while it runs: they are there for it, and gone however it ends."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from martlet_core.artifacts.store import ContentAddressedStore
from martlet_core.child_protocol import answer_file
from martlet_core.errors import FailedPrecondition, Unavailable
from martlet_core.ids import new_id
from martlet_core.job_archive import store_spec
from martlet_core.jobs import Claim, Job, JobState
from martlet_core.models import ObjectModelRegistry
from martlet_core.reconciler import Reconciler
from martlet_core.stores import Stores
from martlet_core.temporary_models import KEPT, TemporaryModels
from martlet_core.testing.bell import MemoryBell
from martlet_core.testing.job_store import MemoryJobStore
from martlet_core.testing.object_store import MemoryObjectStore
from martlet_core.testing.toy_stage import KIND, QUEUE, STAGE, ToyHandler
from martlet_core.worker import Worker, WorkerOptions


class Objects(MemoryObjectStore):
    """Remembers the model names that were written, and says when one was."""

    def __init__(self) -> None:
        super().__init__()
        self.published: list[str] = []
        self.when_published: dict[str, Callable[[], object]] = {}

    def put_if_absent(self, key: str, data: bytes, *, content_type: str = "application/json") -> bool:
        written = super().put_if_absent(key, data, content_type=content_type)
        if key.startswith("models/"):
            name = json.loads(data)["name"]
            self.published.append(name)
            for ending, do in self.when_published.items():
                if name.endswith(ending):
                    do()
        return written


class Kit:
    """Stores in memory, and a worker."""

    def __init__(self, tmp_path: Path) -> None:
        self.tmp_path = tmp_path
        self.objects = Objects()
        artifacts = ContentAddressedStore(self.objects, tmp_path / "cache")
        self.stores = Stores(MemoryJobStore(), self.objects, artifacts, ObjectModelRegistry(self.objects))
        self.worker = Worker(
            self.stores, MemoryBell(), [ToyHandler()], WorkerOptions(QUEUE, tmp_path / "work", idle_poll_seconds=60.0)
        )

    def submit(self, max_attempts: int = 1, **spec: Any) -> str:
        values = {"steps": 4, "checkpoint_every": 2, **spec}
        job, _ = self.stores.jobs.create(Job(new_id(), STAGE, KIND, "acme", values, QUEUE, max_attempts=max_attempts))
        store_spec(self.objects, job)
        return job.id

    def run(self, job_id: str) -> Job:
        self.worker.on_ring(job_id)
        return self.stores.jobs.get(job_id)

    def claim(self, job_id: str) -> Claim:
        claim = self.stores.jobs.claim(job_id, "another", 30.0)
        assert claim is not None
        return claim

    def names(self) -> set[str]:
        return {model.name for model in self.stores.models.list(tenant="acme")}

    def artifacts(self) -> set[str]:
        keys = self.objects.list("artifacts/")
        return {key.split("/")[1] for key in keys if key.endswith("manifest.json")}

    def left(self) -> list[str]:
        """Names, artifacts and notes of temporary models."""
        names = [name for name in self.names() if ":at-" in name]
        artifacts = [artifact for artifact in self.artifacts() if re.fullmatch(r".{20}a\d+t\d+", artifact)]
        return [*names, *artifacts, *self.objects.list("temporary/")]

    def temporary(self, claim: Claim, is_lost: Callable[[], bool] = lambda: False) -> TemporaryModels:
        return TemporaryModels(self.stores, ToyHandler(), claim, self.tmp_path / "attempt", is_lost)

    def publish(self, models: TemporaryModels, number: int) -> dict[str, Any]:
        """Hand a directory over, as the relay does, and wait for the answer."""
        path = self.tmp_path / "attempt" / f"adapter-{number}"
        path.mkdir(parents=True)
        (path / "data").write_text(str(number))
        models.submit(path, number)
        answer = answer_file(self.tmp_path / "attempt", number)
        ready = threading.Event()
        while not answer.exists():
            assert models._thread.is_alive()
            ready.wait(0.01)
        return json.loads(answer.read_text())


@pytest.fixture
def kit(tmp_path: Path) -> Kit:
    return Kit(tmp_path)


def test_they_are_published_one_after_the_other_and_gone_when_the_job_has_succeeded(kit: Kit) -> None:
    job_id = kit.submit(publish_at=[1, 2, 3])
    job = kit.run(job_id)
    assert job.state is JobState.SUCCEEDED, job.error
    own = [name for name in kit.objects.published if ":at-" in name]
    assert own == [f"toy:{job_id}:at-1-{number}" for number in (1, 2, 3)]
    assert kit.left() == []
    assert f"toy:{job_id}" in kit.names()


@pytest.mark.parametrize(
    ("misbehaving", "state"),
    [
        ({"raise_at": 3}, "FAILED"),
        ({"refuse_at": 3}, "FAILED"),
        ({"kill_at": 3}, "FAILED"),
        ({"cancel": True}, "CANCELLED"),
    ],
)
def test_they_are_gone_however_the_job_ends(kit: Kit, misbehaving: dict[str, Any], state: str) -> None:
    cancels = misbehaving.pop("cancel", False)
    job_id = kit.submit(publish_at=[1, 2], checkpoint_every=9, **(misbehaving | ({"wait_at": 2} if cancels else {})))
    if cancels:
        kit.objects.when_published[":at-1-2"] = lambda: kit.stores.jobs.request_cancel(job_id)
    job = kit.run(job_id)
    assert job.state.value == state, job.error
    assert [name for name in kit.objects.published if ":at-" in name]
    assert kit.left() == []


def test_no_more_than_a_few_are_there_at_a_time(kit: Kit) -> None:
    job_id = kit.submit()
    models = kit.temporary(kit.claim(job_id))
    said = [kit.publish(models, number)["model"] for number in range(5)]
    assert len(set(said)) == 5
    assert kit.names() == set(said[-KEPT:])
    assert len(kit.objects.list("temporary/")) == len(kit.artifacts()) == KEPT
    models.close()
    assert kit.left() == []


def test_the_next_attempt_clears_up_after_a_worker_that_died(kit: Kit) -> None:
    job_id = kit.submit(max_attempts=5, publish_at=[1], wait_at=1)
    kit.publish(kit.temporary(kit.claim(job_id)), 7)
    left = kit.names()
    assert left
    kit.stores.jobs.finish(job_id, 1, JobState.QUEUED)
    here: list[set[str]] = []

    def look() -> None:
        here.append(kit.names())
        kit.stores.jobs.request_cancel(job_id)

    kit.objects.when_published[":at-2-1"] = look
    assert kit.run(job_id).state is JobState.CANCELLED
    assert here == [{f"toy:{job_id}:at-2-1"}], "the one before was gone"
    assert kit.left() == []


def test_the_reconciler_clears_up_where_no_attempt_follows(kit: Kit) -> None:
    job_id = kit.submit()
    kit.publish(kit.temporary(kit.claim(job_id)), 7)
    kit.stores.jobs.finish(job_id, 1, JobState.FAILED)
    assert kit.names()
    Reconciler(STAGE, kit.stores, MemoryBell(), [ToyHandler()], "one").run_once()
    assert kit.left() == []


def test_what_can_not_be_published_is_said(kit: Kit) -> None:
    class Refusing(ToyHandler):
        def temporary_model(self, job: Job, number: int, artifact_id: str) -> Any:
            raise FailedPrecondition("there is no such base", reason="INPUT_GONE")

    class Plain:
        kind = KIND

    claim = kit.claim(kit.submit())
    for handler, reason in ((Refusing(), "INPUT_GONE"), (Plain(), "")):
        models = TemporaryModels(kit.stores, handler, claim, kit.tmp_path / "attempt", lambda: False)  # type: ignore[arg-type]
        said = kit.publish(models, 1 if reason else 2)["error"]
        assert said["reason"] == reason or "no temporary models" in said["message"]
        models.close()


def test_a_store_that_is_away_is_waited_for_and_a_lost_lease_ends_that(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, away, lost = kit.objects.put, [1, 1], threading.Event()

    def flaky(key: str, data: bytes, **more: Any) -> None:
        if away:
            away.pop()
            raise Unavailable("away")
        put(key, data, **more)

    claim = kit.claim(kit.submit())
    monkeypatch.setattr(kit.objects, "put", flaky)
    models = kit.temporary(claim, lost.is_set)
    assert kit.publish(models, 1)["model"].endswith(":at-1-1")
    lost.set()
    (kit.tmp_path / "attempt" / "more").mkdir()
    models.submit(kit.tmp_path / "attempt" / "more", 2)
    models._thread.join(10)
    assert not models._thread.is_alive()
    assert not answer_file(kit.tmp_path / "attempt", 2).exists()
    models.close()
    assert kit.left() == []
