"""Small cases of every recipe and tuner, for tests and for the table of support: a model, rows with something to learn, options."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from martlet_trainer.testing import byte_tokenizer, chat_rows, encoder_tokenizer, save_random_model

#: Options of tuners whose defaults are made for wider models than ours.
SMALL_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "vera": {"r": 32},
    "randlora": {"r": 8},
    "vblora": {"vector_length": 16, "num_vectors": 32},
    "fourierft": {"n_frequency": 200},
    "miss": {"r": 16},
    "shira": {"r": 8},
    "oft": {"oft_block_size": 16},
    "road": {"group_size": 16},
    "llamapro": {"num_new_blocks": 1},
    "lisa": {"activated_layers": 1, "step_interval": 3},
    "badam": {"switch_interval": 3},
    "prompt_tuning": {"num_virtual_tokens": 8},
    "prefix_tuning": {"num_virtual_tokens": 8},
    "adapter": {"adapter_length": 16},
    "p_tuning": {"num_virtual_tokens": 8, "encoder_hidden_size": 64},
}
#: A grader of OpenAI's that asks no model.
STRING_CHECK: dict[str, Any] = {
    "type": "string_check",
    "name": "says",
    "input": "{{sample.output_text}}",
    "reference": "{{item.wanted}}",
    "operation": "like",
}
#: Learning rates with which a few steps on such a model show something; 1e-2 for all others.
SMALL_RATES: Mapping[str, float] = {
    "full": 3e-3,
    "lisa": 3e-3,
    "badam": 3e-3,
    "llamapro": 1e-2,
    "ln_tuning": 3e-2,
    "ia3": 5e-2,
    "loha": 5e-2,
    "vera": 5e-2,
    "vblora": 1e-1,
    "prompt_tuning": 1e-1,
    "prefix_tuning": 3e-1,
    "adalora": 3e-2,
}
#: Recipes whose models end in a head, with rows of their own here.
HEADED = ("sequence_classification", "embedding", "reranker", "token_classification")
#: Recipes that answer questions themselves, with a reward that a random model can find: a letter of the first half of the alphabet.
ROLLOUT_OPTIONS: Mapping[str, Any] = {
    "rewards": [{"name": "regex", "pattern": "[a-m]"}],
    "num_generations": 6,
    "max_completion_length": 6,
    "temperature": 1.0,
}
#: Recipe -> options without which it doesn't train, or not on such a model.
RECIPE_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "grpo": ROLLOUT_OPTIONS,
    "rloo": ROLLOUT_OPTIONS,
    "distill": {"teacher_model": "tiny-teacher", "max_completion_length": 6, "temperature": 1.0},
}


def save_tiny_llama(directory: Path, dtype: str = "float32", **changes: Any) -> Path:
    """Write a two-layer Llama with random weights and grouped key heads, context 512; ``changes`` are of its config."""
    from transformers import LlamaConfig

    values = {
        "vocab_size": len(byte_tokenizer()),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,  # its embedding starts at zero, so it must be a token that no row has
        "initializer_range": 0.2,
    }
    return save_random_model(directory, LlamaConfig(**{**values, **changes}), dtype=dtype)


def save_tiny_teacher(directory: Path) -> Path:
    """Write a Llama with the same tokens as ``save_tiny_llama``'s, of another size and with other weights."""
    return save_tiny_llama(directory, hidden_size=96)


def save_tiny_encoder(directory: Path, model_type: str = "bert", **changes: Any) -> Path:
    """Write a two-layer encoder with random weights, without a head, and the byte tokenizer with the marks that encoders have."""
    import torch
    from transformers import AutoConfig, AutoModel

    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    if model_type == "distilbert":
        sizes = {"dim": 64, "hidden_dim": 96, "n_layers": 2, "n_heads": 4}
    tokenizer = encoder_tokenizer()
    values = {"vocab_size": len(tokenizer), "max_position_embeddings": 130, "pad_token_id": 0, **sizes, **changes}
    torch.manual_seed(0)
    AutoModel.from_config(AutoConfig.for_model(model_type, **values)).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def recipe_rows(recipe: str, count: int, start: int = 0) -> list[dict[str, Any]]:
    """Rows of a recipe, of sums: a number is the good answer, and a word before it makes it the bad one."""
    if recipe in ("sft", "distill"):
        return chat_rows(count, start)
    make = _head_row if recipe in HEADED else _row
    return [make(recipe, i) for i in range(start, start + count)]


def _head_row(recipe: str, i: int) -> dict[str, Any]:
    """Of a recipe whose models end in a head: a letter of a row says its class, its neighbour, or its tag."""
    letter, filler = "abc"[i % 3], "xyz"[i % 2 :] * (1 + i % 2)
    if recipe == "sequence_classification":
        return {"text": f"{filler} {letter}", "label": letter}
    if recipe == "embedding":
        letter = "abcdef"[i % 6]
        return {"anchor": f"{filler} {letter}", "positive": f"{letter}{letter} {filler}"}
    if recipe == "reranker":
        others = [f"{other}{other}" for other in "abc" if other != letter]
        return {"query": f"{filler} {letter}", "positive": letter * 2, "negative": others}
    return {"tokens": [filler, letter, "and", "c"], "tags": ["O", f"B-{letter}", "O", "B-c"]}


def _row(recipe: str, i: int) -> dict[str, Any]:
    asked = {"role": "user", "content": f"{i % 7}+{i % 5}{'?' * (1 + i % 4)}"}
    good, bad = f"{i % 7 + i % 5}", f"no {i % 7 + i % 5}"
    if recipe == "pretrain":
        return {"text": f"{asked['content']} is {good}. " * 3}
    if recipe in ("grpo", "rloo"):
        return {"messages": [asked], "solution": i % 7 + i % 5}
    if recipe == "kto":
        return {"messages": [asked, {"role": "assistant", "content": bad if i % 2 else good}], "label": i % 2 == 0}
    return {"messages": [asked, {"role": "assistant", "content": good}], "rejected_response": bad}
