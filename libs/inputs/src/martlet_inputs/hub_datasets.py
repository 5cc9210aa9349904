"""Data sets of hubs, laid out as a job's inputs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from martlet_core.hub import snapshot
from martlet_core.recipe import Report

#: A part of a path that says which rows a file has, in the hubs' usual words.
_TRAINING = re.compile(r"(^|[/_.-])train([/_.-]|$)")


def link_hub_datasets(datasets: Mapping[str, str], cache_dir: Path, workdir: Path, report: Report) -> None:
    """Bring data sets to ``workdir/inputs/<name>``: of one that has files of its training rows, by their names, these alone.

    Args:
        datasets: hub id by the name of its directory.
        cache_dir: cache of what comes from hubs.
        workdir: of the job.
        report: told about phases, and which files are used.

    Raises:
        NotFound, FailedPrecondition, Unavailable: as ``martlet_core.hub.snapshot``.
    """
    for name, dataset in datasets.items():
        report.phase("fetching data sets")
        directory = snapshot(dataset, cache_dir, "dataset")
        files = {path.relative_to(directory).as_posix(): path for path in directory.rglob("*") if path.is_file()}
        training = {relative: path for relative, path in files.items() if _TRAINING.search(relative)}
        for relative, path in (training or files).items():
            link = workdir / "inputs" / name / relative
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path.resolve())
        left = (
            f"; {len(files) - len(training)} of other splits are left out"
            if training and len(training) < len(files)
            else ""
        )
        report.log(f"{dataset}: {len(training or files)} files{left}")
