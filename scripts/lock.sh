#!/usr/bin/env bash
# Write the locks that hold no ML library: the command's, the tests', the linters', the stub generator's.
# Usage: scripts/lock.sh [UV]    The services' own locks are described in their README.
set -euo pipefail
cd "$(dirname "$0")/.."
uv=${1:-uv}
# No index or find-links lines: where packages come from is the machine's business, not the lock's.
compile() {
  "$uv" pip compile --quiet --python-version 3.11 --no-header --no-annotate --no-emit-index-url --no-emit-find-links \
    --no-emit-package martlet --no-emit-package martlet-core --no-emit-package martlet-gateway \
    --no-emit-package martlet-inference "$@"
}
compile libs/cli/pyproject.toml -o libs/cli/requirements.txt
compile requirements.dev.in -o requirements.dev.txt
# The trainer's tests run in the trainer's own environment; these come on top of its lock and must not touch it.
compile requirements.test.in -c requirements.dev.txt -o requirements.test.txt
# The chart's tests run in an environment of their own: Helm and the schemas of Kubernetes are 350 MB.
compile deploy/requirements.in -c requirements.dev.txt -o deploy/requirements.txt
compile scripts/requirements.protos.in -o scripts/requirements.protos.txt
