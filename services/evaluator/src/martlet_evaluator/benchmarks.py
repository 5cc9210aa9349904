"""The harness's stock tasks by name, and where their data lies. Imports nothing of the harness: ``serve`` uses it too."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from martlet_core.errors import InvalidArgument
from martlet_inputs.rows.read import data_files

from martlet_evaluator.config import close_to
from martlet_evaluator.suite_options import LmEvalTask

#: ``inputs/`` directory of a task's own data set, before the task's name.
INPUT_PREFIX = "benchmark-"
_TASK = re.compile(rb"""^["']?task["']?:[ \t]*["']?([\w.-]+)["']?[ \t]*(?:#.*)?\r?$""", re.MULTILINE)
_SPLITS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "dev": "validation",
    "val": "validation",
    "test": "test",
}


@cache
def stock_tasks() -> Mapping[str, Path]:
    """Every single task of the installed harness, with its file. Groups (``mmlu``) are not tasks: name their parts."""
    found = importlib.util.find_spec("lm_eval")
    if found is None or found.origin is None:
        return {}
    tasks: dict[str, Path] = {}
    for path in sorted((Path(found.origin).parent / "tasks").rglob("*.yaml")):
        if match := _TASK.search(path.read_bytes()):
            tasks.setdefault(match[1].decode(), path)
    return tasks


def task_file(name: str) -> Path:
    """The file of a stock task.

    Raises:
        InvalidArgument: there is none, with close matches.
    """
    tasks = stock_tasks()
    if name not in tasks:
        parts = [task for task in tasks if task.startswith(f"{name}_")]
        hint = f"it may be a group; name its tasks ({', '.join(parts[:3])} …)" if parts else _close(name, tasks)
        raise InvalidArgument.field("task", f"is {name!r}, no stock task of the harness; {hint}", reason="UNKNOWN_TASK")
    return tasks[name]


def _close(name: str, tasks: Mapping[str, Path]) -> str:
    text = close_to(name, list(tasks))
    return text if text.startswith("did you") else f"there are {len(tasks)}"


def data_of(task: LmEvalTask, inputs: Mapping[str, Path], benchmarks_dir: Path | None) -> Path | None:
    """Where a task's data lies: its own data set, the operator's directory, or the job's data set; None if nowhere."""
    if (own := inputs.get(INPUT_PREFIX + task.task)) is not None:
        return own
    if benchmarks_dir is not None and (benchmarks_dir / task.task).is_dir():
        return benchmarks_dir / task.task
    return inputs.get("dataset")


def split_files(path: Path, evaluated: str) -> dict[str, Path]:
    """Data files by split: by their names (train, validation, test), or the only file for the split that is evaluated.

    Raises:
        InvalidArgument: there are several files and their names don't say.
    """
    files = data_files(path)
    named = {_SPLITS[file.stem.lower()]: file for file in files if file.stem.lower() in _SPLITS}
    if len(files) == 1 and not named:
        return {evaluated: files[0]}
    if len(named) != len(files):
        raise InvalidArgument(
            f"{path.name} holds {', '.join(file.name for file in files)}; name the files train, validation or test"
        )
    if evaluated not in named:  # a benchmark's authors call its held-out rows now this, now that
        for other in ("test", "validation"):
            if other in named:
                named[evaluated] = named.pop(other)
                break
    return named
