"""Drills: whatever is killed, stopped, cut off or said twice, the job ends as if nothing had happened, with nobody's help."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from martlet_core.errors import FailedPrecondition
from martlet_core.jobs import JobState
from martlet_core.testing.toy_stage import KIND

TENANT = "acme"
Drill = Any  # the fixture's class; conftest modules can't be imported


def is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists() and Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_unbroken_run(drill: Drill) -> None:
    drill.start_worker()
    job_id = drill.submit(steps=50)
    drill.await_end(job_id)
    job = drill.check_unbroken(job_id, 50)
    assert job.attempt == 1
    assert drill.steps_by_attempt() == {1: list(range(1, 51))}


def test_sigkill_of_the_recipe(drill: Drill) -> None:
    worker = drill.start_worker()
    job_id = drill.submit()
    drill.await_checkpoint(job_id)
    (recipe,) = worker.recipes()
    os.kill(recipe, signal.SIGKILL)
    drill.await_end(job_id)
    job = drill.check_unbroken(job_id)
    assert (job.attempt, job.lost_attempts) == (2, 1)
    assert drill.steps_by_attempt()[2][0] > 1, "the second attempt began from the beginning"


def test_sigkill_of_the_worker(drill: Drill) -> None:
    worker = drill.start_worker()
    job_id = drill.submit()
    drill.await_checkpoint(job_id)
    recipes = worker.recipes()
    worker.kill()
    drill.wait_until(lambda: not any(map(is_alive, recipes)), "the orphaned recipe to die")
    drill.start_worker()
    drill.await_end(job_id)
    job = drill.check_unbroken(job_id)
    assert job.attempt == 2
    assert drill.steps_by_attempt()[2][0] > 1


def test_sigterm_of_the_worker(drill: Drill) -> None:
    worker = drill.start_worker()
    job_id = drill.submit(checkpoint_every=10_000)
    drill.await_step(job_id, 30)
    worker.signal(signal.SIGTERM)
    assert worker.process.wait(20) == 0
    assert drill.job(job_id).state is JobState.QUEUED
    drill.start_worker()
    drill.await_end(job_id)
    job = drill.check_unbroken(job_id)
    assert (job.attempt, job.lost_attempts) == (2, 0)
    steps = drill.steps_by_attempt()
    assert steps[1] + steps[2] == list(range(1, 301)), "a step was lost or made twice"


def test_duplicate_bells(drill: Drill) -> None:
    for _ in range(2):
        drill.start_worker()
    job_id = drill.submit(steps=100)
    for _ in range(20):
        drill.ring(job_id)
    drill.await_end(job_id)
    other = drill.submit(steps=1)  # heard behind the duplicates
    drill.await_end(other)
    drill.check_unbroken(job_id, 100)
    assert drill.steps_by_attempt()[1] == [*range(1, 101), 1]


def test_lost_bell(drill: Drill) -> None:
    drill.start_worker()
    first = drill.submit(steps=1)
    drill.await_end(first)  # the worker is up and idle
    drill.service._bell = type("Mute", (), {"ring": lambda *_: None})()
    job_id = drill.submit(steps=5)
    drill.await_end(job_id)
    drill.check_unbroken(job_id, 5)


def test_restart_of_valkey_in_mid_job(drill: Drill) -> None:
    drill.start_worker(lease_seconds=6.0)
    job_id = drill.submit()
    drill.await_step(job_id, 30)
    drill.restart_valkey()
    drill.await_end(job_id)
    job = drill.check_unbroken(job_id)
    assert job.attempt == 1
    assert drill.steps_by_attempt() == {1: list(range(1, 301))}


def test_worker_hears_bells_again_after_a_restart_of_valkey(drill: Drill) -> None:
    drill.start_worker()
    drill.await_end(drill.submit(steps=1))
    drill.restart_valkey()
    job_id = drill.submit(steps=5)
    drill.await_end(job_id)
    drill.check_unbroken(job_id, 5)


def test_emptied_valkey_is_rebuilt_from_the_object_store(drill: Drill) -> None:
    worker = drill.start_worker()
    done = drill.submit(steps=5)
    drill.await_end(done)
    value = drill.job(done).result["value"]
    drill.wait_until(lambda: drill.stores.objects.size(f"jobs/{done}/final.json"), "the archive")
    job_id = drill.submit()
    drill.await_checkpoint(job_id)
    worker.kill()
    drill.flush_valkey()
    drill.start_worker()
    drill.wait_until(lambda: len(drill.stores.jobs.list(stage="toy").jobs) == 2, "the jobs to come back")
    drill.await_end(job_id)
    job = drill.job(job_id)
    assert job.state is JobState.SUCCEEDED
    assert job.result["started_at"] > 0, "the checkpoints were not found again"
    assert drill.job(done).result["value"] == value
    assert drill.job(done).state is JobState.SUCCEEDED


def test_wishes_outlive_an_emptied_valkey(drill: Drill) -> None:
    worker = drill.start_worker()
    paused = drill.submit()
    drill.await_checkpoint(paused)
    asyncio.run(drill.service.pause(TENANT, paused, kind=KIND))
    drill.await_state(paused, JobState.PAUSED)
    running = drill.submit()
    drill.await_step(running, 10)
    worker.kill()
    queued = drill.submit()
    asyncio.run(drill.service.cancel(TENANT, running, kind=KIND))  # CANCELLING, and nobody is left to carry it out
    asyncio.run(drill.service.pause(TENANT, queued, kind=KIND))
    drill.flush_valkey()
    drill.start_worker()
    drill.wait_until(lambda: len(drill.stores.jobs.list(stage="toy").jobs) == 3, "the jobs to come back")
    drill.await_end(running)
    assert drill.job(running).state is JobState.CANCELLED
    for job_id in (paused, queued):
        assert drill.job(job_id).state is JobState.PAUSED
        drill.wait_until(lambda job_id=job_id: drill.events(job_id), "the event of its coming back")
        assert drill.events(job_id)[0].data["reason"] == "PAUSE_REQUESTED"
    assert sorted(drill.steps_by_attempt()) == [1], "something was run that shouldn't"
    asyncio.run(drill.service.resume(TENANT, paused, kind=KIND))
    drill.await_end(paused)
    assert drill.job(paused).state is JobState.SUCCEEDED
    assert drill.job(paused).result["started_at"] > 0, "it began anew"
    assert drill.job(queued).state is JobState.PAUSED


def test_object_store_cut_off_in_mid_job(drill: Drill) -> None:
    drill.start_worker()
    job_id = drill.submit(steps=200)
    drill.await_checkpoint(job_id)
    drill.s3_wire.cut()
    assert drill.s3_wire.refused.wait(30)
    drill.await_step(job_id, 200)
    drill.s3_wire.mend()
    drill.await_end(job_id)
    job = drill.check_unbroken(job_id, 200)
    assert job.attempt == 1


@pytest.mark.parametrize("with_recipe", [False, True], ids=["worker", "worker-and-recipe"])
def test_sigstop_longer_than_the_lease(drill: Drill, with_recipe: bool) -> None:
    """A stopped worker's job passes on; its recipe dies by itself or at waking; what it wakes up to do is refused."""
    zombie = drill.start_worker(lease_seconds=2.0)
    job_id = drill.submit()
    drill.await_checkpoint(job_id)
    recipes = zombie.recipes()
    zombie.signal(signal.SIGSTOP)
    if with_recipe:
        for pid in recipes:
            os.kill(pid, signal.SIGSTOP)
    else:
        drill.wait_until(lambda: not any(map(is_alive, recipes)), "the recipe to notice that its supervisor is silent")
    drill.start_worker(lease_seconds=2.0)
    drill.wait_until(lambda: drill.job(job_id).attempt == 2, "another worker to take over")
    drill.await_step(job_id, 150)
    zombie.signal(signal.SIGCONT)
    if with_recipe:
        for pid in recipes:
            os.kill(pid, signal.SIGCONT)
        drill.wait_until(lambda: not any(map(is_alive, recipes)), "the zombie's recipe to be killed")
    drill.await_end(job_id)
    job = drill.check_unbroken(job_id)
    assert job.attempt == 2
    drill.wait_until(lambda: "ended: lease lost" in zombie.log, "the zombie to give up")
    assert zombie.process.poll() is None, "a worker that lost a lease must go on with other jobs"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_cancel_pause_and_resume_at_any_moment(drill: Drill, seed: int) -> None:
    """Random wishes in random order. Slow: each seed is some seconds of a user who can't make up his mind."""
    dice = random.Random(seed)
    drill.start_worker(lease_seconds=1.5)
    drill.start_worker(lease_seconds=1.5)
    job_id = drill.submit(steps=200, checkpoint_every=25)
    for _ in range(6):
        time.sleep(dice.uniform(0.0, 0.5))  # the moment is the point of the drill
        wish = dice.choice([drill.service.pause, drill.service.resume])
        try:
            asyncio.run(wish(TENANT, job_id, kind=KIND))
        except FailedPrecondition:
            continue  # as the contract says, in some states
    drill.await_state(job_id, JobState.PAUSED, JobState.QUEUED, JobState.RUNNING, JobState.SUCCEEDED)
    while not drill.job(job_id).state.is_final:
        if drill.job(job_id).state in (JobState.PAUSED, JobState.PAUSING):
            asyncio.run(drill.service.resume(TENANT, job_id, kind=KIND))
        time.sleep(0.05)
    job = drill.check_unbroken(job_id, 200)
    assert job.lost_attempts == 0
    made = [step for _, steps in sorted(drill.steps_by_attempt().items()) for step in steps]
    assert made == list(range(1, 201)), "a pause lost or repeated steps"


def test_cancel_at_any_moment(drill: Drill) -> None:
    dice = random.Random(0)
    worker = drill.start_worker(lease_seconds=1.5)
    drill.await_end(drill.submit(steps=1))
    for _ in range(4):
        job_id = drill.submit(steps=100_000, checkpoint_every=100)
        time.sleep(dice.uniform(0.0, 0.8))  # the moment is the point of the drill
        asyncio.run(drill.service.cancel(TENANT, job_id, kind=KIND))
        assert drill.await_end(job_id).state is JobState.CANCELLED
        drill.wait_until(lambda: not worker.recipes(), "the recipe to be gone")
