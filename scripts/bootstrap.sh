#!/usr/bin/env bash
# Make the environment of the `martlet` command on a bare machine: Python 3.11 and its pip, no root, no Docker.
# Fast when it is there already. MARTLET_PYTHON names another interpreter than `python3.11`.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
cli=${MARTLET_ENVIRONMENTS:-$root/.martlet/envs}/cli

fail() { echo "error: $1" >&2; exit 1; }

if [ ! -x "$cli/bin/uv" ]; then
  python=${MARTLET_PYTHON:-python3.11}
  command -v "$python" >/dev/null ||
    fail "$python isn't there. Install Python 3.11 (Debian 12: apt install python3.11 python3-pip; or pyenv, or uv python install 3.11), or set MARTLET_PYTHON."
  "$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' ||
    fail "$python is $("$python" --version 2>&1); the environments are locked for Python 3.11. Set MARTLET_PYTHON to one."
  uv=$(grep '^uv==' libs/cli/requirements.txt)
  # No ensurepip: Debian ships it in a package of its own. The system's pip installs into the new environment.
  "$python" -m venv --without-pip "$cli"
  if "$python" -m pip --version >/dev/null 2>&1; then
    "$python" -m pip --python "$cli/bin/python" install --quiet --disable-pip-version-check "$uv" ||
      fail "pip couldn't install $uv; its message is above."
  elif command -v uv >/dev/null; then
    uv pip install --quiet --python "$cli/bin/python" "$uv"
  else
    fail "$python has no pip. Install it (Debian, Ubuntu: apt install python3-pip), or put uv on PATH."
  fi
fi
exec env PYTHONPATH="$root/libs/cli/src:$root/libs/core/src" MARTLET_ROOT="$root" "$cli/bin/python" -m martlet_cli.environments "${@:-cli}"
