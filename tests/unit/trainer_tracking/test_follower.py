"""Nothing is lost and nothing is said twice, whatever happens to the tool's process and to ours."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from martlet_core.errors import Unavailable
from martlet_core.jobs import JobEvent, JobState
from martlet_core.stores import Stores
from martlet_trainer.trackers import TrackerConfig
from martlet_trainer.tracking.follower import Follower, FollowOptions
from martlet_trainer.tracking.process import TrackerFailed
from martlet_trainer.tracking.record import Record, load_record, store_record
from martlet_trainer.tracking.run import Point, RunEnd, TrackedRun
from martlet_trainer.tracking.testing import Training

FAST = FollowOptions(poll_seconds=0.01, idle_seconds=30, first_pause_seconds=0.01, longest_pause_seconds=0.02)
WANDB = {"kind": "wandb", "project": "birds", "tags": ["a"]}


class Tool:
    """A tool's server, and the processes that speak to it. ``fail(verb, times)`` makes the next calls raise before they act;
    ``fail_late`` after."""

    def __init__(self) -> None:
        self.points: dict[int, Point] = {}
        self.opened: list[TrackedRun] = []
        self.ends: list[RunEnd] = []
        self.verbs: list[str] = []
        self.running = 0
        self.known: Callable[[], int | None] = lambda: None
        self._failing: list[tuple[str, bool]] = []

    def fail(self, verb: str, times: int = 1) -> None:
        self._failing += [(verb, False)] * times

    def fail_late(self, verb: str) -> None:
        self._failing.append((verb, True))

    async def start(self, kind: str) -> Tool:
        self.running += 1
        return self

    async def open(self, run: TrackedRun) -> Mapping[str, Any]:
        self._say("open", lambda: self.opened.append(run))
        return {"tool_run": "its-own-id", "known": self.known()}

    async def log(self, points: Sequence[Point]) -> None:
        self._say("log", lambda: self.points.update({p.number: p for p in points if p.number not in self.points}))

    async def close(self, end: RunEnd) -> None:
        self._say("close", lambda: self.ends.append(end))

    async def leave(self) -> None:
        self._say("leave", lambda: None)

    async def end(self) -> None:
        self.running -= 1

    def _say(self, verb: str, act: Callable[[], None]) -> None:
        self.verbs.append(verb)
        failing = next((entry for entry in self._failing if entry[0] == verb), None)
        if failing is None or failing[1]:
            act()
        if failing is not None:
            self._failing.remove(failing)
            raise TrackerFailed(f"{verb} failed")

    @property
    def said(self) -> list[tuple[int, Mapping[str, float]]]:
        return [(point.step, point.values) for _, point in sorted(self.points.items())]


def follower(stores: Stores, tool: Tool, options: FollowOptions = FAST) -> Follower:
    return Follower(
        stores, "job1", TrackerConfig.model_validate(WANDB), "/logs", tool.start, asyncio.Semaphore(1), options
    )


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110  it has no event
            await asyncio.sleep(0.005)


def whole(stores: Stores) -> Training:
    """A training that was stopped after step 3, went on from a checkpoint of step 1, and is over."""
    training = Training(stores, "job1", [WANDB])
    training.attempt()
    for step in (1, 2):
        training.step(step, loss=1.0 / step)
    training.step(2, valid_loss=0.7)
    training.step(3, loss=0.3)
    training.lose()
    training.attempt()
    training.step(2, loss=0.5)
    training.step(2, valid_loss=0.7)
    training.step(3, loss=0.3, grad_norm=2.0)
    training.step(3, valid_loss=0.6)
    training.step(4, loss=0.25)
    training.finish()
    return training


SAID = [
    (1, {"loss": 1.0}),
    (2, {"loss": 0.5}),
    (2, {"valid_loss": 0.7}),
    (3, {"loss": 0.3}),
    (3, {"grad_norm": 2.0}),
    (3, {"valid_loss": 0.6}),
    (4, {"loss": 0.25}),
]


async def test_several_attempts_are_one_run_and_no_step_is_said_twice(stores: Stores) -> None:
    tool = Tool()
    whole(stores)
    await follower(stores, tool).run()
    assert tool.said == SAID
    [run], [end] = tool.opened, tool.ends
    assert (run.name, run.tenant, run.project, run.tags) == ("job1", "acme", "birds", ("a",))
    assert run.config == {"base_model": "tiny", "hyperparameters": {"max_steps": 4}}
    assert (end.state, end.config, end.summary["metrics"]) == ("SUCCEEDED", {"seed": 42}, {"train_loss": 0.5})
    assert (end.summary["training_data"], end.summary["attempts"]) == ({"rows_used": 3}, 2)
    assert load_record(stores.objects, "job1", "wandb").done
    assert tool.running == 0


async def test_a_record_that_is_done_opens_nothing(stores: Stores) -> None:
    tool = Tool()
    whole(stores)
    await follower(stores, tool).run()
    await follower(stores, tool).run()
    assert tool.verbs == ["open", "log", "close"]


@pytest.mark.parametrize("verb", ["open", "log", "close"])
@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
async def test_a_tool_that_fails_is_told_again(stores: Stores, verb: str, late: bool) -> None:
    tool = Tool()
    tool.fail_late(verb) if late else tool.fail(verb, 3)
    whole(stores)
    await follower(stores, tool).run()
    assert (tool.said, tool.ends[-1].state, tool.running) == (SAID, "SUCCEEDED", 0)


async def test_another_process_goes_on_where_the_first_left(stores: Stores) -> None:
    training = Training(stores, "job1", [WANDB])
    training.attempt()
    training.step(1, loss=1.0)
    tool = Tool()
    first = follower(stores, tool)
    task = asyncio.create_task(first.run())
    await until(lambda: tool.said)
    first.stop()
    await task
    assert tool.verbs == ["open", "log", "leave"]
    training.step(2, loss=0.5)
    training.finish(JobState.FAILED)
    await follower(stores, tool).run()
    assert tool.said == SAID[:2]
    assert (tool.opened[1].tool_run, tool.opened[1].said_until) == ("its-own-id", 1)
    assert tool.ends[0].summary["error"] == {"reason": "DIVERGED", "message": "no loss"}


async def test_what_the_server_never_got_is_said_from_the_beginning(stores: Stores) -> None:
    """A process that is killed may take points with it that it had taken."""
    tool = Tool()
    tool.known = lambda: max(tool.points, default=0)
    whole(stores)
    store_record(stores.objects, "job1", "wandb", replace(Record().take([])[0], points=5, steps={"loss": 3}, cursor=""))
    await follower(stores, tool).run()
    assert tool.said == SAID


async def test_a_process_leaves_while_there_is_nothing_to_say(stores: Stores) -> None:
    training = Training(stores, "job1", [WANDB])
    tool = Tool()
    task = asyncio.create_task(follower(stores, tool, replace(FAST, idle_seconds=0.0)).run())
    training.attempt()
    training.step(1, loss=1.0)
    await until(lambda: "leave" in tool.verbs and tool.running == 0)
    training.step(2, loss=0.5)
    training.finish()
    await task
    assert (tool.said, tool.ends[0].state) == (SAID[:2], "SUCCEEDED")


async def test_no_process_before_there_is_something_to_say(stores: Stores) -> None:
    training = Training(stores, "job1", [WANDB])
    training.attempt()
    stores.jobs.append_event("job1", JobEvent("log", "tokenizing"))
    tool = Tool()
    following = follower(stores, tool)
    task = asyncio.create_task(following.run())
    looks = 0
    original = following._read

    def read(record: Record) -> Any:
        nonlocal looks
        looks += 1
        return original(record)

    following._read = read  # type: ignore[method-assign]
    await until(lambda: looks > 3)
    following.stop()
    await task
    assert tool.verbs == []


async def test_stores_that_are_away_are_waited_for(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    whole(stores)
    tool = Tool()
    put, failures = stores.objects.put, iter([1, 2])

    def flaky(*args: Any, **kwargs: Any) -> None:
        if next(failures, None):
            raise Unavailable("away")
        put(*args, **kwargs)

    monkeypatch.setattr(stores.objects, "put", flaky)
    await follower(stores, tool).run()
    assert (tool.said, tool.verbs) == (SAID, ["open", "log", "close"])


async def test_a_tool_that_never_works_is_given_up_when_the_job_is_long_over(stores: Stores) -> None:
    whole(stores)
    tool = Tool()
    tool.fail("open", 3)
    await follower(stores, tool, replace(FAST, give_up_seconds=0.0)).run()
    assert tool.verbs == ["open"]
    assert not load_record(stores.objects, "job1", "wandb").done
