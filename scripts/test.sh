#!/usr/bin/env bash
# Every test this machine can run, each set in the environment it belongs to. Arguments go to each pytest.
# Tests of the trainer's recipes and of the quantizer's methods need torch and run in environments of their own; everything
# else runs in `dev` and starts real services from theirs.
set -euo pipefail
cd "$(dirname "$0")/.."
# Many processes import torch here; without bytecode each would compile it anew.
unset PYTHONDONTWRITEBYTECODE
# gRPC tells of every connection that a test closes on purpose.
export GRPC_VERBOSITY=ERROR

dev=.martlet/envs/dev/bin/python
trainer=.martlet/envs/trainer-test/bin/python
tracking=.martlet/envs/trainer-tracking-test/bin/python
evaluator=.martlet/envs/evaluator-test/bin/python
begun=$SECONDS
passed=0 failed=0 skipped=0

#: Families of quantization methods whose tests are run; awq and gptqmodel take packages built from source and minutes.
families=${MARTLET_TEST_FAMILIES:-bnb llmcompressor gguf}

# shellcheck disable=SC2086
scripts/bootstrap.sh cli dev deploy gateway trainer trainer-test trainer-tracking trainer-tracking-test inference inference-transformers swap-example evaluator evaluator-test quantizer quantizer-bnb $(printf 'quantizer-%s-test ' $families)

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

# beside LANE: run a function of several sets next to what follows, up to `join`.
beside() {
  beside_log=$(mktemp)
  set -m  # a process group of its own, so that an interrupt reaches its pytest, which then stops what it started
  (
    passed=0 failed=0 skipped=0
    "$1"
    echo "counts $passed $failed $skipped"
  ) >"$beside_log" 2>&1 &
  beside_pid=$!
  set +m
}

# join: wait for the set that runs beside; print what it printed, and add its counts up.
join() {
  local more_passed=0 more_failed=1 more_skipped=0
  wait "$beside_pid" || true
  beside_pid=""
  grep -v '^counts ' "$beside_log" || true
  if grep -q '^counts ' "$beside_log"; then
    read -r _ more_passed more_failed more_skipped < <(grep '^counts ' "$beside_log" | tail -n 1)
  fi
  passed=$((passed + more_passed)) failed=$((failed + more_failed)) skipped=$((skipped + more_skipped))
  rm -f "$beside_log"
}

# count WORD LOG: the number in pytest's closing line.
count() { tail -n 1 "$2" | grep -oE "[0-9]+ $1" | grep -oE '^[0-9]+' || echo 0; }

trap 'if [ -n "${beside_pid:-}" ]; then kill -INT -- "-$beside_pid" 2>/dev/null; wait "$beside_pid"; fi' EXIT

# What computes runs beside what mostly waits: units of the services with ML libraries, and then the replicas' tests, which share
# one vLLM, the trainer's, and those of the stages behind it. Two processes of two threads each would spend the time waiting for
# one another's cores.
export OMP_NUM_THREADS=1
computing() {
  run "unit, trainer" "$trainer" tests/unit/trainer -- "${arguments[@]}"
  run "unit, trackers" "$tracking" tests/unit/trainer_tracking -- "${arguments[@]}"
  for family in $families; do
    run "unit, quantizer, $family" ".martlet/envs/quantizer-$family-test/bin/python" tests/unit/quantizer -- "${arguments[@]}"
  done
  run "unit, evaluator" "$evaluator" tests/unit/evaluator -- "${arguments[@]}"
  # The environment with torch beside pytest is the trainer's; their pins of torch and transformers are the same.
  PYTHONPATH=services/evaluator/src run "unit, models in the evaluator's process" "$trainer" tests/unit/evaluator_local -- "${arguments[@]}"
  run "integration, inference and trainer" "$dev" tests/integration/inference tests/integration/trainer -- "${arguments[@]}"
  run "integration, quantizer and evaluator" "$dev" tests/integration/quantizer tests/integration/evaluator -- "${arguments[@]}"
}
arguments=("$@")
beside computing
run "unit" "$dev" tests/unit/core tests/unit/gateway tests/unit/cli tests/unit/inference -- "$@"
run "unit, deployment" .martlet/envs/deploy/bin/python tests/unit/deploy -- "$@"
run "contract" "$dev" tests/contract -- "$@"
run "integration" "$dev" tests/integration/core tests/integration/gateway tests/integration/platform -- "$@"
join
unset OMP_NUM_THREADS
run "faults" "$dev" tests/faults -- "$@"
run "gpu" "$trainer" tests/gpu -- "$@"

echo "== tests took $((SECONDS - begun)) s, $skipped skipped (the reasons are above)"
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
