"""Starts of LoRA that are made of data or of rounding: EVA, LoRA-GA, LoftQ."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from martlet_core.errors import InvalidArgument
from martlet_core.recipe import StopRequested
from martlet_trainer.config import parse_training_config
from martlet_trainer.recipes.training import run
from martlet_trainer.testing import Recorder, chat_rows, training_spec
from martlet_trainer.training.devices import place
from martlet_trainer.training.models import load_model, load_tokenizer
from martlet_trainer.tuners.base import FirstBatch, TunerInputs
from martlet_trainer.tuners.build import build_tuner
from martlet_trainer.tuners.shifted_lora import layers
from peft import PeftConfig

MakeWorkdir = Callable[..., Path]
CPU = torch.device("cpu")
TUNERS = {
    "eva": {"kind": "lora", "init_weights": "eva"},
    "lora_ga": {"kind": "lora", "init_weights": "lora_ga"},
    "loftq": {"kind": "qlora", "init_weights": "loftq"},
}


def spec_of(start: str, **numbers: Any) -> dict[str, Any]:
    return training_spec(tuner={"lora_rank": 4, **TUNERS[start]}, hyperparameters={"max_steps": 5, **numbers})


def train(start: str, workdir: Path, stop: Any = lambda report: False, **numbers: Any) -> tuple[Any, Recorder]:
    report = Recorder()
    return run(spec_of(start, **numbers), workdir, report, lambda: stop(report)), report


def tuner_of(start: str, base: Path) -> Any:
    config = parse_training_config(spec_of(start)).resolved()
    torch.manual_seed(0)
    return build_tuner(TunerInputs(config, place(config), base, "tiny", load_tokenizer(base)))


def batch_of(tuner: Any, ids: torch.Tensor) -> FirstBatch:
    """A batch whose loss is peft's own, by labels."""
    return FirstBatch(None, lambda: tuner.model(input_ids=ids, labels=ids).loss)


@pytest.mark.parametrize("start", TUNERS)
def test_it_goes_on_as_if_never_stopped(make_workdir: MakeWorkdir, start: str) -> None:
    rows = chat_rows(12)
    whole, _ = train(start, make_workdir("whole", rows))
    first = make_workdir("first", rows)
    with pytest.raises(StopRequested):
        train(start, first, lambda report: len(report.losses) >= 3)
    resumed, _ = train(start, make_workdir("second", rows, resume=first / "checkpoints" / "step-3"))
    files = [result.outputs["model"].path / "adapter_model.safetensors" for result in (whole, resumed)]
    assert len({path.read_bytes() for path in files}) == 1


@pytest.mark.parametrize("start", TUNERS)
def test_what_is_written_is_plain_lora_that_says_what_was_trained(make_workdir: MakeWorkdir, start: str) -> None:
    """On the untouched base model; with LoftQ that one isn't rounded, and what was made up for isn't there."""
    rows, held_out = chat_rows(12), {"validation_dataset": "artifacts/b"}
    numbers = {"max_steps": 8, "learning_rate": 1e-3, "eval_steps": 8}
    tolerance = 0.05 if start == "loftq" else 1e-3  # what four bits and rank 4 leave
    losses = {}
    for name, tuner in ((start, TUNERS[start]), ("plain", {})):
        report, workdir = Recorder(), make_workdir(name, rows, validation=rows[:4])
        spec = training_spec(tuner={"lora_rank": 4, **tuner}, hyperparameters=numbers, **held_out)
        losses[name] = report, run(spec, workdir, report, lambda: False)
    report, result = losses[start]
    assert report.losses[0] == pytest.approx(losses["plain"][0].losses[0], abs=tolerance)
    assert report.losses[2] != pytest.approx(losses["plain"][0].losses[2], abs=1e-4)
    output = result.outputs["model"]
    assert output.metadata["lora_rank"] == (4 if start == "eva" else 8)
    assert PeftConfig.from_pretrained(output.path).init_lora_weights is True
    again = training_spec(hyperparameters={"max_steps": 1, "learning_rate": 1e-12}, base_model="ft:a", **held_out)
    del again["tuner"]
    after, workdir = Recorder(), make_workdir("again", rows, validation=rows[:4], adapter=output.path)
    run({**again, "adapter_base_model": "tiny"}, workdir, after, lambda: False)
    assert after.steps[1]["valid_loss"] == pytest.approx(report.steps[8]["valid_loss"], abs=tolerance)


def test_eva_finds_the_principal_components(tiny_model_dir: Path) -> None:
    """Orthogonal directions that explain nearly as much of the inputs' variance as any could: peft's decomposition is approximate."""
    tuner = tuner_of("eva", tiny_model_dir)
    ids = torch.randint(3, 200, (4, 40), generator=torch.Generator().manual_seed(1))
    seen: dict[str, torch.Tensor] = {}
    for name, layer in layers(tuner.model):
        layer.register_forward_pre_hook(lambda _, x, name=name: seen.__setitem__(name, x[0].detach()))
    tuner.companion.meet_data([batch_of(tuner, ids)])
    for name, layer in layers(tuner.model):
        states = seen[name].reshape(-1, seen[name].shape[-1])
        states = states - states.mean(0)
        found = layer.lora_A["default"].weight
        assert torch.allclose(found @ found.T, torch.eye(4), atol=1e-4)
        explained, most = (states @ found.T).square().sum(), torch.linalg.svdvals(states)[:4].square().sum()
        assert explained > 0.97 * most, name
        assert not layer.lora_B["default"].weight.any()


def test_padding_is_no_data(tiny_model_dir: Path) -> None:
    found = []
    for padded in (False, True):
        tuner = tuner_of("eva", tiny_model_dir)
        ids = torch.randint(3, 200, (2, 20), generator=torch.Generator().manual_seed(1))
        batch = batch_of(tuner, ids)
        if padded:
            wide = torch.cat([ids, torch.zeros(2, 30, dtype=torch.long)], dim=1)
            batch = FirstBatch((torch.arange(50) < 20).expand(2, 50), batch_of(tuner, wide).loss)
        tuner.companion.meet_data([batch])
        found.append({name: layer.lora_A["default"].weight for name, layer in layers(tuner.model)})
    for name, weight in found[0].items():
        assert torch.allclose(weight.abs(), found[1][name].abs(), atol=1e-2), name


def test_eva_needs_tokens(tiny_model_dir: Path) -> None:
    tuner = tuner_of("eva", tiny_model_dir)
    with pytest.raises(InvalidArgument, match=r"init_weights: is eva, which needs more than 4 tokens"):
        tuner.companion.meet_data([batch_of(tuner, torch.tensor([[5, 6, 7]]))])


def test_lora_ga_starts_as_the_base_model_along_the_gradient(tiny_model_dir: Path) -> None:
    """Each layer's factors span the gradient's leading directions, and what they add was taken out of the base."""
    tuner = tuner_of("lora_ga", tiny_model_dir)
    ids = torch.randint(3, 200, (4, 40), generator=torch.Generator().manual_seed(1))
    base = load_model(tiny_model_dir, torch.float32, CPU)
    base(input_ids=ids, labels=ids).loss.backward()
    with torch.no_grad():
        before = base.eval()(ids).logits
    tuner.companion.meet_data([batch_of(tuner, ids)])
    with torch.no_grad():
        after = tuner.model.eval()(input_ids=ids).logits
    assert torch.allclose(after, before, atol=1e-3)
    for name, layer in layers(tuner.model):
        gradient = base.get_submodule(name.removeprefix("base_model.model.")).weight.grad
        left, _, right = torch.linalg.svd(gradient, full_matrices=False)
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        for rows, directions in ((a, right[:8]), (b.T, left.T[:8])):
            inside = (rows @ directions.T).norm() / rows.norm()
            assert inside > 0.98, name
        assert not layer.get_base_layer().weight.requires_grad
        assert layer.get_base_layer().weight.grad is None


def test_loftq_makes_up_for_rounding(tiny_model_dir: Path) -> None:
    """By as much as the best approximation of that rank can."""
    tuner, base = tuner_of("loftq", tiny_model_dir), load_model(tiny_model_dir, torch.float32, CPU)
    for name, layer in layers(tuner.model):
        quantized = layer.get_base_layer().weight
        wanted = base.get_submodule(name.removeprefix("base_model.model.")).weight
        rest = wanted - dequantize_4bit(quantized.data, quantized.quant_state).float()
        made_up = layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        best = torch.linalg.svdvals(rest)[4:].norm()
        assert torch.allclose((rest - made_up).norm(), best, rtol=1e-3), name
        assert best < 0.95 * rest.norm()


@pytest.mark.parametrize(
    ("tuner", "message"),
    [
        ({"kind": "lora", "init_weights": "loftq"}, "set tuner.kind to qlora"),
        ({"kind": "qlora", "quantization": "int8", "init_weights": "loftq"}, "quantization to nf4"),
        ({"kind": "qlora", "init_weights": "lora_ga"}, "needs plain LoRA on unquantized weights"),
        ({"kind": "lora", "use_dora": True, "init_weights": "lora_ga"}, "needs plain LoRA on unquantized weights"),
        ({"kind": "vera", "init_weights": "eva"}, r"init_weights: is LoRA's"),
    ],
)
def test_starts_that_cannot_be_are_refused_at_submission(tuner: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        parse_training_config({"base_model": "m", "training_dataset": "artifacts/a", "tuner": tuner})


def test_a_start_from_gradients_needs_a_loss_that_has_one() -> None:
    spec = {"base_model": "m", "training_dataset": "artifacts/a", "tuner": {"init_weights": "lora_ga"}}
    with pytest.raises(InvalidArgument, match=r"init_weights: is lora_ga, .*grpo has none"):
        parse_training_config({**spec, "recipe": "grpo"})
