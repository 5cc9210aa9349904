"""One training on several machines: here two launchers, each with a working directory of its own, that meet at a TCP port."""

from __future__ import annotations

import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from martlet_core.errors import MartletError
from martlet_core.recipe import RecipeResult, StopRequested
from martlet_trainer.recipes import training
from martlet_trainer.training import launch
from martlet_trainer.training.launch import Peers

MakeWorkdir = Callable[..., Path]
NUMBERS = {"max_steps": 5, "per_device_batch_size": 8}


@pytest.fixture(autouse=True)
def _loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")


@pytest.fixture
def port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def never() -> bool:
    return False


def train_on_two(kit: SimpleNamespace, port: int, workdirs: list[Path], reports: list[Any], stop: Any) -> list[Any]:
    """What each of two machines' launchers returned or raised."""
    spec = kit.spec(hyperparameters={**NUMBERS, "per_device_batch_size": 4})

    def machine(node: int) -> RecipeResult | BaseException:
        peers = Peers(node, 2, "127.0.0.1", port)
        try:
            return launch.run_processes(
                "martlet_trainer.recipes.training:train", spec, workdirs[node], 1, reports[node], stop[node], peers
            )
        except (MartletError, StopRequested) as error:
            return error

    with ThreadPoolExecutor(2) as machines:
        return list(machines.map(machine, range(2)))


def test_two_machines_train_as_one_and_resume(kit: SimpleNamespace, make_workdir: MakeWorkdir, port: int) -> None:
    """Stopped on the way, at the first machine alone, which also has written the checkpoint; every machine resumes from it."""
    rows = kit.chat_rows(16)
    one = kit.Recorder()
    training.run(kit.spec(hyperparameters=NUMBERS), make_workdir("one", rows), one, never)

    first, silent = kit.Recorder(), kit.Recorder()
    workdirs = [make_workdir(name, rows) for name in ("a0", "a1")]
    stopped = train_on_two(kit, port, workdirs, [first, silent], [lambda: len(first.steps) >= 2, never])
    assert [type(outcome) for outcome in stopped] == [StopRequested, StopRequested]
    assert not list(workdirs[1].glob("checkpoints/*")), "the first machine writes"

    checkpoint, step = first.checkpoints[-1][0], first.checkpoints[-1][1]
    workdirs = [make_workdir(name, rows, resume=checkpoint) for name in ("b0", "b1")]
    second = kit.Recorder()
    results = train_on_two(kit, port, workdirs, [second, silent], [never, never])
    assert min(second.steps) == step + 1
    two = {**first.steps, **second.steps}
    losses = [two[number]["loss"] for number in sorted(two)]
    assert losses == pytest.approx(one.losses, abs=1e-4)
    assert (results[0].outputs["model"].path / "adapter_model.safetensors").is_file()
    assert (results[1].values, results[1].outputs) == ({}, {})
    assert not silent.steps


def test_a_machine_that_goes_ends_the_attempt_of_all(
    kit: SimpleNamespace, make_workdir: MakeWorkdir, port: int
) -> None:
    """The second machine's data set can't be read: it fails before it meets the first one's loop, which must not wait for ever."""
    rows = kit.chat_rows(16)
    workdirs = [make_workdir(name, rows) for name in ("a0", "a1")]
    for file in (workdirs[1] / "inputs" / "training_dataset").rglob("*"):
        if file.is_file():
            file.write_text("{}\n")
    outcomes = train_on_two(kit, port, workdirs, [kit.Recorder(), kit.Recorder()], [never, never])
    assert all(isinstance(outcome, MartletError) for outcome in outcomes)
    assert "line 1" in str(outcomes[1])
