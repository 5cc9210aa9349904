"""Every method on a tiny random model, whole jobs: quantized, reloaded from disk, measured, judged.

Each runs in the environment of its family and is skipped with the reason in others.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from martlet_core.errors import FailedPrecondition, InvalidArgument
from martlet_core.recipe import FailedWithResult, StopRequested
from martlet_quantizer import quantize, testing

Run = Callable[..., Any]


def needs(family: str) -> pytest.MarkDecorator:
    """Skips a test where the family's libraries aren't installed."""
    reason = f"needs the environment quantizer-{family}-test"
    return pytest.mark.skipif(not testing.has(family), reason=reason)


def config_of(workdir: Path) -> dict[str, Any]:
    return json.loads((workdir / "output" / "model" / "config.json").read_text())


def check(result: Any, *, smaller_than: float) -> dict[str, Any]:
    values = result.values
    assert values["size_ratio"] < smaller_than
    assert values["size_bytes"] < values["base_size_bytes"]
    assert 0.5 < values["perplexity_ratio"] < 1.35
    assert values["top1_agreement"] > 0.5
    assert values["positions"] > 5000
    assert values["engines"][0]["loaded"]
    assert result.outputs["model"].kind == "quantized_model"
    assert result.outputs["report"].kind == "report"
    return dict(values)


@needs("bnb")
def test_bnb_nf4(run: Run) -> None:
    result, report, workdir = run("bnb-nf4", options={"ignore": ["down_proj"]})
    values = check(result, smaller_than=0.75)
    assert (values["calibration_rows_read"], values["group_size"]) == (0, 0)
    assert config_of(workdir)["quantization_config"]["bnb_4bit_quant_type"] == "nf4"
    facts = json.loads((workdir / "output" / "report" / "report.json").read_text())
    assert facts["details"]["quantized_layers"] == 12
    assert sorted(facts["details"]["left_alone"]) == [
        "lm_head",
        "model.layers.0.mlp.down_proj",
        "model.layers.1.mlp.down_proj",
    ]
    assert len(facts["samples"]) == 1
    assert facts["versions"]["bitsandbytes"] == "0.50.2"
    assert "the job's result has that row" in facts["served"]
    assert facts["served"] in (workdir / "output" / "report" / "report.md").read_text()
    assert "quantizing" in report.phases
    assert (workdir / "output" / "model" / "tokenizer.json").is_file()


@needs("bnb")
def test_what_a_model_was_made_for_stays_known(run: Run, tiny_model: Path, tmp_path: Path) -> None:
    """A decoder that makes vectors: the artifact says so, and how texts are pooled lies beside the weights."""
    model = tmp_path / "embeds"
    shutil.copytree(tiny_model, model)
    (model / "1_Pooling").mkdir()
    for name in ("modules.json", "sentence_bert_config.json", "1_Pooling/config.json"):
        (model / name).write_text(json.dumps({"is": name}))
    result, _, workdir = run("bnb-nf4", model=model, task="embedding")
    assert result.outputs["model"].metadata["task"] == "embedding"
    for name in ("modules.json", "sentence_bert_config.json", "1_Pooling/config.json"):
        assert json.loads((workdir / "output" / "model" / name).read_text()) == {"is": name}


@needs("bnb")
def test_bnb_int8(run: Run) -> None:
    result, _, workdir = run("bnb-int8")
    check(result, smaller_than=0.75)
    assert config_of(workdir)["quantization_config"]["load_in_8bit"]


@needs("bnb")
def test_experts_that_stay_as_they_were_are_told(run: Run, tmp_path: Path) -> None:
    """transformers keeps all experts of a layer in one tensor, in which bitsandbytes sees no linear layer."""
    from transformers import MixtralConfig, MixtralForCausalLM

    tokenizer = testing.byte_tokenizer()
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = MixtralConfig(vocab_size=len(tokenizer), num_key_value_heads=4, num_local_experts=4, **sizes)
    model = testing.train_and_save(MixtralForCausalLM(config), tokenizer, tmp_path / "model", training_steps=1)
    result, report, workdir = run("bnb-int8", model=model, max_perplexity_ratio=2.0)
    facts = json.loads((workdir / "output" / "report" / "report.json").read_text())["details"]
    experts, attention, router = 4 * 3 * 64 * 64, 4 * 64 * 64, 4 * 64
    assert facts["untouched_share"] == pytest.approx((experts + router) / (experts + attention + router), abs=1e-3)
    assert any("bnb-int8 left 13 matrices with 75% of the weights" in line for line in report.lines), report.lines
    assert result.values["engines"][0]["loaded"]


@needs("llmcompressor")
def test_w8a8_int8(run: Run) -> None:
    result, _, workdir = run("w8a8-int8", calibration={"max_rows": 16, "sequence_length": 64})
    values = check(result, smaller_than=0.75)
    assert (values["calibration_rows_read"], values["calibration_rows_used"]) == (38, 16)
    assert values["calibration_rows_chopped"] == 16
    assert config_of(workdir)["quantization_config"]["quant_method"] == "compressed-tensors"


@needs("llmcompressor")
def test_gemma_is_smoothed_where_nothing_but_the_mlp_hears_of_it(run: Run, tmp_path: Path) -> None:
    """By llm-compressor's own choice of norms, a third of the most likely tokens would change."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    tokenizer = testing.byte_tokenizer()
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "head_dim": 16,
    }
    config = Gemma3TextConfig(
        vocab_size=len(tokenizer),
        num_key_value_heads=2,
        query_pre_attn_scalar=16,
        sliding_window=32,
        initializer_range=0.2,
        **sizes,
    )
    model = testing.train_and_save(Gemma3ForCausalLM(config), tokenizer, tmp_path / "model", training_steps=20)
    result, _, _ = run("w8a8-int8", model=model, calibration={"max_rows": 16, "sequence_length": 64})
    assert result.values["top1_agreement"] > 0.95


@needs("llmcompressor")
def test_an_architecture_nobody_knows_the_norms_of_is_not_smoothed(run: Run, tmp_path: Path) -> None:
    from transformers import Olmo2Config, Olmo2ForCausalLM

    tokenizer = testing.byte_tokenizer()
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = Olmo2Config(vocab_size=len(tokenizer), initializer_range=0.2, **sizes)
    model = testing.train_and_save(Olmo2ForCausalLM(config), tokenizer, tmp_path / "model", training_steps=20)
    result, report, _ = run("w8a8-int8", model=model, calibration={"max_rows": 16, "sequence_length": 64})
    assert result.values["top1_agreement"] > 0.95
    assert any("no layers of Olmo2ForCausalLM to smooth" in line for line in report.lines), report.lines


@needs("llmcompressor")
def test_fp8_dynamic(run: Run) -> None:
    result, _, workdir = run("fp8-dynamic", processes=True, options={"ignore": ["re:model.layers.0.*"]})
    check(result, smaller_than=0.9)
    ignored = config_of(workdir)["quantization_config"]["ignore"]
    assert "lm_head" in ignored
    assert "model.layers.0.mlp.up_proj" in ignored


@needs("llmcompressor")
def test_w4a16_falls_to_a_group_size_that_divides(run: Run, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps({"query": f"{i} + {i + 1}?", "response": f"{2 * i + 1}. " * 20}) + "\n" for i in range(20))
    )
    result, report, workdir = run("w4a16", inputs={"calibration": rows}, calibration={"sequence_length": 64})
    values = check(result, smaller_than=0.6)
    assert values["group_size"] == 64
    assert any("Group size 64 instead of 128" in line for line in report.lines)
    assert values["calibration_rows_read"] == values["calibration_rows_used"] == 20
    scheme = config_of(workdir)["quantization_config"]["config_groups"]["group_0"]["weights"]
    assert (scheme["group_size"], scheme["num_bits"]) == (64, 4)


@needs("gguf")
@pytest.mark.parametrize(("kind", "smaller_than"), [("q8_0", 0.6), ("q4_0", 0.45), ("q4_1", 0.5)])
def test_gguf(run: Run, kind: str, smaller_than: float) -> None:
    result, _, workdir = run("gguf", processes=kind == "q8_0", options={"gguf_type": kind})
    values = check(result, smaller_than=smaller_than)
    assert values["engines"][1]["engine"] == "llama.cpp's reader (gguf)"
    assert values["engines"][1]["loaded"], values["engines"][1]["detail"]
    assert (workdir / "output" / "model" / f"model-{kind}.gguf").is_file()


@needs("gguf")
def test_gguf_keeps_layers_and_the_tokenizer(run: Run) -> None:
    import gguf

    _, _, workdir = run("gguf", options={"ignore": ["v_proj"]})
    reader = gguf.GGUFReader(workdir / "output" / "model" / "model-q8_0.gguf")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert kinds["blk.0.attn_v.weight"] == "F16"
    assert kinds["blk.0.attn_q.weight"] == "Q8_0"
    assert kinds["blk.0.attn_norm.weight"] == "F32"
    fields = {name: reader.get_field(f"tokenizer.ggml.{name}") for name in ("pre", "eos_token_id", "tokens")}
    assert all(fields.values())
    assert fields["pre"].contents() == "gpt-2"
    assert fields["eos_token_id"].contents() == 2
    assert fields["tokens"].contents()[:3] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    template = reader.get_field("tokenizer.chat_template")
    assert template is not None
    assert template.contents() == testing.CHAT_TEMPLATE


@needs("gptqmodel")
def test_gptq(run: Run) -> None:
    result, _, workdir = run("gptq", processes=True, calibration={"max_rows": 16, "sequence_length": 64})
    values = check(result, smaller_than=0.7)
    assert values["group_size"] == 64
    assert config_of(workdir)["quantization_config"]["quant_method"] == "gptq"
    assert [entry["engine"] for entry in values["engines"]] == ["GPTQModel", "transformers (with gptqmodel)"]


@needs("gptqmodel")
def test_gptq_of_a_mixture_is_read_by_gptqmodel_alone(run: Run, tmp_path: Path) -> None:
    """transformers finds none of its experts and would go on with random ones."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    tokenizer = testing.byte_tokenizer()
    config = Qwen3MoeConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=64,
        initializer_range=0.2,
    )
    model = testing.train_and_save(Qwen3MoeForCausalLM(config), tokenizer, tmp_path / "model", training_steps=20)
    result, _, _ = run("gptq", model=model, processes=True, calibration={"max_rows": 16, "sequence_length": 64})
    assert result.values["top1_agreement"] > 0.9
    assert "lack 4 of the model's weights" in result.values["engines"][1]["detail"]


@needs("awq")
def test_awq(run: Run, tiny_model: Path, tmp_path: Path) -> None:
    """Of a model whose tokenizer was saved by transformers 5, which AutoAWQ's transformers doesn't read."""
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    tokenizer = json.loads((model / "tokenizer_config.json").read_text()) | {"tokenizer_class": "TokenizersBackend"}
    (model / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    result, _, workdir = run("awq", model=model, processes=True, calibration={"max_rows": 16, "sequence_length": 64})
    values = check(result, smaller_than=0.7)
    assert [entry["engine"] for entry in values["engines"]][1:] == ["autoawq", "transformers (with gptqmodel)"]
    assert values["engines"][1]["loaded"], values["engines"][1]["detail"]
    assert "no environment of the family gptqmodel" in values["engines"][2]["detail"]
    assert config_of(workdir)["quantization_config"]["quant_method"] == "awq"


@needs("awq")
@pytest.mark.parametrize("mended", [True, False])
def test_awq_without_our_quantizer_destroys_the_weights(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mended: bool
) -> None:
    """AutoAWQ's own class on a CPU ends without an error and writes garbage; if this fails, it was mended upstream. It shows
    where the columns of the weights differ in size.
    """
    from awq.quantize.quantizer import AwqQuantizer
    from martlet_quantizer.methods.awq import Quantizer

    model = testing.save_tiny_model(tmp_path / "model", uneven=True)
    monkeypatch.setattr(quantize, "ENGINE_CHECKS", {})
    asked = {"calibration": {"max_rows": 16, "sequence_length": 64}, "max_perplexity_ratio": 1.1}
    if mended:
        result, _, _ = run("awq", model=model, **asked)
        assert result.values["top1_agreement"] > 0.8
        return
    monkeypatch.setattr(Quantizer, "_compute_best_scale", AwqQuantizer._compute_best_scale)
    with pytest.raises(FailedWithResult) as caught:
        run("awq", model=model, **asked)
    assert caught.value.error.reason == "QUALITY_TOO_LOW"
    assert caught.value.result.values["top1_agreement"] < 0.6


@needs("bnb")
def test_a_model_worse_than_allowed_fails_with_its_report(run: Run) -> None:
    with pytest.raises(FailedWithResult) as caught:
        run("bnb-nf4", max_perplexity_ratio=1.0000001)
    error, result = caught.value.error, caught.value.result
    assert isinstance(error, FailedPrecondition)
    assert error.reason == "QUALITY_TOO_LOW"
    assert "more than max_perplexity_ratio = 1" in error.message
    assert list(result.outputs) == ["report"]
    assert result.values["perplexity_ratio"] > 1
    page = (result.outputs["report"].path / "report.md").read_text()
    assert error.message in page
    assert "replica" not in page, "what isn't published is tried on none"


@needs("bnb")
def test_a_job_stops_in_the_middle_of_a_step(tmp_path: Path, tiny_model: Path) -> None:
    workdir = testing.lay_out(tmp_path / "job", tiny_model)
    report = testing.Recorder()
    with pytest.raises(StopRequested):
        quantize.run({"model": "tiny", "method": "bnb-nf4"}, workdir, report, lambda: "quantizing" in report.phases)
    assert report.phases == ["checking", "quantizing"]


def test_a_quantized_model_is_refused(run: Run, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"quantization_config": {"quant_method": "gptq"}}')
    with pytest.raises(FailedPrecondition, match="tiny is quantized by gptq already"):
        run("bnb-nf4", model=model)


def test_pickled_weights_are_refused(run: Run, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "llama"}')
    (model / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(FailedPrecondition, match=r"no \.safetensors files"):
        run("bnb-nf4", model=model)


def test_an_impossible_architecture_is_refused(run: Run, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "mamba"}')
    (model / "model.safetensors").write_bytes(b"")
    with pytest.raises(InvalidArgument, match="gguf can't quantize a 'mamba' model"):
        run("gguf", model=model)
