#!/usr/bin/env bash
# Format, lint, types, layers, contracts and stub drift. Goes through all of them and fails at the end if one failed.
set -euo pipefail
cd "$(dirname "$0")/.."

envs=.martlet/envs
bin=$envs/dev/bin
failures=()

scripts/bootstrap.sh cli dev protos
export PATH="$PWD/$bin:$PATH"

# check NAME COMMAND...: run one check and note whether it failed.
check() {
  local name=$1 start=$SECONDS; shift
  echo "== lint: $name"
  "$@" || failures+=("$name")
  echo "== lint: $name took $((SECONDS - start)) s"
}

# types PYTHON PATH...: pyright (standard mode, pyproject.toml) with the packages of one environment.
types() {
  local python=$1; shift
  if [ -x "$python" ]; then
    pyright --pythonpath "$python" "$@"
  else
    echo "skipped: $python isn't there; make it with: .martlet/envs/cli/bin/martlet env sync"
  fi
}

breaking() {
  # Against the newest tag that has contracts, else against the newest commit that changed them, before the present one.
  local against
  against=$(git tag --sort=-creatordate --merged HEAD 2>/dev/null | while read -r tag; do
    git ls-tree -r --name-only "$tag" protos 2>/dev/null | grep -q '\.proto$' && { echo "$tag"; break; }
  done || true)
  if [ -z "$against" ]; then against=$(git rev-list -n 1 HEAD~1 -- protos 2>/dev/null || true); fi
  if [ -z "$against" ]; then
    echo "skipped: no earlier commit or tag has contracts to compare with"
    return 0
  fi
  local old; old=$(mktemp -d)
  git archive "$against" protos third_party buf.yaml | tar -x -C "$old"
  local status=0
  buf breaking --against "$old" || status=$?
  rm -rf "$old"
  echo "compared with $against"
  return $status
}

layers() {
  # From the sources: no environment holds all the services.
  PYTHONPATH=$(echo libs/*/src services/*/src | tr ' ' ':') lint-imports
}

drift() {
  local fresh; fresh=$(mktemp -d)
  scripts/gen_protos.sh "$envs/protos/bin/python" "$fresh" &&
    diff -r --exclude=__pycache__ "$fresh/martlet" libs/core/src/martlet ||
    { echo "the committed stubs differ from protos/: run make protos"; rm -rf "$fresh"; return 1; }
  rm -rf "$fresh"
}

largest() {
  # For people: nothing fails here. Generated stubs are left out.
  git ls-files '*.py' | grep -v '^libs/core/src/martlet/' | xargs wc -l | sort -rn | sed -n '2,11p'
}

check "format" ruff format --check --output-format concise .
check "ruff" ruff check --output-format concise .
check "types of inputs" types "$envs/trainer/bin/python" libs/inputs/src
check "types of core, gateway and command" types "$envs/dev/bin/python" libs/core/src/martlet_core libs/cli/src services/gateway/src
# Its trackers have an environment of their own.
# shellcheck disable=SC2046
check "types of the trainer" types "$envs/trainer/bin/python" $(find services/trainer/src/martlet_trainer -mindepth 1 -maxdepth 1 -not -name tracking -not -name __pycache__)
check "types of the trackers" types "$envs/trainer-tracking/bin/python" services/trainer/src/martlet_trainer/tracking
check "types of the quantizer" types "$envs/quantizer-bnb/bin/python" services/quantizer/src
check "types of the evaluator" types "$envs/evaluator-transformers/bin/python" services/evaluator/src
check "types of inference" types "$envs/inference/bin/python" services/inference/src
check "layers" layers
check "contracts" buf lint
check "contracts, breaking" breaking
check "stub drift" drift
check "the ten largest files" largest

if [ ${#failures[@]} -gt 0 ]; then
  printf 'lint failed: %s\n' "${failures[@]}"
  exit 1
fi
echo "lint passed"
