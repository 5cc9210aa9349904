"""Model families that transformers has: each is trained with the numbers that transformers itself gives on padded batches.

The models are tiny and random, with matrices large enough that attention matters, and with windows shorter than the rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from martlet_core.recipe import StopRequested
from martlet_trainer.data.encode import EncodedRow
from martlet_trainer.recipes.training import run
from martlet_trainer.testing import Recorder, byte_tokenizer, chat_rows, lay_out, save_random_model, training_spec
from martlet_trainer.training.batches import collate_padded
from martlet_trainer.training.computation import Computation, choose_computation, has_dropout
from martlet_trainer.training.loss import plain_log_probs, plain_loss, plain_predictions
from martlet_trainer.training.models import load_model
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

CPU = torch.device("cpu")
VOCABULARY = 259
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2 = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
MOE = {**COMMON, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2}

#: Family -> (model type, config).
FAMILIES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "qwen2": ("qwen2", COMMON),
    "qwen2, window": ("qwen2", {**COMMON, "use_sliding_window": True, "sliding_window": 12, "max_window_layers": 1}),
    "qwen3": ("qwen3", {**COMMON, "head_dim": 8}),
    "gemma2": ("gemma2", {**COMMON, "head_dim": 8, "sliding_window": 12, "attn_logit_softcapping": 1.0}),
    "gemma3": ("gemma3_text", {**COMMON, "head_dim": 8, "sliding_window": 12}),
    "phi3": ("phi3", COMMON),
    "mistral, window": ("mistral", {**COMMON, "sliding_window": 12}),
    "gpt2": ("gpt2", {**GPT2, **NO_DROPOUT}),
    "gpt_neox": ("gpt_neox", {k: v for k, v in COMMON.items() if k != "num_key_value_heads"}),
    "qwen3_moe": ("qwen3_moe", {**COMMON, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}),
    "mixtral": ("mixtral", MOE),
    "granite": ("granite", {**COMMON, "logits_scaling": 4.0, "attention_multiplier": 0.2}),
    "falcon": ("falcon", {k: v for k, v in COMMON.items() if k != "intermediate_size"}),
    "bloom": ("bloom", {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "gpt_oss": ("gpt_oss", {**MOE, "sliding_window": 12}),
    "mamba": ("mamba", {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}),
}  # fmt: skip
#: Families that need padded batches, and what is said about it.
PADDED = {
    "gemma2": "softcap",
    "falcon": "can't be replaced",
    "bloom": "can't be replaced",
    "gpt_oss": "s_aux",
    "mamba": "logits differ",
}
#: Families that are trained as whole jobs.
TRAINED = ("qwen2", "qwen3", "gemma2", "gemma3", "phi3", "mistral, window", "gpt2", "gpt_neox", "qwen3_moe")


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models made so far, by family."""
    return {"": tmp_path_factory.mktemp("families")}


def model_of(family: str, directories: dict[str, Path]) -> Path:
    if family not in directories:
        kind, values = FAMILIES[family]
        config = AutoConfig.for_model(kind, **values)
        directories[family] = save_random_model(directories[""] / kind / str(len(directories)), config, std=0.2)
    return directories[family]


def random_rows(*lengths: int) -> list[EncodedRow]:
    """Rows with a common beginning of five tokens."""
    draw, rows = np.random.default_rng(0), []
    for length in lengths:
        ids = np.concatenate([[1, 60, 61, 62, 2], draw.integers(3, 200, size=length)]).astype(np.int32)
        rows.append(EncodedRow(ids, np.arange(len(ids)) > 5))
    return rows


def loss_and_gradients(model: Any, computation: Computation, rows: list[EncodedRow]) -> tuple[float, dict[str, Any]]:
    model.train()
    loss = computation.objective(model, computation.collate(rows, CPU)).total
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return loss.item(), found


@pytest.mark.parametrize("family", FAMILIES)
def test_the_chosen_computation_has_the_familys_own_numbers(family: str, directories: dict[str, Path]) -> None:
    """Loss and gradients of all weights, against padded batches through the model's own attention in its plainest form."""
    rows = random_rows(9, 40, 80, 17)
    reference = AutoModelForCausalLM.from_pretrained(model_of(family, directories), attn_implementation="eager")
    wanted, wanted_gradients = loss_and_gradients(
        reference, Computation(collate_padded, plain_loss, plain_log_probs, plain_predictions, False), rows
    )
    model = load_model(model_of(family, directories), torch.float32, CPU)
    computation = choose_computation(model, rows, CPU, packing=False)
    assert computation.isolates_rows == (family not in PADDED)
    assert PADDED.get(family, "") in computation.why_padded
    loss, found = loss_and_gradients(model, computation, rows)
    assert loss == pytest.approx(wanted, rel=1e-5)
    assert found.keys() == wanted_gradients.keys()
    for name, gradient in found.items():
        assert (gradient - wanted_gradients[name]).norm() <= 1e-4 * wanted_gradients[name].norm() + 1e-6, name


def plain_transformers_loss(model: Any, rows: list[dict[str, Any]]) -> float:
    """Mean loss over every token, by transformers alone, on one batch padded on the right."""
    tokenizer = byte_tokenizer()
    texts = [tokenizer.apply_chat_template(row["messages"], tokenize=False) for row in rows]
    batch = tokenizer(texts, padding=True, padding_side="right", add_special_tokens=False, return_tensors="pt")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    model.eval()
    with torch.no_grad():
        return model(**inputs, labels=labels).loss.item()


@pytest.mark.parametrize("family", TRAINED)
def test_a_family_is_trained_saved_and_resumed(family: str, directories: dict[str, Path], tmp_path: Path) -> None:
    """Two steps with the default targets, a stop, a third step: at each end the loss is that of plain transformers and peft."""
    base, rows = model_of(family, directories), chat_rows(6)
    numbers = {"max_steps": 3, "per_device_batch_size": 6, "learning_rate_schedule": "constant"}
    spec = training_spec(hyperparameters=numbers, data={"assistant_only_loss": False})
    unbroken, first, second = Recorder(), Recorder(), Recorder()
    whole = run(spec, lay_out(tmp_path / "unbroken", base, rows), unbroken, lambda: False)
    with pytest.raises(StopRequested):
        run(spec, lay_out(tmp_path / "first", base, rows), first, lambda: len(first.steps) >= 2)
    checkpoint = first.checkpoints[-1][0]
    result = run(spec, lay_out(tmp_path / "second", base, rows, resume=checkpoint), second, lambda: False)
    assert [*first.losses, *second.losses] == pytest.approx(unbroken.losses, rel=1e-5)
    assert unbroken.losses[2] < unbroken.losses[0]

    def plain(adapter: Path | None) -> float:
        model = AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager")
        return plain_transformers_loss(model if adapter is None else PeftModel.from_pretrained(model, adapter), rows)

    assert unbroken.losses[0] == pytest.approx(plain(None), rel=1e-5)
    assert second.losses[0] == pytest.approx(plain(checkpoint), rel=1e-5)
    assert plain(result.outputs["model"].path) == pytest.approx(plain(whole.outputs["model"].path), rel=1e-5)
    assert ("target_parameters" in result.outputs["model"].metadata) == (family == "qwen3_moe"), (
        "adapted experts are named"
    )
    assert any("batches are padded" in line for line in second.lines) == (family in PADDED)


def test_a_beginning_is_not_shared_where_something_is_dropped(directories: dict[str, Path]) -> None:
    """Computed once for all rows, the dropped places would be the same in each."""
    rows = random_rows(9, 17)
    still = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("gpt2", **GPT2, **NO_DROPOUT, summary_first_dropout=0.0)
    )
    dropping = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", **GPT2))
    for model, expected in ((still, False), (dropping, True)):
        assert has_dropout(model) is expected
        batch = choose_computation(model, rows, CPU, packing=False).collate(rows, CPU)
        assert (batch.inputs["layout"].prefix_length == 0) is expected
    attending = AutoConfig.for_model("llama", **COMMON, attention_dropout=0.1)
    assert has_dropout(AutoModelForCausalLM.from_config(attending)), "no module of its own says so"
    lora = LoraConfig(r=2, lora_dropout=0.1, target_modules=["c_attn"], task_type="CAUSAL_LM", fan_in_fan_out=True)
    assert has_dropout(get_peft_model(still, lora))
