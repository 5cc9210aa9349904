"""Runs one recipe in a process of its own: ``python -m martlet_core.child module:function workdir``.

Speaks for the recipe (``child_protocol``), turns SIGTERM into ``should_stop()``, and kills its own process group when
the supervisor is gone. Imports stay light: no gRPC, Celery, Redis or S3 client; the recipe brings its own.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import math
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from martlet_core import child_protocol as protocol
from martlet_core.errors import MartletError
from martlet_core.recipe import FailedWithResult, RecipeResult, StopRequested

_TRACEBACK_CHARACTERS = 8000


class PipeReport:
    """The ``Report`` given to a recipe: writes JSON lines to the report pipe. Methods never raise."""

    def __init__(self, report_fd: int, workdir: Path) -> None:
        self._fd = report_fd
        self._workdir = workdir.resolve()
        self._lock = threading.Lock()
        self._not_finite: set[str] = set()

    def phase(self, name: str) -> None:
        """Say what the recipe is doing."""
        self.send({"type": protocol.PHASE, "name": str(name)})

    def log(self, message: str, level: str = "info") -> None:
        """Add a line to the job's events."""
        self.send({"type": protocol.LOG, "message": str(message), "level": str(level)})

    def metrics(
        self, step: int, total_steps: int, values: Mapping[str, float], eta_seconds: float | None = None
    ) -> None:
        """Report numbers; those that are not finite are named in a warning, once each, and left out (JSON has no
        NaN).
        """
        numbers = {name: float(value) for name, value in values.items()}
        finite = {name: value for name, value in numbers.items() if math.isfinite(value)}
        for name in numbers.keys() - finite.keys() - self._not_finite:
            self._not_finite.add(name)
            self.log(f"{name} is {numbers[name]} at step {step}; values that are not finite are not recorded.", "warn")
        self.send(
            {
                "type": protocol.METRICS,
                "step": int(step),
                "total_steps": int(total_steps),
                "values": finite,
                "eta_seconds": eta_seconds if eta_seconds is not None and math.isfinite(eta_seconds) else None,
            }
        )

    def checkpoint(self, path: Path, step: int, metrics: Mapping[str, float], is_best: bool = False) -> None:
        """Hand over a finished checkpoint directory."""
        self.send(
            {
                "type": protocol.CHECKPOINT,
                "path": self._relative(path),
                "step": int(step),
                "metrics": {name: float(value) for name, value in metrics.items() if math.isfinite(value)},
                "is_best": bool(is_best),
            }
        )

    def partial_result(self, values: Mapping[str, Any]) -> None:
        """Publish parts of the result before the end."""
        self.send({"type": protocol.PARTIAL_RESULT, "values": dict(values)})

    def temporary_model(self, path: Path, number: int) -> None:
        """Hand over a finished directory to be published for a while (``martlet_core.temporary_models``)."""
        self.send({"type": protocol.TEMPORARY_MODEL, "path": self._relative(path), "number": int(number)})

    def result(self, result: RecipeResult) -> None:
        """Send what the recipe returned."""
        self.send({"type": protocol.RESULT, **self._described(result)})

    def failure(self, error: MartletError, result: RecipeResult | None = None) -> None:
        """Send why the recipe failed, and what it has to show for it."""
        described = self._described(result) if result is not None else {}
        self.send({"type": protocol.ERROR, "error": error.to_dict(), **described})

    def _described(self, result: RecipeResult) -> Mapping[str, Any]:
        outputs = {
            name: {"path": self._relative(output.path), "kind": output.kind, "metadata": dict(output.metadata)}
            for name, output in result.outputs.items()
        }
        return {"values": dict(result.values), "outputs": outputs}

    def send(self, message: Mapping[str, Any]) -> None:
        """Write one line. A broken pipe means that the supervisor is gone: the lifeline ends this process in a
        moment.
        """
        data = (json.dumps(message, default=str, allow_nan=False) + "\n").encode()
        with self._lock:
            try:
                while data:
                    data = data[os.write(self._fd, data) :]
            except BrokenPipeError:
                return

    def _relative(self, path: Path) -> str:
        return str((self._workdir / path).resolve().relative_to(self._workdir))


class StopFlag:
    """Turns SIGTERM into ``should_stop()``."""

    def __init__(self) -> None:
        self._stop = False

    def install(self) -> None:
        """Take the signal over; only the main thread may call this."""
        signal.signal(signal.SIGTERM, self._on_signal)

    def __call__(self) -> bool:
        return self._stop

    def _on_signal(self, _signal_number: int, _frame: object) -> None:
        self._stop = True


def watch_lifeline(lifeline_fd: int, silence_seconds: float, on_dead: Callable[[], None]) -> None:
    """Call ``on_dead`` at the lifeline's end of file, or when no byte came for ``silence_seconds``."""
    deadline = time.monotonic() + silence_seconds
    while True:
        readable, _, _ = select.select([lifeline_fd], [], [], max(0.0, deadline - time.monotonic()))
        if not readable or not os.read(lifeline_fd, 4096):
            on_dead()
            return
        deadline = time.monotonic() + silence_seconds


def load_entrypoint(entrypoint: str) -> Callable[..., RecipeResult]:
    """Import ``module:function``."""
    module_name, _, function_name = entrypoint.partition(":")
    return getattr(importlib.import_module(module_name), function_name)


def run_recipe(entrypoint: str, workdir: Path, report: PipeReport, should_stop: Callable[[], bool]) -> int:
    """Run the recipe and send its last message; returns the exit code."""
    try:
        config = json.loads((workdir / "job.json").read_text())["config"]
        recipe = load_entrypoint(entrypoint)
        if should_stop():
            raise StopRequested
        report.result(recipe(config, workdir, report, should_stop))
        return protocol.EXIT_OK
    except StopRequested:
        report.send({"type": protocol.STOPPED})
        return protocol.EXIT_STOPPED
    except FailedWithResult as failed:
        report.failure(failed.error, failed.result)
        return protocol.EXIT_ERROR
    except MartletError as error:
        report.failure(error)
        return protocol.EXIT_ERROR
    except Exception as error:  # noqa: BLE001  # whatever a recipe raises must reach the supervisor
        text = traceback.format_exc()
        print(text, file=sys.stderr, flush=True)
        report.send(
            {
                "type": protocol.CRASH,
                "exception": type(error).__name__,
                "message": str(error),
                "traceback": text[-_TRACEBACK_CHARACTERS:],
            }
        )
        return protocol.EXIT_CRASH


def _kill_own_group() -> None:
    os.killpg(os.getpgid(0), signal.SIGKILL)


def main(argv: list[str]) -> int:
    """Entry of ``python -m martlet_core.child``."""
    should_stop = StopFlag()
    should_stop.install()  # before the recipe's imports, which take seconds: a SIGTERM meanwhile must not kill
    faulthandler.enable()
    entrypoint, workdir = argv[1], Path(argv[2])
    report_fd, lifeline_fd, silence_seconds = protocol.take_pipes()
    threading.Thread(
        target=watch_lifeline, args=(lifeline_fd, silence_seconds, _kill_own_group), name="lifeline", daemon=True
    ).start()
    return run_recipe(entrypoint, workdir, PipeReport(report_fd, workdir), should_stop)


if __name__ == "__main__":
    # Leave without waiting for threads that a library left behind; everything of ours is flushed.
    exit_code = main(sys.argv)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)
