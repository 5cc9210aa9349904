"""What tests share: a tokenizer and tiny random models made on the spot, and a report that remembers.

Imports ML libraries only when something is made.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from martlet_quantizer.texts import calibration_rows

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

#: Family -> a module that only its environment has; the environment of ``gguf`` is the one that has none of the others.
_MODULES = {"bnb": "bitsandbytes", "llmcompressor": "llmcompressor", "awq": "awq", "gptqmodel": "gptqmodel"}


def has(family: str) -> bool:
    """Whether this environment is the family's."""
    found = [name for name, module in _MODULES.items() if importlib.util.find_spec(module) is not None]
    return family in (found or ["gguf"])


class Recorder:
    """A report that keeps what it is told."""

    def __init__(self) -> None:
        self.phases: list[str] = []
        self.lines: list[str] = []
        self.steps: list[tuple[int, int]] = []
        self.partial: dict[str, Any] = {}

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
        self.steps.append((step, total_steps))

    def checkpoint(self, path: Path, step: int, metrics: Mapping[str, float], is_best: bool = False) -> None:
        """Quantizations have none."""
        raise NotImplementedError

    def partial_result(self, values: Mapping[str, Any]) -> None:
        """See ``Report``."""
        self.partial.update(values)


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
        tokenizer_object=tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def save_tiny_model(directory: Path, *, uneven: bool = False, training_steps: int = 60, **changes: Any) -> Path:
    """A Llama of two layers that has learned which bytes are frequent in English text: a random model is at chance on any
    text, and quantizing can't make it worse.

    Args:
        directory: where to.
        uneven: gives the columns of the weights very different sizes, as those of large models have them.
        training_steps: steps of its training; some seconds.
        changes: of its config.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = byte_tokenizer()
    values: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "initializer_range": 0.1,
        "rope_theta": 10000.0,
    }
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(LlamaConfig(**{**values, **changes}))
    if uneven:
        for name, parameter in model.named_parameters():
            if name.endswith("_proj.weight"):
                parameter.data *= torch.logspace(-1, 1, parameter.shape[1])[torch.randperm(parameter.shape[1])]
    return train_and_save(model, tokenizer, directory, training_steps)


def train_and_save(model: Any, tokenizer: Any, directory: Path, training_steps: int) -> Path:
    """Teach a random model which tokens are frequent in English text, and save it in bfloat16; returns the directory."""
    import torch

    _train(model, tokenizer, training_steps)
    model.to(torch.bfloat16).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def _train(model: Any, tokenizer: Any, steps: int) -> None:
    import torch

    text = "\n".join(row["text"] for row in calibration_rows() if "text" in row)
    ids = torch.tensor(tokenizer(text)["input_ids"])
    windows = ids[: len(ids) // 64 * 64].view(-1, 64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(steps):
        batch = windows[torch.arange(step * 16, step * 16 + 16) % len(windows)]
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def lay_out(workdir: Path, base_model: Path, **inputs: Path) -> Path:
    """Make a job's working directory as the worker would.

    Args:
        workdir: made.
        base_model: directory of the unquantized model.
        inputs: ``calibration`` and ``evaluation``, files or directories of rows.
    """
    (workdir / "inputs").mkdir(parents=True)
    for name, path in {"base_model": base_model, **inputs}.items():
        (workdir / "inputs" / name).symlink_to(path.resolve(), target_is_directory=path.is_dir())
    return workdir
