"""Runs one step of a job in a process of its own: quantizing, and each measurement.

So that a step's peak memory is its own, what is measured comes from disk and not from memory, a library's call can be
stopped in the middle, and another family's environment can be asked to load a model. ``step`` is the other end.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from martlet_core.errors import FailedPrecondition, Internal, error_from_dict
from martlet_core.recipe import Report, ShouldStop, StopRequested

#: How often ``should_stop`` is asked.
_POLL_SECONDS = 0.2
REPORT_FD = "MARTLET_STEP_FD"


def run_step(
    name: str,
    arguments: Mapping[str, Any],
    report: Report,
    should_stop: ShouldStop,
    *,
    workdir: Path,
    python: str = sys.executable,
) -> Mapping[str, Any]:
    """Run a step and return what it says at its end.

    Args:
        name: ``quantize``, ``measure`` or ``engine``.
        arguments: JSON-ready.
        report: takes the step's log lines and progress.
        should_stop: ends the step's process at once.
        workdir: where the arguments are written.
        python: of the environment to run in.

    Raises:
        StopRequested: ``should_stop`` said so.
        MartletError: the step's own.
        FailedPrecondition: a library refused the model.
        Internal: the process died.
    """
    file = workdir / f"step-{name}.json"
    file.write_text(json.dumps(arguments))
    read, write = os.pipe()
    try:
        process = subprocess.Popen(
            [python, "-m", "martlet_quantizer.step", name, str(file)],
            env=_environment(os.environ) | {REPORT_FD: str(write)},
            stdin=subprocess.DEVNULL,
            pass_fds=(write,),
        )
    finally:
        os.close(write)
    try:
        final = _listen(read, report, should_stop)
    except BaseException:
        process.kill()
        raise
    finally:
        os.close(read)
        process.wait()
    return _judge(name, final, process.returncode)


def _environment(base: Mapping[str, str]) -> dict[str, str]:
    env = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "TOKENIZERS_PARALLELISM": "false", **base}
    return env | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


def _listen(fd: int, report: Report, should_stop: ShouldStop) -> Mapping[str, Any] | None:
    """Pass on what the step says, up to the end of its pipe; returns its last word."""
    final: Mapping[str, Any] | None = None
    rest = b""
    while True:
        if should_stop():
            raise StopRequested
        if not select.select([fd], [], [], _POLL_SECONDS)[0]:
            continue
        data = os.read(fd, 65536)
        if not data:
            return final
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if message["type"] == "log":
                report.log(message["message"])
            elif message["type"] == "progress":
                report.metrics(message["step"], message["total"], message["values"])
            else:
                final = message


def _judge(name: str, final: Mapping[str, Any] | None, exit_code: int) -> Mapping[str, Any]:
    if final is None:
        how = f"was killed by signal {-exit_code}" if exit_code < 0 else f"ended with exit code {exit_code}"
        hint = "; the kernel does so when memory runs out" if exit_code == -9 else ""
        raise Internal(f"The process of the step {name!r} {how}{hint}.", reason="PROCESS_DIED")
    if final["type"] == "result":
        return final["values"]
    if final["type"] == "error":
        raise error_from_dict(final["error"])
    text = f"The step {name!r} failed: {final['exception']}: {final['message']}"
    if final["may_pass"]:
        raise Internal(text, reason="STEP_FAILED", metadata={"traceback": final["traceback"]})
    raise FailedPrecondition(text, reason="METHOD_FAILED", metadata={"traceback": final["traceback"]})
