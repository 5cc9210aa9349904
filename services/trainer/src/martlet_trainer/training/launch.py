"""One training in several processes: starts those of this machine, passes on what they say, and tells them to stop.

    python -m martlet_trainer.training.launch WORKDIR        one process; RANK and WORLD_SIZE say which

The processes stay in the caller's process group (torchrun puts each into a session of its own, where a kill of the group doesn't reach it), die
with the caller, and find one another through a file, so no port can be taken by someone else. Processes of several machines
(``Peers``) meet at an address of the first one instead (docs/adr/0013-training-across-pods.md).
"""

from __future__ import annotations

import ctypes
import json
import os
import secrets
import selectors
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from martlet_core.errors import Internal, MartletError, error_from_dict
from martlet_core.recipe import OutputArtifact, RecipeResult, Report, ShouldStop, StopRequested

_EXIT_STOPPED = 3
_EXIT_ERROR = 4
_PR_SET_PDEATHSIG = 1
_POLL_SECONDS = 0.1

#: A recipe's body: the part that every process runs.
Body = Callable[[Mapping[str, Any], Path, Report, ShouldStop], RecipeResult]


@dataclass(frozen=True)
class Peers:
    """The machines of one training, from the sight of one of them.

    Attributes:
        node: this machine's number, from 0. The first one speaks for all, writes the checkpoints and hears the wish to stop.
        count: machines; each runs equally many processes.
        host: where the first one is reached.
        port: a free port of the first one.
    """

    node: int
    count: int
    host: str
    port: int


def local_rank() -> int:
    """This process's number among those of its machine, and so its device's; 0 if it is alone."""
    return int(os.environ["LOCAL_RANK"]) if "MARTLET_RENDEZVOUS" in os.environ else 0


def run_processes(
    entrypoint: str,
    config: Mapping[str, Any],
    workdir: Path,
    count: int,
    report: Report,
    should_stop: ShouldStop,
    peers: Peers | None = None,
) -> RecipeResult:
    """Run a recipe's body in ``count`` processes of this machine.

    Args:
        entrypoint: ``module:function`` of a ``Body``.
        config: its config, JSON-ready.
        workdir: the job's working directory.
        count: processes; each gets a device of its own on a machine with GPUs.
        report: gets what the first process says.
        should_stop: asked all the time; the processes are told. Only the first machine's counts.
        peers: the machines, where there are several; all others call this too. The result is the first one's; the others' is empty.

    Raises:
        StopRequested: the processes stopped, as they were asked to.
        MartletError: what a process of this machine raised; Internal if one died without a word.
    """
    folder = workdir / f".processes-{secrets.token_hex(4)}"
    folder.mkdir(parents=True)
    (folder / "job.json").write_text(json.dumps({"entrypoint": entrypoint, "config": dict(config)}), encoding="utf-8")
    report_read, report_write = os.pipe()
    stop_read, stop_write = os.pipe()
    group: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(count):
            group.append(_start(rank, count, workdir, folder, report_write, stop_read, peers))
        os.close(report_write)
        os.close(stop_read)
        speaks = peers is None or peers.node == 0
        _relay(group, report_read, stop_write, report, should_stop if speaks else _never)
    finally:
        for process in group:
            process.kill()
            process.wait()
        os.close(report_read)
        os.close(stop_write)
    return _outcome(group, folder, speaks)


def _start(
    local: int, count: int, workdir: Path, folder: Path, report_write: int, stop_read: int, peers: Peers | None
) -> subprocess.Popen[bytes]:
    rank = local + (peers.node * count if peers else 0)
    environment = {
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(local),
        "WORLD_SIZE": str(count * (peers.count if peers else 1)),
        "LOCAL_WORLD_SIZE": str(count),
        "MARTLET_RENDEZVOUS": str(folder.resolve()),
        "MARTLET_PIPES": f"{report_write},{stop_read}",
    }
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        environment.pop(name, None)
    if peers is not None:
        environment |= {"MASTER_ADDR": peers.host, "MASTER_PORT": str(peers.port)}
    return subprocess.Popen(
        [sys.executable, "-m", "martlet_trainer.training.launch", str(workdir)],
        env=environment,
        pass_fds=(report_write, stop_read) if rank == 0 else (),
        stdin=subprocess.DEVNULL,
        # A stop that is signalled to the whole group must reach them through the pipe, between two steps, and not kill them.
        preexec_fn=lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN),
    )


def _relay(
    group: list[subprocess.Popen[bytes]], report_read: int, stop_write: int, report: Report, should_stop: ShouldStop
) -> None:
    """Pass messages on until all processes are done, or one has failed."""
    pending, told = b"", False
    with selectors.DefaultSelector() as selector:
        selector.register(report_read, selectors.EVENT_READ)
        while True:
            if should_stop() and not told:
                told = True
                os.write(stop_write, b"stop")
            if selector.select(timeout=_POLL_SECONDS):
                data = os.read(report_read, 1 << 16)
                *lines, pending = (pending + data).split(b"\n")
                for line in lines:
                    _pass_on(json.loads(line), report)
                if data:
                    continue
                selector.unregister(report_read)  # the first process closed it: it is about to end
                selector.register(_never_ready(), selectors.EVENT_READ)
            codes = [process.poll() for process in group]
            if all(code is not None for code in codes) or any(code not in (None, 0, _EXIT_STOPPED) for code in codes):
                return


def _never_ready() -> int:
    """A descriptor that never has anything to read, so that waiting on it is a pause."""
    read, _write = os.pipe()
    return read


def _pass_on(message: Mapping[str, Any], report: Report) -> None:
    arguments = dict(message["arguments"])
    if "path" in arguments:
        arguments["path"] = Path(arguments["path"])
    getattr(report, message["method"])(**arguments)


def _outcome(group: list[subprocess.Popen[bytes]], folder: Path, speaks: bool) -> RecipeResult:
    codes = [process.returncode for process in group]
    errors = sorted(folder.glob("error-*.json"))
    if errors:
        raise error_from_dict(json.loads(errors[0].read_text(encoding="utf-8")))
    if any(code not in (0, _EXIT_STOPPED) for code in codes):
        raise Internal(
            f"a training process ended unexpectedly (exit codes {codes}); its last words are in the job's log"
        )
    if _EXIT_STOPPED in codes:
        raise StopRequested
    if not speaks:
        return RecipeResult({})
    values = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    outputs = {name: OutputArtifact(Path(o["path"]), o["kind"], o["metadata"]) for name, o in values["outputs"].items()}
    return RecipeResult(values["values"], outputs)


@dataclass
class PipeReport:
    """The ``Report`` of the first process: JSON lines to the caller."""

    descriptor: int

    def phase(self, name: str) -> None:
        """See ``Report``."""
        self._send("phase", name=name)

    def log(self, message: str, level: str = "info") -> None:
        """See ``Report``."""
        self._send("log", message=message, level=level)

    def metrics(
        self, step: int, total_steps: int, values: Mapping[str, float], eta_seconds: float | None = None
    ) -> None:
        """See ``Report``."""
        self._send("metrics", step=step, total_steps=total_steps, values=dict(values), eta_seconds=eta_seconds)

    def checkpoint(self, path: Path, step: int, metrics: Mapping[str, float], is_best: bool = False) -> None:
        """See ``Report``."""
        self._send("checkpoint", path=str(path), step=step, metrics=dict(metrics), is_best=is_best)

    def partial_result(self, values: Mapping[str, Any]) -> None:
        """See ``Report``."""
        self._send("partial_result", values=dict(values))

    def temporary_model(self, path: Path, number: int) -> None:
        """See ``PublishingReport``."""
        self._send("temporary_model", path=str(path), number=number)

    def _send(self, method: str, **arguments: Any) -> None:
        data = (json.dumps({"method": method, "arguments": arguments}) + "\n").encode()
        while data:
            data = data[os.write(self.descriptor, data) :]


@dataclass
class SilentReport:
    """The ``Report`` of the other processes: the first one speaks for all."""

    said: list[str] = field(default_factory=list)

    def phase(self, name: str) -> None:
        """Says nothing."""

    def log(self, message: str, level: str = "info") -> None:
        """Says nothing."""

    def metrics(
        self, step: int, total_steps: int, values: Mapping[str, float], eta_seconds: float | None = None
    ) -> None:
        """Says nothing."""

    def checkpoint(self, path: Path, step: int, metrics: Mapping[str, float], is_best: bool = False) -> None:
        """Says nothing."""

    def partial_result(self, values: Mapping[str, Any]) -> None:
        """Says nothing."""


@dataclass
class StopPipe:
    """``should_stop`` of the first process: true once the caller wrote to the pipe."""

    descriptor: int
    stopped: bool = False

    def __call__(self) -> bool:
        if not self.stopped:
            with selectors.DefaultSelector() as selector:
                selector.register(self.descriptor, selectors.EVENT_READ)
                self.stopped = bool(selector.select(timeout=0))
        return self.stopped


def main(workdir: Path) -> int:
    """One of the processes; returns its exit code."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return _EXIT_ERROR
    rank, folder = int(os.environ["RANK"]), Path(os.environ["MARTLET_RENDEZVOUS"])
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    report: Report = SilentReport()
    should_stop: ShouldStop = _never
    if rank == 0:
        report_write, stop_read = (int(number) for number in os.environ["MARTLET_PIPES"].split(","))
        report, should_stop = PipeReport(report_write), StopPipe(stop_read)
    try:
        _join(rank, folder)
        result = load_body(job["entrypoint"])(job["config"], workdir, report, should_stop)
    except StopRequested:
        return _EXIT_STOPPED
    except MartletError as error:
        (folder / f"error-{rank}.json").write_text(json.dumps(error.to_dict()), encoding="utf-8")
        return _EXIT_ERROR
    if rank == 0:
        outputs = {
            n: {"path": str(o.path), "kind": o.kind, "metadata": dict(o.metadata)} for n, o in result.outputs.items()
        }
        (folder / "result.json").write_text(
            json.dumps({"values": dict(result.values), "outputs": outputs}), encoding="utf-8"
        )
    return 0


def _never() -> bool:
    return False


def _join(rank: int, folder: Path) -> None:
    """Meet the other processes: at an address where there are several machines, else at a file."""
    import torch
    from torch import distributed

    here = int(os.environ["LOCAL_WORLD_SIZE"])
    backend = "nccl" if torch.cuda.is_available() and torch.cuda.device_count() >= here else "gloo"
    place = "env://" if "MASTER_ADDR" in os.environ else f"file://{folder}/rendezvous"
    distributed.init_process_group(backend, init_method=place, rank=rank, world_size=int(os.environ["WORLD_SIZE"]))


def load_body(entrypoint: str) -> Body:
    import importlib

    module, _, name = entrypoint.partition(":")
    return getattr(importlib.import_module(module), name)


if __name__ == "__main__":
    code = main(Path(sys.argv[1]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # without waiting for what other processes may never answer
