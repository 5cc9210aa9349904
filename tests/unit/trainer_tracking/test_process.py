"""A real process with a real tool, that answers, hangs, dies or refuses."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from martlet_trainer.tracking.process import TrackerFailed, TrackerProcess, redacted, tool_environment
from martlet_trainer.tracking.run import Point
from martlet_trainer.tracking.testing import scalars, tracked

POINT = Point(1, 3, 1000.0, {"loss": 0.5})
Start = Callable[..., Awaitable[TrackerProcess]]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    started: list[TrackerProcess] = []
    work = tmp_path / "work"
    work.mkdir()

    async def begin(answer_seconds: float = 60.0) -> TrackerProcess:
        started.append(await TrackerProcess.start("tensorboard", work, answer_seconds))
        return started[-1]

    yield begin
    for process in started:
        await process.end()


async def test_what_is_acknowledged_is_written(start: Start, tmp_path: Path) -> None:
    process = await start()
    assert await process.open(tracked(tmp_path)) == {"tool_run": "acme/birds/job1", "known": None}
    await process.log([POINT])
    assert scalars(tmp_path) == [("loss", 3, 0.5)]


async def test_a_tool_that_hangs_is_given_up_and_killed(start: Start, tmp_path: Path) -> None:
    process = await start()
    await process.open(tracked(tmp_path))
    os.kill(process._process.pid, signal.SIGSTOP)
    process._answer_seconds = 0.2
    with pytest.raises(TrackerFailed, match=r"tensorboard didn't answer 'log' within 0\.2 s"):
        await process.log([POINT])
    await process.end()
    assert process._process.returncode == -signal.SIGKILL


async def test_a_tool_that_dies_is_a_failure(start: Start, tmp_path: Path) -> None:
    process = await start()
    await process.open(tracked(tmp_path))
    os.kill(process._process.pid, signal.SIGKILL)
    with pytest.raises(TrackerFailed, match="tensorboard's process ended"):
        await process.log([POINT])


async def test_a_tool_that_raises_says_why(start: Start, tmp_path: Path) -> None:
    (tmp_path / "acme").write_text("in the way")
    process = await start()
    with pytest.raises(TrackerFailed, match=r"tensorboard: (NotADirectory|FileExists)Error"):
        await process.open(tracked(tmp_path))


def test_tools_have_no_secret_of_the_deployment() -> None:
    environ = {"MARTLET_S3_SECRET_KEY": "s", "MARTLET_REDIS_URL": "r", "WANDB_API_KEY": "w", "PATH": "/bin"}
    assert tool_environment(environ) == {"WANDB_API_KEY": "w", "PATH": "/bin"}


def test_no_secret_of_a_tool_is_in_what_is_logged() -> None:
    environ = {
        "WANDB_API_KEY": "abcdef123",
        "MLFLOW_TRACKING_PASSWORD": "opensesame",
        "WANDB_PROJECT": "birds",
        "AWS_SECRET_ACCESS_KEY": "seekrit",
    }
    text = "abcdef123 seekrit refused for birds at https://me:opensesame@host/api and http://u:other@host"
    assert redacted(text, environ) == "*** *** refused for birds at https://***@host/api and http://***@host"
