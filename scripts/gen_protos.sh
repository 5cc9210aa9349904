#!/usr/bin/env bash
# Generate the Python stubs of protos/ into libs/core/src/martlet (committed, never edited).
# Usage: scripts/gen_protos.sh [PYTHON] [OUT]   PYTHON holds grpcio-tools 1.71.2; OUT defaults to libs/core/src.
# Stubs newer than the runtime never load, so the generator is old (protobuf 5.29) and runs in the dev environment only.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-python3}
out=${2:-libs/core/src}
mkdir -p "$out/martlet"
find "$out/martlet" -name '*_pb2*' -delete
mapfile -t protos < <(find protos -name '*.proto' | sort)
"$python" -m grpc_tools.protoc -I protos -I third_party/googleapis \
  --python_out="$out" --pyi_out="$out" --grpc_python_out="$out" "${protos[@]}"
# Importable packages, all the way down.
find "$out/martlet" -type d -exec touch {}/__init__.py \;
