"""What a model directory is for, and how its vectors are pooled. No ML library is needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from martlet_core.errors import FailedPrecondition
from martlet_core.model_tasks import RERANK, SCORE, ModelTask
from martlet_inference.engines.sentence_config import SentenceConfig, sentence_config
from martlet_inference.model_use import use_of


def write(directory: Path, **files: Any) -> Path:
    """Files by their names without ``.json``."""
    for name, content in files.items():
        path = directory / f"{name.replace('__', '/')}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content))
    return directory


def modules(*kinds: str) -> list[dict[str, str]]:
    return [
        {"type": f"sentence_transformers.models.{kind}", "path": f"{n}_{kind}" if n else ""}
        for n, kind in enumerate(kinds)
    ]


@pytest.mark.parametrize(
    ("architecture", "task"),
    [
        ("LlamaForCausalLM", ModelTask.CAUSAL_LM),
        ("GPT2LMHeadModel", ModelTask.CAUSAL_LM),
        ("T5ForConditionalGeneration", ModelTask.CAUSAL_LM),
        ("LlamaForSequenceClassification", ModelTask.SEQUENCE_CLASSIFICATION),
        ("BertForTokenClassification", ModelTask.TOKEN_CLASSIFICATION),
        ("BertModel", ModelTask.EMBEDDING),
        ("RobertaForMaskedLM", ModelTask.EMBEDDING),
        ("SomethingNew", ModelTask.CAUSAL_LM),
    ],
)
def test_the_architecture_says_the_task(tmp_path: Path, architecture: str, task: ModelTask) -> None:
    assert use_of(write(tmp_path, config={"architectures": [architecture]})).task is task


def test_a_decoder_that_sentence_transformers_pools_makes_embeddings(tmp_path: Path) -> None:
    write(tmp_path, config={"architectures": ["Qwen3ForCausalLM"]}, modules=modules("Transformer", "Pooling"))
    assert use_of(tmp_path).task is ModelTask.EMBEDDING


@pytest.mark.parametrize(("labels", "scores"), [({"0": "a"}, True), ({"0": "a", "1": "b"}, False), (None, False)])
def test_one_label_is_a_score(tmp_path: Path, labels: dict[str, str] | None, scores: bool) -> None:
    config = {"architectures": ["BertForSequenceClassification"]} | ({"id2label": labels} if labels else {})
    assert {SCORE, RERANK} <= set(use_of(write(tmp_path, config=config)).routes) or not scores
    assert bool({SCORE, RERANK} & set(use_of(tmp_path).routes)) is scores


def test_a_cross_encoder_of_sentence_transformers_is_a_reranker(tmp_path: Path) -> None:
    config = {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "LABEL_0"}}
    activation = {"activation_fn": "torch.nn.modules.linear.Identity", "version": "5.0"}
    assert use_of(write(tmp_path, config=config | {"sentence_transformers": activation})).task is ModelTask.RERANKER


def test_what_was_published_tells_classifiers_apart_and_contradicts_no_file(tmp_path: Path) -> None:
    write(tmp_path, config={"architectures": ["LlamaForSequenceClassification"], "num_labels": 1})
    assert use_of(tmp_path, ModelTask.REWARD).task is ModelTask.REWARD
    for told in (ModelTask.EMBEDDING, ModelTask.CAUSAL_LM, ModelTask.TOKEN_CLASSIFICATION):
        with pytest.raises(FailedPrecondition) as caught:
            use_of(tmp_path, told)
        assert caught.value.reason == "TASK_MISMATCH"


@pytest.mark.parametrize(
    ("pooling", "named"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode_lasttoken": True, "include_prompt": True}, "lasttoken"),
        ({"pooling_mode": "mean"}, "mean"),
    ],
)
def test_the_pooling_of_sentence_transformers(tmp_path: Path, pooling: dict[str, Any], named: str) -> None:
    write(tmp_path, modules=modules("Transformer", "Pooling", "Normalize"), **{"1_Pooling__config": pooling})
    write(tmp_path, sentence_bert_config={"max_seq_length": 256, "do_lower_case": True})
    assert sentence_config(tmp_path) == SentenceConfig(named, True, 256, True)  # type: ignore[arg-type]


def test_vectors_keep_their_length_where_nothing_scales_them(tmp_path: Path) -> None:
    write(
        tmp_path, modules=modules("Transformer", "Pooling"), **{"1_Pooling__config": {"pooling_mode_mean_tokens": True}}
    )
    assert not sentence_config(tmp_path).normalize
    (tmp_path / "plain").mkdir()
    assert sentence_config(tmp_path / "plain") == SentenceConfig("mean", True, None, False)


@pytest.mark.parametrize(
    ("kinds", "pooling", "said"),
    [
        (("Transformer", "Pooling", "Dense"), {"pooling_mode_mean_tokens": True}, "a module Dense"),
        (("Transformer", "Pooling"), {"pooling_mode_max_tokens": True}, "by max"),
        (("Transformer", "Pooling"), {"pooling_mode_max_tokens": True, "pooling_mode_cls_token": True}, "max and cls"),
        (("Transformer", "Pooling"), {}, "by nothing"),
    ],
)
def test_what_no_engine_pools_is_refused(tmp_path: Path, kinds: tuple[str, ...], pooling: Any, said: str) -> None:
    write(tmp_path, modules=modules(*kinds), **{"1_Pooling__config": pooling})
    with pytest.raises(FailedPrecondition, match=said) as caught:
        sentence_config(tmp_path)
    assert caught.value.reason == "POOLING_NOT_SUPPORTED"
