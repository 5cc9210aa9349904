"""Added layers: they begin by doing nothing, are trained alone, and the result is a model like any other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from martlet_core.errors import InvalidArgument
from martlet_core.recipe import StopRequested
from martlet_trainer.recipes.training import run
from martlet_trainer.testing import Recorder, chat_rows, lay_out, save_random_model, training_spec
from martlet_trainer.testing_architectures import tiny_config
from martlet_trainer.training.models import load_model
from martlet_trainer.tuners.llamapro import added_places, expanded
from transformers import AutoConfig, AutoModelForCausalLM

MakeWorkdir = Callable[..., Path]
CPU = torch.device("cpu")
IDS = torch.tensor([[1, 9, 40, 41, 42, 43, 2, 1, 10, 44, 45]])


def train(workdir: Path, stop: Any = lambda report: False, blocks: int = 1, **numbers: Any) -> tuple[Any, Recorder]:
    report = Recorder()
    spec = training_spec(hyperparameters={"max_steps": 6, **numbers})
    spec["tuner"] = {"kind": "llamapro", "options": {"num_new_blocks": blocks}}
    return run(spec, workdir, report, lambda: stop(report)), report


@pytest.mark.parametrize("blocks", [1, 2])
def test_only_added_layers_move(make_workdir: MakeWorkdir, blocks: int) -> None:
    workdir = make_workdir("a", chat_rows(16))
    result, report = train(workdir, blocks=blocks, max_steps=20)
    assert report.losses[-1] < report.losses[0] - 0.05
    output = result.outputs["model"]
    assert (output.kind, output.metadata["tuner"]) == ("model", "llamapro")
    model: Any = AutoModelForCausalLM.from_pretrained(output.path)
    base = load_model(workdir / "inputs" / "base_model", torch.float32, CPU)
    assert model.config.num_hidden_layers == len(model.model.layers) == 2 + blocks
    own = [layer for place, layer in enumerate(model.model.layers) if place not in added_places(2, blocks)]
    for mine, theirs in zip(own, base.model.layers, strict=True):
        for name, weight in mine.named_parameters():
            assert torch.equal(weight, theirs.get_parameter(name)), name
    with torch.no_grad():
        assert not torch.allclose(model(IDS).logits, base(IDS).logits, atol=1e-2)


def test_it_starts_as_the_base_model(make_workdir: MakeWorkdir) -> None:
    rows = chat_rows(8)
    _, report = train(make_workdir("a", rows), max_steps=1)
    plain = Recorder()
    run(training_spec(hyperparameters={"max_steps": 1}), make_workdir("b", rows), plain, lambda: False)
    assert report.losses == pytest.approx(plain.losses, rel=1e-5)


def test_it_goes_on_as_if_never_stopped(make_workdir: MakeWorkdir) -> None:
    rows = chat_rows(12)
    whole, _ = train(make_workdir("whole", rows))
    first = make_workdir("first", rows)
    with pytest.raises(StopRequested):
        train(first, lambda report: len(report.losses) >= 3)
    resumed, _ = train(make_workdir("second", rows, resume=first / "checkpoints" / "step-3"))
    files = [result.outputs["model"].path / "model.safetensors" for result in (whole, resumed)]
    assert len({path.read_bytes() for path in files}) == 1


@pytest.mark.parametrize("family", ["qwen3", "gemma2", "gpt2", "gpt_neox"])
def test_other_families(tmp_path: Path, family: str) -> None:
    """Norms behind a layer's output, lists of what each layer is, other names."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 300, "head_dim": 16}
    if family == "gpt2":
        sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 300}
    more = {} if family == "gpt2" else {"intermediate_size": 48, "num_key_value_heads": 2}
    base = load_model(
        save_random_model(tmp_path, AutoConfig.for_model(family, **sizes, **more), std=0.2), torch.float32, CPU
    )
    model = expanded(base, 2)
    kinds = getattr(model.config, "layer_types", None)
    assert kinds is None or len(kinds) == 4
    with torch.no_grad():
        assert torch.allclose(model.eval()(IDS).logits, base.eval()(IDS).logits, atol=1e-4)


def test_places() -> None:
    assert added_places(4, 2) == [2, 5]
    with pytest.raises(InvalidArgument, match=r"num_new_blocks: is 3, .* 4 layers; give one of 1, 2, 4"):
        added_places(4, 3)


def text_model_of_another(directory: Path) -> Path:
    """A model that reads pictures too, of which the trainer loads the text model alone; its files say what the whole is."""
    config = tiny_config("qwen3_5")
    save_random_model(directory, config)
    config.save_pretrained(directory)
    return directory


def test_a_text_model_is_saved_with_its_new_layers(tmp_path: Path) -> None:
    base = text_model_of_another(tmp_path / "base")
    workdir = lay_out(tmp_path / "a", base, chat_rows(4))
    result, _ = train(workdir, max_steps=2)
    output = result.outputs["model"].path
    config = AutoConfig.from_pretrained(output)
    assert (config.model_type, config.get_text_config().num_hidden_layers) == ("qwen3_5", 3)
    assert len(config.get_text_config().layer_types) == 3
    model = load_model(output, torch.float32, CPU)
    own = [layer for place, layer in enumerate(model.model.layers) if place not in added_places(2, 1)]
    before = load_model(base, torch.float32, CPU).model.layers
    for mine, theirs in zip(own, before, strict=True):
        assert all(torch.equal(weight, theirs.get_parameter(name)) for name, weight in mine.named_parameters())


def test_a_text_model_is_saved_with_its_new_positions(tmp_path: Path) -> None:
    """LongLoRA's, which changes the same config in another way."""
    base = text_model_of_another(tmp_path / "base")
    spec = {**training_spec(hyperparameters={"max_steps": 1}), "tuner": {"kind": "longlora"}}
    result = run(spec, lay_out(tmp_path / "a", base, chat_rows(4)), Recorder(), lambda: False)
    old, new = (AutoConfig.from_pretrained(path) for path in (base, result.outputs["model"].path))
    assert new.model_type == "qwen3_5"
    assert new.get_text_config().max_position_embeddings == 4 * old.get_text_config().max_position_embeddings
    assert new.get_text_config().rope_parameters["rope_type"] == "yarn"


def test_layers_that_follow_from_their_places_are_refused(tmp_path: Path) -> None:
    base = load_model(save_random_model(tmp_path, tiny_config("llama4_text")), torch.float32, CPU)
    with pytest.raises(InvalidArgument, match="which layers this model has follows from their places; use lora"):
        expanded(base, 1)
