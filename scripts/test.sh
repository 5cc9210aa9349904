#!/usr/bin/env bash
# Every test this machine can run, each set in the environment it belongs to. Arguments go to each pytest.
# Tests of the trainer's recipes need torch and run in `trainer-test`; everything else runs in `dev` and starts real
# services from their own environments.
set -euo pipefail
cd "$(dirname "$0")/.."
# Many processes import torch here; without bytecode each would compile it anew.
unset PYTHONDONTWRITEBYTECODE

dev=.martlet/envs/dev/bin/python
trainer=.martlet/envs/trainer-test/bin/python
begun=$SECONDS
passed=0 failed=0 skipped=0

scripts/bootstrap.sh cli dev gateway trainer trainer-test inference

# run NAME PYTHON PATH... -- [PYTEST OPTION...]: one pytest; its counts are added up.
run() {
  local name=$1 python=$2; shift 2
  local paths=()
  while [ $# -gt 0 ] && [ "$1" != -- ]; do
    if [ -n "$(find "$1" -name 'test_*.py' -print -quit 2>/dev/null)" ]; then paths+=("$1"); fi
    shift
  done
  [ $# -gt 0 ] && shift
  if [ ${#paths[@]} -eq 0 ]; then return 0; fi
  echo "== test: $name"
  local start=$SECONDS log status=0
  log=$(mktemp)
  "$python" -m pytest -q --color=no --durations=12 --durations-min=5 "$@" "${paths[@]}" 2>&1 | tee "$log" || status=$?
  # 5: nothing was selected (a -k that fits elsewhere).
  if [ "$status" -ne 0 ] && [ "$status" -ne 5 ] && ! grep -qE '[0-9]+ (failed|error)' "$log"; then failed=$((failed + 1)); fi
  passed=$((passed + $(count passed "$log")))
  failed=$((failed + $(count failed "$log") + $(count 'errors?' "$log")))
  skipped=$((skipped + $(count skipped "$log")))
  rm -f "$log"
  echo "== test: $name took $((SECONDS - start)) s"
}

# count WORD LOG: the number in pytest's closing line.
count() { tail -n 1 "$2" | grep -oE "[0-9]+ $1" | grep -oE '^[0-9]+' || echo 0; }

run "unit" "$dev" tests/unit/core tests/unit/gateway tests/unit/cli tests/unit/inference -- "$@"
run "unit, trainer" "$trainer" tests/unit/trainer -- "$@"
run "contract" "$dev" tests/contract -- "$@"
run "integration" "$dev" tests/integration -- "$@"
run "faults" "$dev" tests/faults -- "$@"
run "gpu" "$trainer" tests/gpu -- "$@"

echo "== tests took $((SECONDS - begun)) s, $skipped skipped (the reasons are above)"
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
