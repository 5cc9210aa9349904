"""Which checkpoints are kept, in what order things are written, and which one a new attempt begins with."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from martlet_core.artifacts.store import ContentAddressedStore
from martlet_core.artifacts.types import PublishedModel
from martlet_core.backoff import GaveUp, retry_unavailable
from martlet_core.checkpoints import CheckpointKeeper, restore_newest, split_kept
from martlet_core.errors import NotFound, Unavailable
from martlet_core.ids import ID_PATTERN, checkpoint_artifact_id, job_id_of_attempt, new_id, output_artifact_id
from martlet_core.jobs import Claim, Job, JobState
from martlet_core.models import ObjectModelRegistry
from martlet_core.outbox import Outbox
from martlet_core.testing.job_store import MemoryJobStore
from martlet_core.testing.object_store import MemoryObjectStore

DEADLINE_SECONDS = 20.0


class SlowObjects(MemoryObjectStore):
    """Uploads wait while ``held`` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = threading.Event()
        self.go_on.set()
        self.waiting = threading.Event()

    def upload(self, key: str, path: Path) -> None:
        self.waiting.set()
        assert self.go_on.wait(DEADLINE_SECONDS)
        super().upload(key, path)


class Kit:
    """A claimed job and the keeper of its checkpoints."""

    def __init__(self, tmp_path: Path) -> None:
        self._tmp_path = tmp_path
        self.jobs = MemoryJobStore()
        self.objects = SlowObjects()
        self.artifacts = ContentAddressedStore(self.objects, tmp_path / "cache")
        self.models = ObjectModelRegistry(self.objects)
        self.jobs.create(Job(new_id(), "toy", "counting", "acme", {}, "toy"))
        self.lost = threading.Event()
        self._keepers: list[CheckpointKeeper] = []
        self._outboxes: list[Outbox] = []
        self.claim()

    def claim(self) -> None:
        (job,) = self.jobs.list().jobs
        claim = self.jobs.claim(job.id, "worker", 30.0)
        assert claim is not None
        self.now: Claim = claim
        self.outbox = Outbox(self.jobs, claim, on_lost=self.lost.set)
        self.outbox.start()
        self._outboxes.append(self.outbox)
        self.keeper = CheckpointKeeper(
            self.jobs,
            self.artifacts,
            self.models,
            claim,
            kept=claim.job.checkpoints,
            outbox=self.outbox,
            model_of=model_of,
            on_lost=self.lost.set,
        )
        self.keeper.start()
        self._keepers.append(self.keeper)

    def hand_over(self, step: int, *, is_best: bool = False, text: str = "") -> Path:
        path = self._tmp_path / f"attempt-{self.now.token}" / f"step-{step}-{len(text)}"
        path.mkdir(parents=True)
        (path / "state").write_text(text or f"attempt {self.now.token}, step {step}")
        self.keeper.submit(path, step, {"loss": 1.0 / step}, is_best)
        return path

    def drain(self) -> None:
        deadline = threading.Timer(DEADLINE_SECONDS, self.lost.set)
        deadline.start()
        assert self.keeper.drain(give_up=self.lost.is_set)
        deadline.cancel()

    @property
    def steps(self) -> list[int]:
        return [entry["step"] for entry in self.jobs.get(self.now.job.id).checkpoints]

    def close(self) -> None:
        self.objects.go_on.set()
        for keeper in self._keepers:
            keeper.stop()
        for outbox in self._outboxes:
            outbox.close()


def model_of(job: Job, checkpoint: Mapping[str, Any]) -> PublishedModel | None:
    return PublishedModel(
        f"ft:{job.id}:ckpt-step-{checkpoint['step']}", "adapter", job.tenant, checkpoint["artifact_id"]
    )


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[Kit]:
    kit = Kit(tmp_path)
    yield kit
    kit.close()


def entries(*steps: int, best: tuple[int, ...] = ()) -> list[dict[str, Any]]:
    return [{"artifact_id": f"a{step}", "step": step, "is_best": step in best} for step in steps]


@pytest.mark.parametrize(
    ("steps", "best", "kept"),
    [
        ((), (), []),
        ((1,), (), [1]),
        ((1, 2, 3), (), [2, 3]),
        ((1, 2, 3), (1,), [1, 2, 3]),
        ((1, 2, 3, 4), (1, 2), [2, 3, 4]),
        ((1, 2, 3), (3,), [2, 3]),
    ],
)
def test_last_two_and_the_newest_best_are_kept(steps: tuple[int, ...], best: tuple[int, ...], kept: list[int]) -> None:
    left, dropped = split_kept(entries(*steps, best=best))
    assert [entry["step"] for entry in left] == kept
    assert sorted(entry["step"] for entry in [*left, *dropped]) == list(steps)


def test_artifact_ids_are_told_apart_by_attempt() -> None:
    job_id = new_id()
    ids = {checkpoint_artifact_id(job_id, token, step) for token in (1, 11) for step in (1, 11, 111)}
    assert len(ids) == 6
    assert all(ID_PATTERN.fullmatch(artifact_id) for artifact_id in ids)
    for artifact_id in (*ids, output_artifact_id(job_id, 3, "Merged model")):
        assert job_id_of_attempt(artifact_id) == job_id
    assert job_id_of_attempt(job_id) is None


def test_best_survives_newer_ones_with_its_name(kit: Kit) -> None:
    for step in (1, 2, 3, 4):
        kit.hand_over(step, is_best=step == 1)
        kit.drain()
    assert kit.steps == [1, 3, 4]
    assert kit.models.get(f"ft:{kit.now.job.id}:ckpt-step-1", tenant="acme")
    with pytest.raises(NotFound):
        kit.models.get(f"ft:{kit.now.job.id}:ckpt-step-2", tenant="acme")


def test_uploaded_directory_is_deleted(kit: Kit) -> None:
    path = kit.hand_over(1)
    kit.drain()
    assert not path.exists()


def test_those_in_between_are_passed_over_when_uploads_are_slow(kit: Kit) -> None:
    kit.objects.go_on.clear()
    kit.hand_over(1)
    assert kit.objects.waiting.wait(DEADLINE_SECONDS)
    kit.hand_over(2, is_best=True)
    passed_over = kit.hand_over(3)
    kit.hand_over(4)
    kit.objects.go_on.set()
    kit.drain()
    assert kit.steps == [2, 4]
    assert not passed_over.exists()


def test_step_handed_over_twice_is_stored_once_and_may_become_best(kit: Kit) -> None:
    kit.hand_over(1)
    kit.drain()
    kit.hand_over(1, is_best=True, text="the same step, saved again")
    kit.drain()
    (entry,) = kit.jobs.get(kit.now.job.id).checkpoints
    assert entry["is_best"]


def test_zombie_records_nothing_and_takes_its_artifact_back(kit: Kit) -> None:
    kit.objects.go_on.clear()
    kit.hand_over(1)
    assert kit.objects.waiting.wait(DEADLINE_SECONDS)
    zombie_id = checkpoint_artifact_id(kit.now.job.id, kit.now.token, 1)
    kit.jobs.finish(kit.now.job.id, kit.now.token, JobState.QUEUED)
    kit.claim()
    kit.objects.go_on.set()
    assert kit.lost.wait(DEADLINE_SECONDS)
    assert kit.steps == []
    with pytest.raises(NotFound):
        kit.artifacts.get(zombie_id)


def never() -> bool:
    return False


def test_newest_good_checkpoint_is_restored(kit: Kit, tmp_path: Path) -> None:
    for step in (1, 2):
        kit.hand_over(step)
        kit.drain()
    job = kit.jobs.get(kit.now.job.id)
    found, unreadable = restore_newest(job, kit.artifacts, tmp_path / "resume", outbox=kit.outbox, give_up=never)
    assert found is not None
    assert (found["step"], unreadable) == (2, [])
    assert (tmp_path / "resume" / "state").read_text() == "attempt 1, step 2"


@pytest.mark.parametrize("damage", ["deleted", "corrupted"])
def test_damaged_checkpoint_gives_way_to_the_one_before(kit: Kit, tmp_path: Path, damage: str) -> None:
    for step in (1, 2):
        kit.hand_over(step)
        kit.drain()
    job = kit.jobs.get(kit.now.job.id)
    newest = kit.artifacts.get(job.checkpoints[-1]["artifact_id"])
    if damage == "deleted":
        kit.artifacts.delete(newest.id)
    else:
        key = f"blobs/sha256/{newest.files[0].sha256}"
        kit.objects.put(key, b"x" * newest.files[0].size_bytes)
    fresh = ContentAddressedStore(kit.objects, tmp_path / "another-machine")
    found, unreadable = restore_newest(job, fresh, tmp_path / "resume", outbox=kit.outbox, give_up=never)
    assert found is not None
    assert found["step"] == 1
    assert [entry["step"] for entry in unreadable] == [2]
    assert (tmp_path / "resume" / "state").read_text() == "attempt 1, step 1"


def test_no_good_checkpoint_leaves_nothing_to_resume_from(kit: Kit, tmp_path: Path) -> None:
    kit.hand_over(1)
    kit.drain()
    job = kit.jobs.get(kit.now.job.id)
    kit.artifacts.delete(job.checkpoints[-1]["artifact_id"])
    found, _ = restore_newest(job, kit.artifacts, tmp_path / "resume", outbox=kit.outbox, give_up=never)
    assert found is None
    assert not (tmp_path / "resume").exists()


def failing(times: int) -> Callable[[], str]:
    left = iter(range(times))

    def call() -> str:
        if next(left, None) is not None:
            raise Unavailable("away")
        return "done"

    return call


def test_outage_is_waited_out() -> None:
    assert retry_unavailable("trying", failing(2), give_up=never) == "done"


def test_giving_up_ends_the_wait_at_once() -> None:
    asked = iter([False, True])
    with pytest.raises(GaveUp):
        retry_unavailable("trying", failing(1), give_up=lambda: next(asked, True))


def test_other_errors_are_not_retried() -> None:
    calls: list[int] = []

    def call() -> None:
        calls.append(1)
        raise NotFound("gone")

    with pytest.raises(NotFound):
        retry_unavailable("trying", call, give_up=never)
    assert len(calls) == 1
