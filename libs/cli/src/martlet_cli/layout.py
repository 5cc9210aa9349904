"""Where things lie: the repository, the environments, and the home of one running platform.

Standard library only: ``scripts/bootstrap.sh`` runs this before anything is installed.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Layout:
    """Paths that the launcher and the commands share.

    Attributes:
        root: the repository.
        home: of one platform: data, logs, state, secrets (``MARTLET_HOME``; default ``<root>/.martlet``).
        environments: virtual environments, shared by all homes (``MARTLET_ENVIRONMENTS``; default
            ``<root>/.martlet/envs``).
        models: prepared base models, shared by all homes (``MARTLET_MODELS_DIR``; default ``<root>/.martlet/models``).
    """

    root: Path
    home: Path
    environments: Path
    models: Path

    @classmethod
    def discover(cls, home: Path | None = None) -> Layout:
        """Find the repository and read the ``MARTLET_*`` overrides.

        Raises:
            FileNotFoundError: if the repository can't be found.
        """
        root = _find_root()
        chosen = home or Path(os.environ.get("MARTLET_HOME") or root / ".martlet")
        environments = Path(os.environ.get("MARTLET_ENVIRONMENTS") or root / ".martlet" / "envs")
        models = Path(os.environ.get("MARTLET_MODELS_DIR") or root / ".martlet" / "models")
        return cls(root, chosen.absolute(), environments.absolute(), models.absolute())

    @property
    def data(self) -> Path:
        """Data of Valkey and SeaweedFS."""
        return self.home / "data"

    @property
    def logs(self) -> Path:
        """One file a process."""
        return self.home / "logs"

    @property
    def state_file(self) -> Path:
        """Pids, ports and start times of what runs."""
        return self.home / "state.json"

    @property
    def secrets_file(self) -> Path:
        """Secrets made once (mode 0600)."""
        return self.home / "secrets.json"

    @property
    def client_file(self) -> Path:
        """Base URL and API key for the commands (mode 0600)."""
        return self.home / "client.json"

    def python(self, environment: str) -> Path:
        """The interpreter of an environment."""
        return self.environments / environment / "bin" / "python"


def make_home(layout: Layout) -> None:
    """Make the home's directories; data and logs (they hold the first API key) are for their owner alone."""
    layout.home.mkdir(parents=True, exist_ok=True)
    for directory in (layout.data, layout.logs):
        directory.mkdir(exist_ok=True)
        directory.chmod(0o700)


def _find_root() -> Path:
    named = os.environ.get("MARTLET_ROOT")
    if named:
        return Path(named).absolute()
    for directory in [*Path(__file__).resolve().parents, Path.cwd()]:
        if (directory / "libs" / "core" / "pyproject.toml").is_file():
            return directory
    raise FileNotFoundError("the Martlet repository can't be found; set MARTLET_ROOT to its directory")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is no such file."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return {}


def write_json(path: Path, value: Any, mode: int = 0o644) -> None:
    """Write a JSON file atomically, never readable by more than ``mode`` says, not even for a moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # made with mode 0600
    try:
        with os.fdopen(handle, "w") as stream:
            json.dump(value, stream, indent=2)
            stream.write("\n")
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
