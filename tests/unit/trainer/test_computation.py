"""Batches without padding, sliced loss and fused LoRA compute the same numbers as the plain way, and rows never see one another."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from martlet_core.errors import FailedPrecondition
from martlet_trainer.data.encode import EncodedRow
from martlet_trainer.training import attention, computation
from martlet_trainer.training import loss as loss_module
from martlet_trainer.training.attention import IMPLEMENTATION, RowLayout
from martlet_trainer.training.batches import collate_padded, collate_rows
from martlet_trainer.training.loss import ACCURACY, LossHead, plain_loss
from martlet_trainer.training.tensors import load_tree, save_tree
from martlet_trainer.tuners.fused_lora import fuse
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

CPU = torch.device("cpu")
COMMON = [1, 60, 61, 62, 2]


def encoded(*ids: int, first_target: int) -> EncodedRow:
    values = np.asarray(ids, dtype=np.int32)
    return EncodedRow(values, np.arange(len(values)) >= first_target)


def random_rows(lengths: list[int], common: bool = True, seed: int = 0) -> list[EncodedRow]:
    draw = np.random.default_rng(seed)
    start = COMMON if common else []
    return [
        encoded(*start, *draw.integers(3, 200, size=n), first_target=len(start) + 1 + i % 3)
        for i, n in enumerate(lengths)
    ]


@pytest.fixture
def model(tiny_model_dir: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)


def row_by_row(model: Any, rows: list[EncodedRow]) -> torch.Tensor:
    """The reference: each row alone through the model's own attention."""
    return sum((plain_loss(model, collate_padded([row], CPU)).total for row in rows), torch.zeros(()))


def gradients(model: Any) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def assert_same_gradients(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    """Equal up to float32's rounding. Each gradient is a sum over hundreds of tokens, taken in another order: single
    elements that nearly cancel may differ by more than the whole does, so the whole is what is compared.
    """
    assert left.keys() == right.keys()
    for name, value in left.items():
        wanted = right[name]
        assert (value - wanted).norm() <= 2e-5 * wanted.norm() + 1e-7, name


@pytest.mark.parametrize("lengths", [[3, 9, 5], [4], [3, 150, 8, 300, 40, 290]], ids=["short", "one", "several grids"])
@pytest.mark.parametrize("common", [True, False], ids=["prefix", "no prefix"])
def test_rows_end_to_end_give_the_loss_and_gradients_of_rows_alone(
    model: Any, lengths: list[int], common: bool
) -> None:
    rows = random_rows(lengths, common)
    wanted = row_by_row(model, rows)
    wanted.backward()
    wanted_gradients = gradients(model)
    model.set_attn_implementation(IMPLEMENTATION)
    batch = collate_rows(rows, CPU)
    assert (batch.inputs["layout"].prefix_length > 0) == (common and len(rows) > 1)
    found = LossHead(model.get_output_embeddings())(model, batch)
    found.total.backward()
    torch.testing.assert_close(found.total, wanted, rtol=1e-5, atol=1e-4)
    assert_same_gradients(gradients(model), wanted_gradients)
    assert batch.token_count == sum(len(row.input_ids) for row in rows)


def test_a_row_does_not_see_the_rows_packed_with_it(model: Any) -> None:
    """The logits of a row are the same to the last bits whatever its neighbours are."""
    model.set_attn_implementation(IMPLEMENTATION)
    first, *others = random_rows([12, 12, 12], common=False)
    strangers = random_rows([12, 12], common=False, seed=9)
    with torch.no_grad():
        one, two = (collate_rows([first, *rows], CPU, share_prefix=False) for rows in (others, strangers))
        left, right = model(**one.inputs).logits[0], model(**two.inputs).logits[0]
    torch.testing.assert_close(left[:11], right[:11], rtol=1e-6, atol=1e-6)
    assert (left[11:] - right[11:]).abs().max() > 0.1, "the neighbours did differ"


def test_padding_changes_nothing(model: Any) -> None:
    rows = random_rows([3, 60, 20])
    found = plain_loss(model, collate_padded(rows, CPU)).total
    torch.testing.assert_close(found, row_by_row(model, rows), rtol=1e-5, atol=1e-4)


def test_grids_waste_little() -> None:
    layout = RowLayout.of([10, 20, 100, 120, 200, 390, 1900, 2000], 0)
    assert [grid.row_count for grid in layout.grids] == [4, 2, 2]
    assert layout.grids[-1].end == 10 + 20 + 100 + 120 + 200 + 390 + 1900 + 2000


def test_sliced_loss_is_the_plain_loss(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for the head's own gradient (it is tied to the embeddings here), with slices of three targets."""
    rows = random_rows([30, 41])
    wanted = plain_loss(model, collate_padded(rows, CPU))
    (wanted.total * 0.3).backward()
    wanted_gradients = gradients(model)
    monkeypatch.setattr(loss_module, "_SLICE_BYTES", 3 * 4 * model.config.vocab_size)
    model.set_attn_implementation(IMPLEMENTATION)
    found = LossHead(model.get_output_embeddings())(model, collate_rows(rows, CPU))
    (found.total * 0.3).backward()
    torch.testing.assert_close(found.total, wanted.total, rtol=1e-5, atol=1e-4)
    assert found.sums[ACCURACY].item() == wanted.sums[ACCURACY].item()
    assert_same_gradients(gradients(model), wanted_gradients)
    assert model(**collate_rows(rows, CPU).inputs).logits.shape[-1] == model.config.vocab_size, (
        "the head is itself again"
    )


def test_fused_lora_is_peft_lora(model: Any) -> None:
    torch.manual_seed(1)
    plain = get_peft_model(model, LoraConfig(r=4, lora_alpha=12, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, parameter in plain.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    fused = copy.deepcopy(plain)
    assert fuse(fused) == 14
    rows = random_rows([9, 20, 4])
    for one in (plain, fused):
        plain_loss(one, collate_padded(rows, CPU)).total.backward()
    assert_same_gradients(gradients(fused), gradients(plain))
    with fused.disable_adapter(), plain.disable_adapter(), torch.no_grad():
        left, right = (plain_loss(one, collate_padded(rows, CPU)).total for one in (fused, plain))
    torch.testing.assert_close(left, right, msg="an adapter that is switched off stays off")


def test_float32_adapters_below_bfloat16_compute_as_under_autocast(model: Any) -> None:
    """And in no other type; gradients are float32 as the adapter is."""
    torch.manual_seed(1)
    lora = LoraConfig(r=4, lora_alpha=12, target_modules="all-linear", task_type="CAUSAL_LM")
    plain = get_peft_model(model.to(torch.bfloat16), lora)
    for name, parameter in plain.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    fused = copy.deepcopy(plain)
    assert fuse(fused) == 14
    batch = collate_padded(random_rows([9, 20, 4]), CPU)
    for one in (plain, fused):
        with torch.autocast("cpu", torch.bfloat16):
            loss = plain_loss(one, batch).total
        loss.backward()
    found, wanted = gradients(fused), gradients(plain)
    for name, gradient in wanted.items():
        assert found[name].dtype == gradient.dtype == torch.float32
        assert (found[name] - gradient).norm() <= 0.05 * gradient.norm(), name


@pytest.mark.parametrize(("asking", "seen", "masked"), [(7, 7, False), (5, 9, True)])
def test_few_tokens_are_attended_to_as_many_are(
    monkeypatch: pytest.MonkeyPatch, asking: int, seen: int, masked: bool
) -> None:
    """By plain products, with heads that share key heads, values of another size and a scale of their own."""
    generator = torch.Generator().manual_seed(3)
    sizes = ((asking, 6, 8), (seen, 2, 8), (seen, 2, 4))
    mask = torch.ones(asking, seen, dtype=torch.bool).tril(diagonal=seen - asking) if masked else None
    found = []
    for few in (160, 0):
        monkeypatch.setattr(attention, "_FEW_TOKENS", few)
        inputs = [torch.randn(4, *size, generator=generator.manual_seed(3)).requires_grad_() for size in sizes]
        out = attention._Attend(groups=3, dropout=0.0, scaling=0.4)(*inputs, mask)
        (out * torch.arange(out.shape[1])[:, None, None]).sum().backward()
        found.append((out, *(each.grad for each in inputs)))
    assert found[0][0].shape == (4, asking, 6, 4)
    for by_products, by_kernel in zip(*found, strict=True):
        torch.testing.assert_close(by_products, by_kernel, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("change", [{"use_dora": True}, {"lora_dropout": 0.1}, {"lora_bias": True}])
def test_lora_that_does_more_is_left_to_peft(model: Any, change: dict[str, Any]) -> None:
    assert fuse(get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", **change))) == 0


def test_models_that_ignore_the_layout_are_found_out(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a model gets padded batches, and packing is refused instead of mixing rows."""
    rows = random_rows([20, 30, 25])
    monkeypatch.setattr(computation, "IMPLEMENTATION", "sdpa")  # as if the architecture dropped the layout on its way
    padded = computation.choose_computation(model, rows, CPU, packing=False)
    assert not padded.isolates_rows
    assert "logits differ" in padded.why_padded
    with pytest.raises(FailedPrecondition, match="can't keep packed rows apart"):
        computation.choose_computation(model, rows, CPU, packing=True)
    monkeypatch.undo()
    assert computation.choose_computation(model, rows, CPU, packing=True).isolates_rows


def test_scaled_logits_are_left_to_the_model() -> None:
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    config.final_logit_softcapping = 30.0
    assert LossHead.of(LlamaForCausalLM(config)) is None


def test_trees_come_back_as_they_were(tmp_path: Path) -> None:
    tree = {
        "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.randn(2, 3)}},
        "betas": (0.9, 0.999),
        "x": [None, True, "a"],
    }
    save_tree(tree, tmp_path / "tree")
    found = load_tree(tmp_path / "tree")
    assert torch.equal(found["state"][0]["exp_avg"], tree["state"][0]["exp_avg"])
    assert found["betas"] == (0.9, 0.999)
    assert found["x"] == [None, True, "a"]
    with pytest.raises(TypeError, match="can't store SimpleNamespace"):
        save_tree({"a": SimpleNamespace()}, tmp_path / "other")
