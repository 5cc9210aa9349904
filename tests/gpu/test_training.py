"""Training on a GPU: it learns, its numbers don't depend on how they are computed, and its memory is what it says."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from martlet_core.recipe import StopRequested
from martlet_trainer.recipes import merge, method
from martlet_trainer.testing import Recorder, chat_rows, save_random_model
from martlet_trainer.training.batches import collate_padded
from martlet_trainer.training.computation import Computation, choose_computation
from martlet_trainer.training.loss import plain_log_probs, plain_loss, plain_predictions
from martlet_trainer.training.models import load_model
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

pytestmark = pytest.mark.gpu

Train = Callable[..., Any]
#: Bytes a parameter that the frozen or trained model holds at least: weights, and with full training gradients and AdamW's two moments.
LEAST_BYTES = {"lora": 2.0, "qlora": 0.5, "full": 16.0}


def long_rows(count: int, characters: int) -> list[dict[str, Any]]:
    """Rows whose activations take memory; a character is a token."""
    return [
        {"messages": [{"role": "user", "content": f"{i} " * (characters // 4)}, {"role": "assistant", "content": "1 2 3 " * (characters // 12)}]}
        for i in range(10, 10 + count)
    ]  # fmt: skip


def parameter_count(directory: Path) -> int:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(directory))
    return sum(parameter.numel() for parameter in model.parameters())


def stop_after(steps: int) -> Callable[[Recorder], bool]:
    return lambda told: len(told.steps) >= steps


@pytest.mark.parametrize("kind", ["lora", "qlora", "full"])
@pytest.mark.parametrize("size", ["small", "real"])
def test_it_learns_in_bfloat16_and_reports_its_memory(
    machine: Any, base_model: Callable[[str], Path], train: Train, size: str, kind: str
) -> None:
    if size == "real":
        machine.require_memory(32 if kind == "full" else 16)
    tuner = {"kind": kind} if kind == "full" else {"kind": kind, "lora_rank": 16}
    rate = 3e-4 if kind == "full" else 2e-3
    numbers = {"max_steps": 12, "per_device_batch_size": 8, "learning_rate": rate, "precision": "bfloat16"}
    result, report = train(size, chat_rows(32), tuner=tuner, hyperparameters=numbers)
    assert len(report.losses) == 12
    assert all(math.isfinite(loss) for loss in report.losses)
    assert report.losses[-1] < report.losses[0] - 0.5
    assert result.values["resolved_config"]["hyperparameters"]["precision"] == "bfloat16"
    assert result.outputs["model"].kind == ("model" if kind == "full" else "adapter")
    peak = result.values["peak_memory_bytes"]
    assert peak >= report.steps[12]["peak_memory_bytes"] > 0
    if machine.device == "cuda":
        assert LEAST_BYTES[kind] * parameter_count(base_model(size)) < peak < machine.gpu_bytes


def test_float16_learns_with_a_scaled_loss(machine: Any, train: Train) -> None:
    if machine.device == "cpu":
        pytest.skip("float16 needs a GPU")
    numbers = {"max_steps": 12, "per_device_batch_size": 8, "learning_rate": 3e-3, "precision": "float16"}
    _, half = train("small", chat_rows(32), hyperparameters=numbers)
    _, whole = train("small", chat_rows(32), hyperparameters={**numbers, "precision": "float32"})
    assert half.losses[0] == pytest.approx(whole.losses[0], rel=1e-2)
    assert half.losses[-1] < half.losses[0] - 0.5


def test_gradient_checkpointing_saves_memory_and_changes_no_number(machine: Any, train: Train) -> None:
    machine.require_memory(24)
    numbers = {"max_steps": 4, "per_device_batch_size": 2, "precision": "bfloat16", "learning_rate": 1e-3}
    rows = long_rows(4, 256 if machine.device == "cpu" else 1500)
    found = {}
    for wanted in (True, False):
        found[wanted] = train("real", rows, hyperparameters={**numbers, "gradient_checkpointing": wanted})
    (less, on), (more, off) = found[True], found[False]
    assert on.losses == pytest.approx(off.losses, rel=1e-2)
    assert less.values["resolved_config"]["hyperparameters"]["gradient_checkpointing"] is True
    if machine.device == "cuda":
        assert less.values["peak_memory_bytes"] < 0.8 * more.values["peak_memory_bytes"]


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-3), ("bfloat16", 2e-2)])
def test_padded_packed_and_end_to_end_give_the_same_losses(
    train: Train, monkeypatch: pytest.MonkeyPatch, precision: str, tolerance: float
) -> None:
    """Each step takes all rows, so that their order doesn't matter."""
    rows = [*chat_rows(12), *long_rows(2, 200)]
    numbers = {"max_steps": 4, "per_device_batch_size": 14, "learning_rate": 1e-3, "precision": precision}
    _, end_to_end = train("small", rows, hyperparameters=numbers)
    _, packed = train("small", rows, hyperparameters=numbers, data={"packing": True, "max_length": 512})
    padded_batches = Computation(
        collate_padded,
        plain_loss,
        plain_log_probs,
        plain_predictions,
        isolates_rows=False,
        why_padded="the test wants it",
    )
    monkeypatch.setattr(method, "choose_computation", lambda *_, **__: padded_batches)
    _, padded = train("small", rows, hyperparameters=numbers)
    assert any("the test wants it" in line for line in padded.lines)
    assert end_to_end.losses == pytest.approx(padded.losses, rel=tolerance)
    assert packed.losses == pytest.approx(padded.losses, rel=tolerance)
    assert padded.losses[-1] < padded.losses[0]


@pytest.mark.parametrize(
    "case",
    [
        {"tuner": {"kind": "lora", "lora_dropout": 0.1}},
        {"tuner": {"kind": "qlora"}},
        {"tuner": {"kind": "full"}, "hyperparameters": {"optimizer": "adamw_torch_fused"}},
        {"hyperparameters": {"optimizer": "adamw_bnb_8bit"}},
        {"tuner": {"kind": "qlora"}, "hyperparameters": {"optimizer": "paged_adamw_8bit"}},
        {"tuner": {"kind": "full"}, "hyperparameters": {"optimizer": "paged_adamw_32bit"}},
        {"tuner": {"kind": "full"}, "hyperparameters": {"optimizer": "adafactor"}},
    ],
    ids=["lora", "qlora", "full, fused", "8 bit", "paged, 8 bit", "paged, 32 bit", "adafactor"],
)
def test_stopped_and_resumed_it_goes_the_same_way(train: Train, case: dict[str, Any]) -> None:
    numbers = {"max_steps": 6, "learning_rate": 1e-3, "precision": "bfloat16", **case.get("hyperparameters", {})}
    changes = {"tuner": case.get("tuner", {}), "hyperparameters": numbers}
    rows = chat_rows(16)
    _, unbroken = train("small", rows, **changes)
    first = Recorder()
    with pytest.raises(StopRequested):
        train("small", rows, report=first, should_stop=stop_after(3), **changes)
    _, second = train("small", rows, resume=first.checkpoints[-1][0], **changes)
    assert min(second.steps) == max(first.steps) + 1
    assert [*first.losses, *second.losses] == pytest.approx(unbroken.losses, rel=1e-2)
    assert unbroken.losses[-1] < unbroken.losses[0]


def test_two_processes_train_as_one_with_the_same_global_batch(machine: Any, train: Train) -> None:
    """One process a GPU (nccl); on the CPU two processes (gloo)."""
    if machine.device == "cuda" and machine.gpu_count < 2:
        pytest.skip(f"needs 2 GPUs, this machine has {machine.gpu_count}")
    numbers = {"max_steps": 4, "learning_rate": 1e-3, "precision": "bfloat16", "per_device_batch_size": 8}
    _, one = train("small", chat_rows(16), hyperparameters=numbers)
    numbers["per_device_batch_size"] = 4
    _, two = train("small", chat_rows(16), hyperparameters=numbers, resources={"device_count": 2})
    assert two.losses == pytest.approx(one.losses, rel=1e-2)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_what_was_trained_here_merges_and_answers_the_same_here(
    machine: Any, base_model: Callable[[str], Path], train: Train, tmp_path: Path, precision: str
) -> None:
    """Merging itself is done on the CPU; the merged model is then compared with base and adapter on the GPU."""
    numbers = {"max_steps": 8, "learning_rate": 3e-3, "precision": "bfloat16"}
    trained, _ = train("small", chat_rows(16), hyperparameters=numbers)
    adapter, base = trained.outputs["model"].path, base_model("small")
    inputs = tmp_path / "merge" / "inputs"
    inputs.mkdir(parents=True)
    (inputs / "base_model").symlink_to(base)
    (inputs / "adapter").symlink_to(adapter)
    spec = {"adapter": "ft:tiny", "base_model": "tiny", "precision": precision}
    merged = merge.run(spec, inputs.parent, Recorder(), lambda: False)
    assert merged.values["top1_agreement"] > 0.9
    dtype = getattr(torch, precision)
    both = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter)
    whole = AutoModelForCausalLM.from_pretrained(merged.outputs["model"].path, dtype=dtype)
    tokens = AutoTokenizer.from_pretrained(base)("What is 3+4?", return_tensors="pt")["input_ids"].to(machine.device)
    with torch.no_grad():
        wanted, found = (model.to(machine.device).eval()(tokens).logits.float() for model in (both, whole))
    assert (found - wanted).norm() < (1e-3 if precision == "float32" else 5e-2) * wanted.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3_text", "gpt2", "qwen3_moe"])
def test_families_do_without_padding_here_too(machine: Any, tmp_path: Path, family: str, dtype: torch.dtype) -> None:
    """GPUs have other attention kernels than CPUs, and other rounding: the check before a training must still let these pass."""
    from martlet_inputs.rows.kinds import CONVERSATIONS
    from martlet_inputs.rows.report import DataReport
    from martlet_trainer.data.encode import RowEncoder
    from martlet_trainer.data.examples import encode_conversation
    from martlet_trainer.data.load import encoded_rows
    from martlet_trainer.testing import byte_tokenizer, write_jsonl

    shapes = {"gpt2": {"n_embd": 128, "n_layer": 2, "n_head": 4, "n_positions": 1024}}
    common = {
        "hidden_size": 128,
        "intermediate_size": 192,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    windows = {"sliding_window": 16} if family in ("mistral", "gemma3_text") else {}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64} if family == "qwen3_moe" else {}
    config = AutoConfig.for_model(family, vocab_size=512, **shapes.get(family, {**common, **windows, **experts}))
    directory = save_random_model(tmp_path / family, config, std=0.1)
    encode = encode_conversation(RowEncoder(byte_tokenizer(), max_length=1024))
    data = write_jsonl(tmp_path / "rows.jsonl", [*chat_rows(6), *long_rows(1, 400)])
    rows: list[Any] = list(encoded_rows(data, encode, CONVERSATIONS, DataReport()))
    device = torch.device(machine.device)
    model = load_model(directory, dtype, device)
    model.eval()
    padded = plain_loss(model, collate_padded(rows, device)).total.item()
    computation = choose_computation(model, rows, device, packing=True)
    found = computation.objective(model, computation.collate(rows, device)).total.item()
    assert found == pytest.approx(padded, rel=1e-3 if dtype == torch.float32 else 2e-2)
