"""The daemon, with TensorBoard's real processes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from martlet_core.errors import FailedPrecondition, InvalidArgument
from martlet_core.stores import Stores
from martlet_trainer.settings import TrainerSettings
from martlet_trainer.tracking.daemon import Tracking
from martlet_trainer.tracking.follower import FollowOptions
from martlet_trainer.tracking.record import load_record
from martlet_trainer.tracking.testing import Training, scalars

FAST = FollowOptions(poll_seconds=0.05, first_pause_seconds=0.05)
TENSORBOARD = {"kind": "tensorboard"}


def settings(tmp_path: Path, **changes: Any) -> TrainerSettings:
    values = {"trackers": "tensorboard", "tensorboard_dir": tmp_path / "logs", "work_dir": tmp_path / "work"}
    return TrainerSettings(**{**values, **changes})


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  it has no event
            await asyncio.sleep(0.02)


def is_done(stores: Stores, job_id: str) -> bool:
    return load_record(stores.objects, job_id, "tensorboard").done


async def test_jobs_are_found_and_told_of_once(stores: Stores, tmp_path: Path) -> None:
    """Two jobs, one of them with a folder that can't be made; then the daemon is started anew."""
    first, second = (
        Training(stores, "job1", [TENSORBOARD]),
        Training(stores, "job2", [{**TENSORBOARD, "project": "bad"}]),
    )
    Training(stores, "job3", [])
    (tmp_path / "logs" / "acme").mkdir(parents=True)
    (tmp_path / "logs" / "acme" / "bad").write_text("in the way")
    tracking = Tracking(stores, settings(tmp_path), FAST)
    await tracking.look()
    for training in (first, second):
        training.attempt()
        training.step(1, loss=1.0)
        training.finish()
    await until(lambda: is_done(stores, "job1"))
    assert scalars(tmp_path / "logs" / "acme" / "martlet" / "job1") == [("loss", 1, 1.0)]
    await tracking.leave_all()
    assert not is_done(stores, "job2")
    (tmp_path / "logs" / "acme" / "bad").unlink()
    again = Tracking(stores, settings(tmp_path), FAST)
    await again.look()
    await until(lambda: is_done(stores, "job2"))
    await again.leave_all()
    assert scalars(tmp_path / "logs" / "acme" / "martlet") == [("loss", 1, 1.0)]
    assert scalars(tmp_path / "logs" / "acme" / "bad") == [("loss", 1, 1.0)]
    assert sorted(path.name for path in (tmp_path / "logs" / "acme").iterdir()) == ["bad", "martlet"]


async def test_one_process_is_at_work_at_a_time(stores: Stores, tmp_path: Path) -> None:
    Training(stores, "job1", [TENSORBOARD])
    first, second = Tracking(stores, settings(tmp_path), FAST), Tracking(stores, settings(tmp_path), FAST)
    second._owner = "another machine"
    await first.look()
    await second.look()
    assert (len(first._followers), len(second._followers)) == (1, 0)
    stop = asyncio.Event()
    stop.set()
    await first.run(stop)  # gives the lease back
    await second.look()
    assert (len(first._followers), len(second._followers)) == (0, 1)
    await second.leave_all()


def test_a_tracker_without_trackers_is_refused(stores: Stores, tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="MARTLET_TRACKERS is empty"):
        Tracking(stores, settings(tmp_path, trackers=""))
    with pytest.raises(InvalidArgument, match="'swanlab' isn't known; known are tensorboard, wandb, mlflow"):
        Tracking(stores, settings(tmp_path, trackers="swanlab"))
