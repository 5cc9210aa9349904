"""What tests of recipes share: a tokenizer and random models made on the spot, rows, and a report that remembers.

Imports ML libraries only when something is made.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

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
        """See ``Report``."""
        self.phases.append(name)

    def log(self, message: str, level: str = "info") -> None:
        """See ``Report``."""
        self.lines.append(message)

    def metrics(
        self, step: int, total_steps: int, values: Mapping[str, float], eta_seconds: float | None = None
    ) -> None:
        """See ``Report``."""
        self.steps.setdefault(step, {}).update(values)
        if self._on_step is not None:
            self._on_step(step)

    def checkpoint(self, path: Path, step: int, metrics: Mapping[str, float], is_best: bool = False) -> None:
        """See ``Report``."""
        self.checkpoints.append((path, step, is_best))

    def partial_result(self, values: Mapping[str, Any]) -> None:
        """See ``Report``."""
        self.partial.update(values)

    @property
    def losses(self) -> list[float]:
        """Training loss by step."""
        return [values["loss"] for _, values in sorted(self.steps.items()) if "loss" in values]


def byte_tokenizer() -> Any:
    """Bytes as tokens, with the special tokens and the chat template of ChatML."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate([*special, *alphabet])}, []))
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


def encoder_tokenizer() -> Any:
    """Bytes as tokens, with BERT's marks around a text and between two."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate([*names, *alphabet])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    keys = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=128,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **dict(zip(keys, names, strict=True)),
    )


def save_random_model(directory: Path, config: Any, dtype: str = "float32", std: float | None = None) -> Path:
    """Write a model of a config with random weights, the same ones each time, and the byte tokenizer.

    Args:
        directory: where to.
        config: a transformers config.
        dtype: type of the stored weights.
        std: spread of every matrix, for models whose own start would leave attention without an effect; None for the model's own.
    """
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    if std is not None:
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                torch.nn.init.normal_(parameter, std=std)
    model.to(getattr(torch, dtype)).save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)
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


def write_jsonl(path: Path, rows: Sequence[Any]) -> Path:
    """Write rows as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def lay_out(
    workdir: Path,
    base_model: Path,
    rows: Sequence[Any],
    *,
    validation: Sequence[Any] | None = None,
    adapter: Path | None = None,
    teacher: Path | None = None,
    resume: Path | None = None,
) -> Path:
    """Make a training's working directory as the worker would."""
    inputs = workdir / "inputs"
    inputs.mkdir(parents=True)
    (inputs / "base_model").symlink_to(base_model)
    write_jsonl(inputs / "training_dataset" / "rows.jsonl", rows)
    if validation is not None:
        write_jsonl(inputs / "validation_dataset" / "rows.jsonl", validation)
    if adapter is not None:
        (inputs / "adapter").symlink_to(adapter)
    if teacher is not None:
        (inputs / "teacher_model").symlink_to(teacher)
    if resume is not None:
        (workdir / "resume").symlink_to(resume)
    return workdir


def training_spec(**changes: Any) -> dict[str, Any]:
    """A small training's spec; keyword arguments replace or extend its parts."""
    full = changes.get("tuner", {}).get("kind") == "full"
    values: dict[str, Any] = {
        "base_model": "tiny",
        "training_dataset": "artifacts/a",
        "tuner": {} if full else {"lora_rank": 4},
        "hyperparameters": {"max_steps": 6, "per_device_batch_size": 4, "learning_rate": 1e-2, "precision": "float32"},
        "resources": {"device": "cpu"},
    }
    for key, value in changes.items():
        values[key] = {**values[key], **value} if isinstance(value, dict) and key in values else value
    return values
