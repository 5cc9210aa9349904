"""Merging: the merged model answers like base and adapter together, or nothing comes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from martlet_core.errors import FailedPrecondition
from martlet_core.recipe import StopRequested
from martlet_trainer.recipes import merge
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


class Recorder:
    """A report that keeps what it is told."""

    def __init__(self) -> None:
        self.phases: list[str] = []
        self.lines: list[str] = []

    def phase(self, name: str) -> None:
        self.phases.append(name)

    def log(self, message: str, level: str = "info") -> None:
        self.lines.append(message)

    def metrics(self, *_: Any, **__: Any) -> None: ...
    def checkpoint(self, *_: Any, **__: Any) -> None: ...
    def partial_result(self, *_: Any, **__: Any) -> None: ...


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    """A work directory with a tiny random base model and an adapter that changes it a lot."""
    torch.manual_seed(3)
    base = tmp_path / "inputs" / "base_model"
    vocabulary = {f"<{i}>": i for i in range(32)} | {chr(c): c for c in range(32, 127)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<0>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(base)
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(base)
    adapted = get_peft_model(model.float(), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    adapted.save_pretrained(tmp_path / "inputs" / "adapter")
    return tmp_path


def run(workdir: Path, **config: Any) -> tuple[merge.RecipeResult, Recorder]:
    report = Recorder()
    values = {"adapter": "ft:tiny", "base_model": "tiny", **config}
    return merge.run(values, workdir, report, lambda: False), report


def test_merged_in_32_bit_agrees_with_base_and_adapter(workdir: Path) -> None:
    result, report = run(workdir, precision="float32")
    assert result.values["mean_logprob_difference"] < 1e-5
    assert result.values["top1_agreement"] == 1.0
    assert result.values["positions"] > 500
    assert result.outputs["model"].kind == "merged_model"
    assert "merging" in report.phases


def test_the_adapter_is_in_the_merged_weights(workdir: Path) -> None:
    result, _ = run(workdir, precision="float32")
    merged = AutoModelForCausalLM.from_pretrained(result.outputs["model"].path)
    base = AutoModelForCausalLM.from_pretrained(workdir / "inputs" / "base_model", dtype=torch.float32)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.allclose(merged.state_dict()[name], base.state_dict()[name], atol=1e-2)


def test_auto_keeps_the_type_of_the_base(workdir: Path) -> None:
    result, _ = run(workdir)
    assert result.outputs["model"].metadata["precision"] == "bfloat16"
    assert 0 < result.values["mean_logprob_difference"] < 0.15


def test_a_difference_over_the_limit_fails_and_names_both_numbers(workdir: Path) -> None:
    with pytest.raises(
        FailedPrecondition, match=r"nats on average, more than max_logprob_difference = 1e-08"
    ) as caught:
        run(workdir, precision="bfloat16", max_logprob_difference=1e-8)
    assert caught.value.reason == "MERGE_DIFFERS"


def test_a_base_that_cannot_be_made_ordinary_again_is_refused(workdir: Path) -> None:
    path = workdir / "inputs" / "base_model" / "config.json"
    path.write_text(path.read_text().replace("{", '{"quantization_config": {"quant_method": "gptq"},', 1))
    with pytest.raises(FailedPrecondition, match="tiny is quantized by gptq") as caught:
        run(workdir)
    assert caught.value.reason == "BASE_IS_QUANTIZED"


def test_stops_when_asked(workdir: Path) -> None:
    with pytest.raises(StopRequested):
        merge.run({"adapter": "ft:tiny", "base_model": "tiny"}, workdir, Recorder(), lambda: True)
    assert not (workdir / "output").exists()
