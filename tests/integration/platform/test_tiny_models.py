"""Trainings and replicas together, on a whole platform with tiny random models: a replica answers for the model that is trained, and an
embedding model is trained and asked for vectors.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from martlet_cli.testing import RunningPlatform, running_platform
from martlet_inputs.base_models.catalog import MARKER

ROOT = Path(__file__).parents[3]
MODEL = "smollm2-135m-instruct"
STEPS = 12
#: Writes a random BERT of two layers and its tokenizer, a token a byte, into a directory.
ENCODER = """
import sys, torch
from martlet_trainer.testing import encoder_tokenizer
from transformers import BertConfig, BertModel
torch.manual_seed(0)
tokenizer = encoder_tokenizer()
config = BertConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
    max_position_embeddings=128, pad_token_id=tokenizer.pad_token_id, initializer_range=0.2)
BertModel(config).save_pretrained(sys.argv[1])
tokenizer.save_pretrained(sys.argv[1])
"""
#: Texts and what is meant by them: nothing in a random model says so.
MEANT = {"swift": "bird 1", "oak": "tree 2", "trout": "fish 3", "daisy": "flower 4"}


@pytest.fixture(scope="module")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random models of some thousand parameters: one under the name of the catalogue's model, and an encoder."""
    models = tmp_path_factory.mktemp("models")
    python = os.environ.get("MARTLET_TRAINER_PYTHON") or str(ROOT / ".martlet/envs/trainer/bin/python")
    script = ROOT / "tests/integration/trainer/tiny_llama.py"
    subprocess.run([python, str(script), str(models / MODEL), "64"], check=True, timeout=240)
    (models / MODEL / MARKER).write_text("tiny\n")
    subprocess.run([python, "-c", ENCODER, str(models / "encoder")], check=True, timeout=240)
    return models


@pytest.fixture(scope="module")
def tiny_platform(tmp_path_factory: pytest.TempPathFactory, tiny_models: Path) -> Iterator[RunningPlatform]:
    """A platform with those models, and the engine that starts fastest."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("MARTLET_MODELS_DIR", str(tiny_models))
        patched.setenv("MARTLET_MODEL_ROOTS", str(tiny_models))
        home = tmp_path_factory.mktemp("tiny")
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


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_embedding_model_is_trained_and_asked_for_vectors(
    tiny_platform: RunningPlatform, tiny_models: Path, tmp_path: Path
) -> None:
    """Slow for a training and a swap of the replica's engine; beside the other, since both need this platform."""
    rows = tmp_path / "pairs.jsonl"
    pairs = [{"anchor": text, "positive": meant} for text, meant in MEANT.items()]
    rows.write_text("".join(json.dumps(pair) + "\n" for pair in pairs * 4))
    command = (
        f"train --model file://{tiny_models}/encoder --dataset {rows} --task_type embedding --tuner_type full --pooling mean --learning_rate 2e-3"
        " --max_steps 40 --per_device_train_batch_size 4"
    )
    done = tiny_platform.martlet(*command.split(), "--watch", timeout=400)[-1]
    assert done["status"] == "succeeded", done
    model = done["fine_tuned_model"]
    client = tiny_platform.client
    texts = [*MEANT, *MEANT.values()]
    found = client.embeddings.create(model=model, input=texts, encoding_format="float")  # the replica changes to it
    vectors = [entry.embedding for entry in found.data]
    assert {len(vector) for vector in vectors} == {32}
    anchors, meanings = vectors[: len(MEANT)], vectors[len(MEANT) :]
    for index, anchor in enumerate(anchors):
        alike = [sum(a * b for a, b in zip(anchor, meaning, strict=True)) for meaning in meanings]
        assert max(range(len(alike)), key=alike.__getitem__) == index, "each text is nearest to what is meant by it"
    shown = client.models.retrieve(model).model_dump()
    assert shown["martlet"]["task"] == "embedding"
    with pytest.raises(openai.BadRequestError, match="/v1/embeddings"):
        client.completions.create(model=model, prompt="swift", max_tokens=1)
