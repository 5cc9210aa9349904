"""A few architectures of docs/support/models.md, tried again: dense, experts, linear attention, state spaces, old encoders, and what is refused."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("torch")

from martlet_core.errors import FailedPrecondition
from martlet_trainer.recipes.training import run
from martlet_trainer.testing import Recorder, chat_rows, lay_out, save_random_model, training_spec
from martlet_trainer.testing_architectures import tiny_config

ROOT = Path(__file__).parents[3]
SAMPLE = (
    "bert",
    "bloom",
    "blt",
    "deepseek_v3",
    "gemma2",
    "gpt2",
    "gpt_oss",
    "llama4_text",
    "mamba2",
    "mllama",
    "opt",
    "qwen3_next",
    "reformer",
    "xlm",
    "zamba2",
)


@pytest.fixture
def sweep(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import support_models

    return support_models


@pytest.mark.parametrize("model_type", SAMPLE)
def test_an_architecture_passes_every_trial(sweep: ModuleType, tmp_path: Path, model_type: str) -> None:
    outcome = sweep.try_architecture(model_type, tmp_path)
    assert {name: outcome.get(name) for name in sweep.TRIALS} == dict.fromkeys(sweep.TRIALS, "yes")


@pytest.mark.parametrize("model_type", ["cpmant", "xlnet"])
def test_a_model_that_sees_later_tokens_is_refused(tmp_path: Path, model_type: str) -> None:
    base = save_random_model(tmp_path / "base", tiny_config(model_type))
    with pytest.raises(FailedPrecondition, match="learn to copy") as refused:
        run(training_spec(), lay_out(tmp_path / "work", base, chat_rows(8)), Recorder(), lambda: False)
    assert refused.value.reason == "MODEL_NOT_CAUSAL"


def test_an_encoder_that_is_not_known_as_one_is_found_out(tmp_path: Path) -> None:
    config = tiny_config("rembert")
    config.is_decoder = False
    base = save_random_model(tmp_path / "encoder", config)
    with pytest.raises(FailedPrecondition, match="is_decoder"):
        run(training_spec(), lay_out(tmp_path / "work", base, chat_rows(8)), Recorder(), lambda: False)


def test_an_adapter_of_which_a_part_finds_no_place_is_not_merged(sweep: ModuleType, tmp_path: Path) -> None:
    outcome = sweep.try_architecture("laguna", tmp_path)
    assert outcome["trains"] == "yes"
    assert "missing adapter keys" in outcome["merges"], "merging the rest would give another model without a word"
