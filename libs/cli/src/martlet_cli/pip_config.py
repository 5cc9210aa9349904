"""Hand pip's own configuration on to uv, so that a machine set up for pip needs no second set-up.

Standard library only: ``scripts/bootstrap.sh`` runs this before anything is installed.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Mapping

# pip's option -> (uv's variable, separator between several values)
_HANDED_ON = {
    "index-url": ("UV_DEFAULT_INDEX", " "),
    "extra-index-url": ("UV_INDEX", " "),
    "find-links": ("UV_FIND_LINKS", ","),
    "trusted-host": ("UV_INSECURE_HOST", " "),
    "cert": ("SSL_CERT_FILE", " "),
    "proxy": ("ALL_PROXY", " "),
    "no-index": ("UV_NO_INDEX", " "),
}
# Later ones win, as in pip: the command's section over [global], the environment over files.
_SECTIONS = ("global", "install", ":env:")


def pip_options(python: str) -> dict[str, str]:
    """pip's effective options by long name (``find-links``), from its files and ``PIP_*`` variables.

    Args:
        python: interpreter whose pip is asked. Without a pip only the variables count.
    """
    options = {}
    listing = subprocess.run([python, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False)
    if listing.returncode == 0:
        options = parse_config_list(listing.stdout)
    for name, value in os.environ.items():
        if name.startswith("PIP_") and value:
            options[name.removeprefix("PIP_").lower().replace("_", "-")] = value
    return options


def parse_config_list(text: str) -> dict[str, str]:
    """Options out of ``pip config list``: lines such as ``global.find-links='/wheels'``."""
    found: dict[str, dict[str, str]] = {section: {} for section in _SECTIONS}
    for line in text.splitlines():
        key, equals, literal = line.partition("=")
        section, dot, option = key.strip().rpartition(".")
        if equals and dot and section in found:
            try:
                found[section][option] = str(ast.literal_eval(literal.strip()))
            except (ValueError, SyntaxError) as error:
                raise ValueError(f"pip config list: can't read the line {line!r}") from error
    return {option: value for section in _SECTIONS for option, value in found[section].items()}


def uv_environment(
    pip: Mapping[str, str], base: Mapping[str, str], *, torch_index: str | None = None
) -> dict[str, str]:
    """Variables for uv that make it install from where pip would.

    Args:
        pip: pip's options, see ``pip_options``.
        base: the environment to extend; a ``UV_*`` variable that is set in it wins.
        torch_index: index of PyTorch's own builds, used beside pip's when pip names no find-links.
    """
    environment = dict(base)
    for option, (variable, separator) in _HANDED_ON.items():
        value = separator.join(pip.get(option, "").split())
        if value and not base.get(variable):
            environment[variable] = value
    if torch_index and not environment.get("UV_FIND_LINKS"):
        environment["UV_INDEX"] = " ".join([*environment.get("UV_INDEX", "").split(), torch_index])
    # pip takes the best version over all its indexes; uv by itself stops at the first index that knows a name.
    environment.setdefault("UV_INDEX_STRATEGY", "unsafe-best-match")
    environment.setdefault("UV_PYTHON_DOWNLOADS", "never")
    if "timeout" in pip or "default-timeout" in pip:
        environment.setdefault("UV_HTTP_TIMEOUT", pip.get("timeout") or pip["default-timeout"])
    return environment


def base_python() -> str:
    """The interpreter outside the virtual environment that runs this: its pip is the one people configure."""
    return getattr(sys, "_base_executable", sys.executable) or sys.executable
