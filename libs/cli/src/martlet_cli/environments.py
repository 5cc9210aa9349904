"""Make each environment from its lock: ``.martlet/envs/<name>``, reused while the lock is the same.

Standard library only: ``scripts/bootstrap.sh`` makes the command's own environment with
``python -m martlet_cli.environments cli`` before anything is installed.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from martlet_core.errors import FailedPrecondition, InvalidArgument, MartletError

from martlet_cli.layout import Layout, read_json, write_json
from martlet_cli.pip_config import base_python, pip_options, uv_environment

PYTHON = (3, 11)
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
STAMP = "martlet-stamp.json"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Environment:
    """One environment.

    Attributes:
        locks: lock files relative to the repository; ``{accelerator}`` stands for ``cpu`` or ``cuda``.
        projects: directories installed from their place (editable), without their dependencies.
        purpose: in a few words.
        built: lock files of packages that are built from source against what the other locks brought, and without their
            own dependencies.
    """

    locks: tuple[str, ...]
    projects: tuple[str, ...]
    purpose: str
    built: tuple[str, ...] = ()


def _quantizer(family: str, *, built: bool = False, tests: bool = False) -> Environment:
    """The environment of one family of quantization methods."""
    home = f"services/quantizer/envs/{family}"
    return Environment(
        (f"{home}/requirements.{{accelerator}}.txt", *(("requirements.test.txt",) if tests else ())),
        ("libs/core", "libs/inputs", "services/quantizer"),
        f"quantizer, methods of the family {family}" + (", with pytest beside" if tests else ""),
        (f"{home}/requirements.built.txt",) if built else (),
    )


ENVIRONMENTS: Mapping[str, Environment] = {
    "cli": Environment(
        ("libs/cli/requirements.txt",), ("libs/core", "libs/cli"), "the martlet command, Valkey, SeaweedFS"
    ),
    "gateway": Environment(
        ("services/gateway/requirements.cpu.txt",),  # it computes nothing: the same everywhere
        ("libs/core", "services/gateway"),
        "gateway",
    ),
    "trainer": Environment(
        ("services/trainer/requirements.{accelerator}.txt",),
        ("libs/core", "libs/inputs", "services/trainer"),
        "trainer",
    ),
    "trainer-tracking": Environment(
        ("services/trainer/envs/tracking/requirements.cpu.txt",),  # it computes nothing: the same everywhere
        ("libs/core", "libs/inputs", "services/trainer"),
        "the trainer's trackers: TensorBoard, W&B, MLflow",
    ),
    "inference": Environment(
        ("services/inference/requirements.{accelerator}.txt",),
        ("libs/core", "services/inference"),
        "inference with vLLM",
    ),
    "inference-transformers": Environment(
        ("services/inference/envs/transformers/requirements.{accelerator}.txt",),
        ("libs/core", "services/inference"),
        "inference with transformers",
    ),
    "quantizer": Environment(
        ("services/quantizer/requirements.cpu.txt",),  # its `serve`, which computes nothing: the same everywhere
        ("libs/core", "libs/inputs", "services/quantizer"),
        "quantizer's API",
    ),
    "quantizer-bnb": _quantizer("bnb"),
    "quantizer-llmcompressor": _quantizer("llmcompressor"),
    "quantizer-gguf": _quantizer("gguf"),
    "quantizer-awq": _quantizer("awq", built=True),
    "quantizer-gptqmodel": _quantizer("gptqmodel", built=True),
    "quantizer-bnb-test": _quantizer("bnb", tests=True),
    "quantizer-llmcompressor-test": _quantizer("llmcompressor", tests=True),
    "quantizer-gguf-test": _quantizer("gguf", tests=True),
    "quantizer-awq-test": _quantizer("awq", built=True, tests=True),
    "quantizer-gptqmodel-test": _quantizer("gptqmodel", built=True, tests=True),
    "evaluator": Environment(
        ("services/evaluator/requirements.cpu.txt",),  # targets are asked over HTTP: the same everywhere
        ("libs/core", "libs/inputs", "services/evaluator"),
        "evaluator, with targets behind the gateway",
    ),
    "evaluator-transformers": Environment(
        ("services/evaluator/envs/transformers/requirements.{accelerator}.txt",),
        ("libs/core", "libs/inputs", "services/evaluator"),
        "evaluator, with targets in its own process",
    ),
    "dev": Environment(
        ("requirements.dev.txt",),
        ("libs/core", "libs/inputs", "libs/cli", "services/gateway", "services/inference"),
        "tests and linters, no ML library",
    ),
    "trainer-test": Environment(
        ("services/trainer/requirements.{accelerator}.txt", "requirements.test.txt"),
        ("libs/core", "libs/inputs", "services/trainer"),
        "the trainer's environment with pytest beside",
    ),
    "trainer-tracking-test": Environment(
        ("services/trainer/envs/tracking/requirements.cpu.txt", "requirements.test.txt"),
        ("libs/core", "libs/inputs", "services/trainer"),
        "the trackers' environment with pytest beside",
    ),
    "evaluator-test": Environment(
        ("services/evaluator/requirements.cpu.txt", "requirements.test.txt"),
        ("libs/core", "libs/inputs", "services/evaluator"),
        "the evaluator's environment with pytest beside",
    ),
    "swap-example": Environment(("examples/swap/requirements.txt",), (), "the foreign evaluator of examples/swap"),
    "deploy": Environment(
        ("requirements.dev.txt", "deploy/requirements.txt"),
        (
            *("libs/core", "libs/inputs", "libs/cli", "services/gateway", "services/trainer", "services/quantizer"),
            *("services/evaluator", "services/inference"),
        ),
        "tests of the Helm chart: Helm, and Kubernetes' schemas",
    ),
    "protos": Environment(("scripts/requirements.protos.txt",), (), "the stub generator"),
}


def accelerator(environ: Mapping[str, str] | None = None) -> str:
    """``cuda`` where an NVIDIA driver answers, else ``cpu``; ``MARTLET_ACCELERATOR`` decides if it is set.

    Raises:
        InvalidArgument: if the variable holds something else.
    """
    named = (os.environ if environ is None else environ).get("MARTLET_ACCELERATOR", "")
    if named in ("cpu", "cuda"):
        return named
    if named:
        raise InvalidArgument.field("MARTLET_ACCELERATOR", f"{named!r} isn't known; it must be cpu or cuda")
    tool = shutil.which("nvidia-smi")
    if tool and subprocess.run([tool, "-L"], capture_output=True, check=False).returncode == 0:
        return "cuda"
    return "cpu"


def check_python(version: tuple[int, int] | None = None) -> None:
    """Raise FailedPrecondition unless Python is 3.11: the locks were made for it and nothing else was tried."""
    found = version or sys.version_info[:2]
    if tuple(found) != PYTHON:
        raise FailedPrecondition(
            f"Python {found[0]}.{found[1]} can't be used: the environments are locked for "
            f"{PYTHON[0]}.{PYTHON[1]}. Install that (Debian, Ubuntu: python3.11; or pyenv, or uv python install 3.11) "
            "and run scripts/bootstrap.sh with MARTLET_PYTHON set to it."
        )


def lock_files(layout: Layout, name: str, kind: str) -> list[Path]:
    """The lock files of an environment, without those of packages that are built (``Environment.built``).

    Raises:
        InvalidArgument: if the name isn't known.
        FailedPrecondition: if a file isn't there.
    """
    if name not in ENVIRONMENTS:
        raise InvalidArgument(f"there is no environment {name!r}; known are {', '.join(ENVIRONMENTS)}")
    files = [layout.root / lock.format(accelerator=kind) for lock in ENVIRONMENTS[name].locks]
    for file in [*files, *(layout.root / lock for lock in ENVIRONMENTS[name].built)]:
        if not file.is_file():
            raise FailedPrecondition(
                f"environment {name}: its lock {file.relative_to(layout.root)} is missing. Write it with "
                "`uv pip compile` (docs/operations.md, Environments), or choose the other kind by MARTLET_ACCELERATOR."
            )
    return files


def stamp_of(layout: Layout, name: str, kind: str) -> dict[str, str]:
    """What an environment is made of; it is remade when this changes."""
    digest = hashlib.sha256()
    for file in [*lock_files(layout, name, kind), *(layout.root / lock for lock in ENVIRONMENTS[name].built)]:
        digest.update(file.read_bytes() + b"\0")
    for project in ENVIRONMENTS[name].projects:  # entry points and the place of the sources
        file = layout.root / project / "pyproject.toml"
        if not file.is_file():
            raise FailedPrecondition(f"environment {name}: {project}/pyproject.toml is missing")
        digest.update(str(file).encode() + b"\0" + file.read_bytes() + b"\0")
    return {"sha256": digest.hexdigest(), "python": sys.version.split()[0], "accelerator": kind}


def is_current(layout: Layout, name: str, kind: str) -> bool:
    """Whether the environment is there and made from the lock as it is now."""
    stamp = layout.environments / name / STAMP
    return layout.python(name).exists() and read_json(stamp) == stamp_of(layout, name, kind)


@contextmanager
def exclusively(layout: Layout, name: str, say: Say) -> Iterator[None]:
    """Hold the environment against other processes."""
    layout.environments.mkdir(parents=True, exist_ok=True)
    with open(layout.environments / f".{name}.lock", "w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"{name}: another process is making this environment, waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def sync(layout: Layout, name: str, *, say: Say = print, force: bool = False) -> float:
    """Make an environment, or leave it as it is when its lock hasn't changed. Returns the seconds it took.

    Args:
        say: takes lines about the progress.
        force: remake it even if it is current.

    Raises:
        FailedPrecondition: with the reason and the remedy.
    """
    check_python()
    kind = accelerator()
    stamp = stamp_of(layout, name, kind)
    begun = time.monotonic()
    with exclusively(layout, name, say):
        if not force and is_current(layout, name, kind):
            return time.monotonic() - begun
        say(f"{name}: installing ({ENVIRONMENTS[name].purpose}, {kind})")
        _install(layout, name, kind, say)
        write_json(layout.environments / name / STAMP, stamp)
    seconds = time.monotonic() - begun
    say(f"{name}: ready after {seconds:.0f} s")
    return seconds


def _install(layout: Layout, name: str, kind: str, say: Say) -> None:
    directory = layout.environments / name
    stamp = directory / STAMP
    stamp.unlink(missing_ok=True)  # half an environment is none
    uv = find_uv()
    locks = lock_files(layout, name, kind)
    needs_torch = any("torch==" in lock.read_text() for lock in locks)
    index = os.environ.get("MARTLET_TORCH_INDEX") or TORCH_INDEX
    environ = uv_environment(
        pip_options(base_python()), os.environ, torch_index=index if needs_torch and kind == "cpu" else None
    )
    environ.pop("VIRTUAL_ENV", None)
    if not layout.python(name).exists():
        _run([uv, "venv", "--quiet", "--allow-existing", "--python", base_python(), str(directory)], environ, name, say)
    # One call installs the lock and the projects: nothing but the locked packages, and the sources from their place.
    projects = directory / "martlet-projects.txt"
    projects.write_text("".join(f"-e {layout.root / project}\n" for project in ENVIRONMENTS[name].projects))
    _run([uv, "pip", "sync", "--python", str(layout.python(name)), *map(str, locks), str(projects)], environ, name, say)
    for built in ENVIRONMENTS[name].built:
        argv = [uv, "pip", "install", "--python", str(layout.python(name)), "--no-deps", "--no-build-isolation"]
        _run([*argv, "-r", str(layout.root / built)], environ, name, say)


def find_uv() -> str:
    """uv's path: the one beside this interpreter, else the first on PATH.

    Raises:
        FailedPrecondition: if there is none.
    """
    beside = Path(sys.executable).parent / "uv"
    found = str(beside) if beside.is_file() else shutil.which("uv")
    if not found:
        raise FailedPrecondition(
            "uv is missing; run scripts/bootstrap.sh, which installs it into the command's environment"
        )
    return found


def _run(argv: list[str], environ: Mapping[str, str], name: str, say: Say) -> None:
    """Run uv; its lines go to ``say``, and the last of them into the error."""
    process = subprocess.Popen(argv, env=dict(environ), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line.rstrip())
        if not line.startswith((" + ", " - ", " ~ ")):
            say(f"{name}: {line.rstrip()}")
    if process.wait() != 0:
        told = "\n".join(lines[-30:])
        raise FailedPrecondition(
            f"environment {name}: `{' '.join(argv[:3])} …` failed with exit code {process.returncode}:\n{told}"
        )


def describe(layout: Layout) -> list[dict[str, str]]:
    """A row for each environment: name, state (``ready``, ``stale``, ``missing``, ``no lock``), purpose."""
    rows = []
    kind = accelerator()
    for name, environment in ENVIRONMENTS.items():
        try:
            current = is_current(layout, name, kind)
            state = "ready" if current else ("stale" if layout.python(name).exists() else "missing")
        except MartletError:
            state = "no lock"
        rows.append({"name": name, "state": state, "accelerator": kind, "purpose": environment.purpose})
    return rows


def main(argv: list[str]) -> int:
    """``python -m martlet_cli.environments NAME…``: make environments with nothing but the standard library and uv."""
    if not argv or argv[0].startswith("-"):
        print(f"usage: python -m martlet_cli.environments NAME…\nenvironments: {', '.join(ENVIRONMENTS)}")
        return 2
    layout = Layout.discover()
    try:
        for name in argv:
            sync(layout, name)
    except MartletError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
