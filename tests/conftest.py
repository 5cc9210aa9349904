"""Fixtures for all tests, and the reasons why some can't run here."""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache

import pytest

pytest_plugins = ["martlet_core.testing.fixtures"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this machine can't run, saying why."""
    checks = {"gpu": _gpu_missing, "docker": _docker_missing}
    for item in items:
        for marker, missing in checks.items():
            if item.get_closest_marker(marker) and (reason := missing()):
                item.add_marker(pytest.mark.skip(reason=reason))


@cache
def _gpu_missing() -> str:
    if os.environ.get("MARTLET_GPU_TESTS") == "cpu":
        return ""  # the tests themselves are tried, see tests/gpu/conftest.py
    return _command_fails(("nvidia-smi", "-L"), "no NVIDIA GPU")


@cache
def _docker_missing() -> str:
    return _command_fails(("docker", "info"), "no Docker engine")


def _command_fails(argv: tuple[str, ...], what: str) -> str:
    """Empty if the command succeeds; otherwise the reason to skip."""
    if shutil.which(argv[0]) is None:
        return f"{what}: {argv[0]} is not on PATH"
    try:
        done = subprocess.run(argv, capture_output=True, timeout=20, check=False)
    except subprocess.TimeoutExpired:
        return f"{what}: {' '.join(argv)} doesn't answer"
    return "" if done.returncode == 0 else f"{what}: {' '.join(argv)} failed"
