"""Makes Python modules of the contracts with grpcio-tools, at each start, in a directory that goes away with the process.

Import the modules through here: ``from evaluator.stubs import jobs_pb``.
"""

from __future__ import annotations

import atexit
import importlib
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from grpc_tools import protoc

_REPOSITORY = Path(__file__).resolve().parents[3]
_PROTOS = Path(os.environ.get("PROTOS_DIR") or _REPOSITORY / "protos")
#: Holds google/rpc/status.proto, which the contracts import.
_GOOGLEAPIS = Path(os.environ.get("GOOGLEAPIS_DIR") or _REPOSITORY / "third_party/googleapis")
_WANTED = ("common", "evaluator", "gateway")


def _generate() -> Any:
    out = tempfile.mkdtemp(prefix="martlet-stubs-")
    atexit.register(shutil.rmtree, out, True)
    google = Path(protoc.__file__).parent / "_proto"
    files = [str(path) for name in _WANTED for path in sorted((_PROTOS / "martlet" / name / "v1").glob("*.proto"))]
    # The gateway's contract speaks of replicas, whose messages are inference's.
    files += [str(path) for path in sorted((_PROTOS / "martlet/inference/v1").glob("*.proto"))]
    includes = [f"-I{place}" for place in (_PROTOS, _GOOGLEAPIS, google)]
    if protoc.main(["protoc", *includes, f"--python_out={out}", f"--grpc_python_out={out}", *files]) != 0:
        raise SystemExit(f"protoc refused the contracts in {_PROTOS}")
    sys.path.insert(0, out)
    return lambda name: importlib.import_module(f"martlet.{name}")


_module = _generate()
common_pb: Any = _module("common.v1.job_pb2")
artifact_pb: Any = _module("common.v1.artifact_pb2")
jobs_pb: Any = _module("evaluator.v1.evaluation_job_pb2")
service_pb: Any = _module("evaluator.v1.evaluation_service_pb2")
service_grpc: Any = _module("evaluator.v1.evaluation_service_pb2_grpc")
artifacts_pb: Any = _module("gateway.v1.artifact_service_pb2")
artifacts_grpc: Any = _module("gateway.v1.artifact_service_pb2_grpc")
