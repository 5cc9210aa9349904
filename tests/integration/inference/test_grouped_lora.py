"""Adapters on a CPU: our LoRA inside vLLM gives each row its own adapter, and those without one none."""

from __future__ import annotations

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import ReplicaProcess

BASE = "smollm2-135m-instruct"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(290)]


def test_agrees_with_a_plain_loop_over_tokens(inference_python: str) -> None:
    script = Path(__file__).with_name("grouped_lora_check.py")
    command = [inference_python, str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["device_of_a_packed_layer"] == "cpu"
    errors = found["errors"]
    assert set(errors) == {"one adapter", "several", "none", "one token", "a prompt's tokens"}
    assert all(error < 1e-5 for batch in errors.values() for error in batch.values()), errors


def test_one_batch_keeps_base_and_adapters_apart(replica: ReplicaProcess, adapters: list[str]) -> None:
    """All slots are taken, which is when vLLM's own code for CPUs gives the base the last slot's adapter."""
    models = [BASE, *adapters[:2]]

    def first_logprob(model: str) -> float:
        answer = replica.chat(model=model, temperature=0, max_tokens=1, logprobs=True)
        assert answer["http_status"] == 200, answer
        return answer["choices"][0]["logprobs"]["content"][0]["logprob"]

    alone = [first_logprob(model) for model in models]
    assert len(replica.models()) == len(models)
    assert max(alone) - min(alone) > 1e-3
    with ThreadPoolExecutor(12) as pool:
        mixed = list(pool.map(first_logprob, models * 4))
    assert mixed == pytest.approx(alone * 4, abs=1e-3)
