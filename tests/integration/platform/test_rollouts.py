"""A training whose answers are drawn by a replica, on a whole platform with a tiny model: adapters come, answer, and go again."""

from __future__ import annotations

import csv
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from martlet_cli.testing import RunningPlatform, running_platform
from martlet_inputs.base_models.catalog import MARKER

ROOT = Path(__file__).parents[3]
MODEL = "smollm2-135m-instruct"
STEPS = 12


@pytest.fixture(scope="module")
def tiny_platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningPlatform]:
    """A platform on which the catalogue's model is a random one of some thousand parameters, with the engine that starts fastest."""
    models = tmp_path_factory.mktemp("models")
    python = os.environ.get("MARTLET_TRAINER_PYTHON") or str(ROOT / ".martlet/envs/trainer/bin/python")
    script = ROOT / "tests/integration/trainer/tiny_llama.py"
    subprocess.run([python, str(script), str(models / MODEL), "64"], check=True, timeout=120)
    (models / MODEL / MARKER).write_text("tiny\n")
    home = tmp_path_factory.mktemp("tiny")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("MARTLET_MODELS_DIR", str(models))
        with running_platform(home, "--engine", "transformers", "--wait", "all") as running:
            yield running


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("questions") / "questions.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"Say a letter: {n}"}) + "\n" for n in range(16)))
    return path


def metrics_of(platform: RunningPlatform, job: dict[str, Any]) -> list[dict[str, str]]:
    """The job's metrics by step, from its results file."""
    [file] = job["result_files"]
    return list(csv.DictReader(platform.client.files.content(file).text.splitlines()))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_replica_answers_for_the_model_that_is_trained(tiny_platform: RunningPlatform, questions: Path) -> None:
    """Slow for a platform of its own: trainer, gateway and replica meet here only."""
    command = (
        f"train --model {MODEL} --dataset {questions} --rlhf_type grpo --use_vllm true --vllm_mode server --reward_funcs regex"
        f" --reward_pattern [a-m] --num_generations 6 --max_completion_length 4 --temperature 1.0 --lora_rank 8 --learning_rate 2e-2"
        f" --max_steps {STEPS} --per_device_train_batch_size 4"
    )
    done = tiny_platform.martlet(*command.split(), "--watch", timeout=400)[-1]
    assert done["status"] == "succeeded", done
    steps = metrics_of(tiny_platform, done)
    ratios, rewards = ([float(step[name]) for step in steps] for name in ("importance_ratio", "reward"))
    assert ratios == pytest.approx([1.0] * STEPS, abs=1e-2), "the replica had the weights of each step"
    assert sum(rewards[-3:]) > sum(rewards[:3])
    models = {model.id for model in tiny_platform.client.models.list()}
    assert done["fine_tuned_model"] in models
    assert not [name for name in models if ":rollouts-" in name]
    kept = tiny_platform.martlet("artifacts", "list", "--kind", "adapter")
    assert [artifact["display_name"] for artifact in kept if "answers" in artifact["display_name"]] == []
