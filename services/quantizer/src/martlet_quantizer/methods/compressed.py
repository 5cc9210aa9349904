"""What the methods of llm-compressor share: one call, and the output in compressed-tensors' format."""

# Its libraries are in the environment of its family only.
# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmcompressor import oneshot

from martlet_quantizer.loading import device, half_dtype, load_model
from martlet_quantizer.methods.base import Task, Written


def compress(task: Task, recipe: Sequence[Any]) -> Written:
    """Apply modifiers to the model, layer by layer where they need calibration, and save it compressed."""
    model = load_model(task.source, half_dtype(task.source))
    if device().type == "cuda":
        model.to(device())
    arguments: dict[str, Any] = {}
    if task.windows:
        from datasets import Dataset

        rows = {"input_ids": [list(w) for w in task.windows], "attention_mask": [[1] * len(w) for w in task.windows]}
        arguments = {
            "dataset": Dataset.from_dict(rows),
            "num_calibration_samples": len(task.windows),
            "max_seq_length": task.sequence_length,
            "shuffle_calibration_samples": False,
        }
    oneshot(model=model, recipe=list(recipe), **arguments)
    quantized = [name for name, module in model.named_modules() if getattr(module, "quantization_scheme", None)]
    model.save_pretrained(task.output, save_compressed=True)
    return Written([name for name in quantized if name in task.layers])
