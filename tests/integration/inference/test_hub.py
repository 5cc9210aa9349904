"""Models of the hub, with the hub library of the engine's environment and no hub to reach."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ASK = """
import asyncio, json, sys
from pathlib import Path
from martlet_core.errors import MartletError
from martlet_inference.hub import HubModels
try:
    answer = {"directory": str(asyncio.run(HubModels(Path(sys.argv[1])).files(sys.argv[2])))}
except MartletError as error:
    answer = {"reason": error.reason, "message": error.message}
print(json.dumps(answer))
"""


def ask(python: str, cache: Path, name: str, **environ: str) -> dict[str, str]:
    env = {key: value for key, value in os.environ.items() if not key.startswith("HF_")} | environ
    command = [python, "-c", ASK, str(cache), name]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_what_is_in_the_cache_is_served_without_the_hub(inference_python: str, tmp_path: Path) -> None:
    snapshot = tmp_path / "hub" / "models--org--model" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (snapshot / "model.safetensors").touch()
    answer = ask(inference_python, tmp_path, f"org/model@{COMMIT}", HF_HUB_OFFLINE="1")
    assert answer == {"directory": str(snapshot)}


def test_a_hub_that_cant_be_reached_is_said_with_its_remedy(inference_python: str, tmp_path: Path) -> None:
    answer = ask(inference_python, tmp_path, f"org/model@{COMMIT}", HF_HUB_OFFLINE="1")
    assert answer["reason"] == "HUB_UNREACHABLE", answer
    assert "HTTPS_PROXY" in answer["message"]
