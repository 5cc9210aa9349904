#!/bin/sh
# Inside the build of an image: make a virtual environment that holds a lock and nothing else.
#
#   environment.sh DIRECTORY LOCK [BUILT]
#
# BUILT, if it is there, names packages that are built from source against what the lock brought, without their own
# dependencies. torch's CPU build isn't on PyPI: it comes from the named build context `wheels` (mounted at /wheels) where
# that holds one, else from the index in TORCH_INDEX.
set -eu
directory=$1 lock=$2 built=${3:-}

export UV_INDEX_STRATEGY=unsafe-best-match UV_PYTHON_DOWNLOADS=never UV_LINK_MODE=copy UV_SYSTEM_CERTS=true
# Nobody can write bytecode into a read-only image, and without it every start compiles the libraries anew.
export UV_COMPILE_BYTECODE=1
if ls /wheels/*.whl >/dev/null 2>&1; then
  export UV_FIND_LINKS=/wheels
elif grep -q '^torch==.*+cpu' "$lock"; then
  export UV_INDEX="$TORCH_INDEX"
fi

uv venv --quiet --python /usr/local/bin/python "$directory"
uv pip sync --python "$directory/bin/python" "$lock"
if [ -n "$built" ] && [ -f "$built" ]; then
  uv pip install --python "$directory/bin/python" --no-deps --no-build-isolation -r "$built"
fi
# The sources lie in a directory of their own, so that a change of code doesn't touch this layer.
echo /opt/martlet/sources >"$("$directory/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')/martlet.pth"
