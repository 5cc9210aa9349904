"""The tiny models of the table of support, made in an environment of the quantizer with transformers 5.

    .martlet/envs/quantizer-bnb/bin/python benchmarks/support_tiny_models.py DIRECTORY NAME...

Two layers, widths that every group size divides, bytes as tokens. They have learned which bytes are frequent in English: at
chance, no figure would tell a broken model from a whole one.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_COMMON = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "initializer_range": 0.1,
}
_WITHOUT_HEAD_DIM = {name: value for name, value in _COMMON.items() if name != "head_dim"}
#: Name -> config; ``model_type`` as in config.json.
CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "llama": {"model_type": "llama", **_COMMON},
    "qwen2": {"model_type": "qwen2", **_WITHOUT_HEAD_DIM},
    "qwen3": {"model_type": "qwen3", **_COMMON},
    "gemma3": {"model_type": "gemma3_text", **_COMMON, "query_pre_attn_scalar": 32, "sliding_window": 128},
    "mistral": {"model_type": "mistral", **_COMMON},
    "qwen3-moe": {
        "model_type": "qwen3_moe",
        **_COMMON,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 128,
    },
}
_TRAINING_STEPS = 60


def main(directory: Path, names: list[str]) -> None:
    """Make those that aren't there."""
    import torch
    from martlet_quantizer.testing import byte_tokenizer, train_and_save
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = byte_tokenizer()
    for name in names:
        if (directory / name / "config.json").is_file():
            continue
        values = dict(CONFIGS[name])
        torch.manual_seed(0)
        config = AutoConfig.for_model(values.pop("model_type"), vocab_size=len(tokenizer), **values)
        train_and_save(AutoModelForCausalLM.from_config(config), tokenizer, directory / name, _TRAINING_STEPS)
        print(f"made {name}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
