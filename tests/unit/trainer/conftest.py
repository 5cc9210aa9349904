"""A tiny random model with a real tokenizer and chat template, and what a recipe is given."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # two busy cores: threads that spin only take time from one another

CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class Recorder:
    """A report that keeps what it is told, and may do something at each step."""

    def __init__(self, on_step: Callable[[int], None] | None = None) -> None:
        self.phases: list[str] = []
        self.lines: list[str] = []
        self.steps: dict[int, dict[str, float]] = {}
        self.checkpoints: list[tuple[Path, int, bool]] = []
        self.partial: dict[str, Any] = {}
        self._on_step = on_step

    def phase(self, name: str) -> None:
        self.phases.append(name)

    def log(self, message: str, level: str = "info") -> None:
        self.lines.append(message)

    def metrics(
        self, step: int, total_steps: int, values: Mapping[str, float], eta_seconds: float | None = None
    ) -> None:
        self.steps.setdefault(step, {}).update(values)
        if self._on_step is not None:
            self._on_step(step)

    def checkpoint(self, path: Path, step: int, metrics: Mapping[str, float], is_best: bool = False) -> None:
        self.checkpoints.append((path, step, is_best))

    def partial_result(self, values: Mapping[str, Any]) -> None:
        self.partial.update(values)

    @property
    def losses(self) -> list[float]:
        """Training loss by step."""
        return [values["loss"] for _, values in sorted(self.steps.items()) if "loss" in values]


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Any:
    """Bytes as tokens, with the special tokens of ChatML."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {
        token: index for index, token in enumerate(["<|endoftext|>", "<|im_start|>", "<|im_end|>", *alphabet])
    }
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    """A two-layer Llama with grouped key heads, context 512."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    directory = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,  # its embedding starts at zero, so it must be a token that no row has
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    tiny_tokenizer.save_pretrained(directory)
    return directory


def chat_rows(count: int, start: int = 0) -> list[dict[str, Any]]:
    """Short rows of different lengths with something to learn in them."""
    return [
        {
            "messages": [
                {"role": "system", "content": "Add."},
                {"role": "user", "content": f"{i % 7}+{i % 5}{'?' * (1 + i % 4)}"},
                {"role": "assistant", "content": f"{i % 7 + i % 5}"},
            ]
        }
        for i in range(start, start + count)
    ]


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def make_workdir(tmp_path: Path, tiny_model_dir: Path) -> Callable[..., Path]:
    """Makes a job's working directory by name: ``make_workdir("a", rows, validation=rows, resume=directory)``."""

    def make(name: str, rows: list[Any], validation: list[Any] | None = None, resume: Path | None = None) -> Path:
        workdir = tmp_path / name
        inputs = workdir / "inputs"
        inputs.mkdir(parents=True)
        (inputs / "base_model").symlink_to(tiny_model_dir)
        write_jsonl(inputs / "training_dataset" / "rows.jsonl", rows)
        if validation is not None:
            write_jsonl(inputs / "validation_dataset" / "rows.jsonl", validation)
        if resume is not None:
            (workdir / "resume").symlink_to(resume)
        return workdir

    return make


def spec(**changes: Any) -> dict[str, Any]:
    """A small training's spec; keyword arguments replace or extend its parts."""
    values: dict[str, Any] = {
        "base_model": "tiny",
        "training_dataset": "artifacts/a",
        "tuner": {"lora_rank": 4},
        "hyperparameters": {"max_steps": 6, "per_device_batch_size": 4, "learning_rate": 1e-2, "precision": "float32"},
        "resources": {"device": "cpu"},
    }
    for key, value in changes.items():
        values[key] = {**values[key], **value} if isinstance(value, dict) and key in values else value
    return values


@pytest.fixture(scope="session")
def kit() -> SimpleNamespace:
    """The helpers above, for test modules (which can't import one another)."""
    return SimpleNamespace(Recorder=Recorder, chat_rows=chat_rows, write_jsonl=write_jsonl, spec=spec)
