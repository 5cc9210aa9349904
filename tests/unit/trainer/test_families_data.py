"""The data about families of models: each is true of a tiny model of its family, and each template says what it is meant to."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest

pytest.importorskip("torch")

import torch
from martlet_inputs.base_models.families import chat_templates, family_of, known_families
from martlet_trainer.testing import Recorder, byte_tokenizer, chat_rows, lay_out, save_random_model, training_spec
from martlet_trainer.testing_architectures import causal_architectures, tiny_config
from transformers import AutoConfig, AutoModelForCausalLM

TURNS = [
    {"role": "user", "content": "1+1?"},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "4"},
]


@pytest.mark.parametrize("model_type", sorted(known_families()))
def test_what_is_said_of_a_family_is_true_of_it(model_type: str) -> None:
    family = family_of(model_type)
    assert model_type in causal_architectures()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(model_type))
    names = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    for pattern in family.keep_out:
        assert any(re.fullmatch(pattern, name) for name in names), f"{pattern} is no linear module: {names}"
    for target in family.targets:
        assert any(name.rsplit(".", 1)[-1] == target for name in names)


def test_a_family_of_which_nothing_is_said_has_no_rules() -> None:
    assert family_of("llama-of-tomorrow") == family_of("")
    assert not family_of("").keep_out


@pytest.mark.parametrize("name", sorted(chat_templates()))
def test_a_template_grows_with_its_conversation_and_uses_the_tokens_it_needs(name: str) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = chat_templates()[name].text
    texts = [str(tokenizer.apply_chat_template(TURNS[:count], tokenize=False)) for count in range(1, 5)]
    for shorter, longer in pairwise(texts):
        assert longer.startswith(shorter), "earlier turns are never rewritten"
    asked = str(tokenizer.apply_chat_template(TURNS[:1], tokenize=False, add_generation_prompt=True))
    assert texts[1].startswith(asked), "the answer goes on where the question ends"
    assert all(token in texts[1] for token in chat_templates()[name].needs)
    assert texts[1].count("2") == 1


def test_layers_that_must_stay_out_do_and_the_training_runs(tmp_path: Path) -> None:
    from martlet_trainer.recipes.training import run
    from safetensors.torch import load_file

    base = save_random_model(tmp_path / "base", tiny_config("mamba"))
    assert AutoConfig.from_pretrained(base).model_type == "mamba"
    run(training_spec(), lay_out(tmp_path / "work", base, chat_rows(8)), Recorder(), lambda: False)
    names = load_file(tmp_path / "work/output/model/adapter_model.safetensors").keys()
    assert any("in_proj" in name for name in names)
    assert not any("out_proj" in name for name in names)
