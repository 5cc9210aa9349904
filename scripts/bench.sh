#!/usr/bin/env bash
# Every benchmark, one after the other; tables on the terminal, JSON in benchmarks/results/.
# Usage: scripts/bench.sh [NAME...]    names of files in benchmarks/, without .py; default: all that are commands.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/bootstrap.sh cli dev gateway trainer inference evaluator evaluator-transformers quantizer-bnb quantizer-llmcompressor quantizer-gguf quantizer-awq quantizer-gptqmodel
python=.martlet/envs/dev/bin/python
names=("$@")
if [ ${#names[@]} -eq 0 ]; then
  # Helpers beside the benchmarks (a load generator, say) write no results.
  mapfile -t names < <(grep -l "RESULTS = " benchmarks/*.py | xargs -n1 basename -s .py | sort)
fi
for name in "${names[@]}"; do
  echo "== benchmark: $name"
  start=$SECONDS
  "$python" "benchmarks/$name.py"
  echo "== benchmark: $name took $((SECONDS - start)) s"
done
"$python" benchmarks/report.py
