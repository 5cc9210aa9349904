"""The in-process target against the model itself; runs where torch is, in the trainer's test environment."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from martlet_core.errors import FailedPrecondition  # noqa: E402
from martlet_evaluator.targets.base import Answer, Sampling  # noqa: E402
from martlet_evaluator.targets.local import LocalTarget  # noqa: E402
from martlet_trainer.testing import byte_tokenizer, save_random_model  # noqa: E402

ASK = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Llama whose tokens are bytes."""
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=len(byte_tokenizer()),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        initializer_range=0.2,
    )
    return save_random_model(tmp_path_factory.mktemp("model"), config)


@pytest.fixture(scope="module")
def target(model_dir: Path) -> LocalTarget:
    return LocalTarget("local", "tiny", model_dir)


def ask(call: Any) -> Answer:
    return asyncio.run(call)


def test_an_answer_is_one_of_the_labels_and_the_likeliest_way_to_one(target: LocalTarget) -> None:
    free = ask(target.chat(ASK, Sampling(max_tokens=8)))
    assert free.completion_tokens == 8 or free.finish_reason == "stop"
    labels = ("alpha", "alp", "beta")
    held = ask(target.chat(ASK, Sampling(max_tokens=16), choices=labels))
    assert held.text in labels
    assert held.finish_reason == "stop"
    first = {label[0]: ask(target.score_answer(ASK, label[0])).data["logprobs"][0] for label in labels}
    assert held.text[0] == max(first, key=lambda letter: first[letter])


def test_log_probabilities_are_the_models(target: LocalTarget, model_dir: Path) -> None:
    from transformers import AutoModelForCausalLM

    text = "<|im_start|>system\nYou help.<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\nfine"
    ids = byte_tokenizer()(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    model: Any = AutoModelForCausalLM.from_pretrained(model_dir)
    with torch.no_grad():
        rows = model(ids).logits[0].log_softmax(-1)
    expected = [float(rows[i - 1, ids[0, i]]) for i in range(ids.shape[1] - 4, ids.shape[1])]
    found = ask(target.score_answer(ASK, "fine"))
    assert found.data["logprobs"] == pytest.approx(expected, abs=1e-4)
    plain = ask(target.score_text(text[:-4], "fine"))
    assert plain.data["logprobs"] == pytest.approx(expected, abs=1e-4)
    assert math.isfinite(sum(expected))
    assert "one token" in ask(target.score_text("", "a")).error


def test_streams_are_timed_and_texts_go_on_until_they_stop(target: LocalTarget) -> None:
    answer = ask(target.stream(ASK, Sampling(max_tokens=4)))
    assert answer.data["first_token_seconds"] > 0
    assert answer.data["chunks"] == answer.completion_tokens
    whole = ask(target.complete("abc", Sampling(max_tokens=6)))
    middle = whole.text[2] if len(whole.text) > 2 else ""
    if middle:
        assert ask(target.complete("abc", Sampling(max_tokens=6), stop=[middle])).text == whole.text.split(middle)[0]


def test_weights_other_than_safetensors_are_not_loaded(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(FailedPrecondition, match="no safetensors"):
        LocalTarget("local", "tiny", tmp_path)
