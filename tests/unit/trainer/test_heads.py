"""The recipes whose models end in a head: what they learn, publish and refuse, on a tiny decoder and on tiny encoders."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from martlet_core.errors import InvalidArgument
from martlet_core.recipe import StopRequested
from martlet_trainer.data.encode import EncodedInput
from martlet_trainer.recipes import RECIPES, merge
from martlet_trainer.recipes.merge_probes import encode_probes, probe
from martlet_trainer.recipes.reranker import _listwise, _pointwise
from martlet_trainer.recipes.training import run
from martlet_trainer.testing import Recorder, chat_rows, lay_out, training_spec
from martlet_trainer.testing_cases import recipe_rows, save_tiny_encoder
from martlet_trainer.training.head_batches import collate_inputs, pooled
from martlet_trainer.training.heads import Head, head_in
from martlet_trainer.training.models import load_model, load_tokenizer
from peft import PeftModel
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

MakeWorkdir = Callable[..., Path]
CPU = torch.device("cpu")
HEADED = [name for name, info in RECIPES.items() if info.task != "causal_lm"]
#: What a validation measures, and what it must reach: rows are made so that this takes a few steps.
MEASURES = {
    "sequence_classification": {"accuracy": 0.9, "macro_f1": 0.9},
    "reward": {"reward_accuracy": 0.9, "reward_margin": 1.0},
    "embedding": {"mrr": 0.3, "recall_at_1": 0.1},
    "reranker": {"accuracy": 0.9, "mrr": 0.9},
    "token_classification": {"accuracy": 0.9, "f1": 0.9},
}


@pytest.fixture(scope="session")
def encoder_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_encoder(tmp_path_factory.mktemp("encoder"))


def train(recipe: str, workdir: Path, stop: Any = lambda: False, **changes: Any) -> tuple[Any, Recorder]:
    report = Recorder()
    numbers = {"max_steps": 24, "per_device_batch_size": 6, "learning_rate": 1e-2, **changes.pop("hyperparameters", {})}
    spec = training_spec(recipe=recipe, hyperparameters=numbers, **changes)
    return run(spec, workdir, report, stop), report


@pytest.mark.parametrize("recipe", HEADED)
def test_it_learns_what_held_out_rows_show(make_workdir: MakeWorkdir, recipe: str) -> None:
    workdir = make_workdir("a", recipe_rows(recipe, 36), validation=recipe_rows(recipe, 12, start=36))
    result, report = train(recipe, workdir, validation_dataset="artifacts/b")
    metrics = result.values["metrics"]
    for name, least in MEASURES[recipe].items():
        assert metrics[f"valid_{name}"] >= least, (name, metrics)
    assert report.losses[-1] < report.losses[0]
    assert result.outputs["model"].metadata["task"] == recipe


@pytest.mark.parametrize("recipe", HEADED)
def test_it_goes_on_from_a_checkpoint_as_if_it_had_never_stopped(make_workdir: MakeWorkdir, recipe: str) -> None:
    """A new head is random, and found again."""
    rows, numbers = recipe_rows(recipe, 18), {"max_steps": 6}
    whole, _ = train(recipe, make_workdir("whole", rows), hyperparameters=numbers)
    report, first = Recorder(), make_workdir("first", rows)
    spec = training_spec(recipe=recipe, hyperparameters={**numbers, "per_device_batch_size": 6, "learning_rate": 1e-2})
    with pytest.raises(StopRequested):
        run(spec, first, report, lambda: len(report.losses) >= 3)
    resumed, _ = train(
        recipe, make_workdir("second", rows, resume=first / "checkpoints" / "step-3"), hyperparameters=numbers
    )
    for name in ("adapter_model.safetensors", "adapter_config.json", "config.json"):
        paths = [result.outputs["model"].path / name for result in (whole, resumed)]
        assert len({path.read_bytes() for path in paths}) == 1, name


@pytest.mark.parametrize("recipe", HEADED)
def test_an_adapter_of_an_encoder_merges_with_its_head(tmp_path: Path, encoder_dir: Path, recipe: str) -> None:
    rows = [{"query": "1+1?", "response": str(i), "rejected_response": "no"} for i in range(8)]
    workdir = lay_out(tmp_path / "a", encoder_dir, rows if recipe == "reward" else recipe_rows(recipe, 12))
    result, _ = train(recipe, workdir, hyperparameters={"max_steps": 3})
    merging = tmp_path / "merge"
    (merging / "inputs").mkdir(parents=True)
    (merging / "inputs" / "base_model").symlink_to(encoder_dir)
    (merging / "inputs" / "adapter").symlink_to(result.outputs["model"].path)
    values = {"adapter": "ft:a", "base_model": "tiny", "task": recipe}
    merged = merge.run(values, merging, Recorder(), lambda: False)
    assert merged.values["mean_logprob_difference"] < 1e-4
    assert merged.values["top1_agreement"] == 1.0
    assert merged.outputs["model"].metadata["task"] == recipe
    assert head_in(merged.outputs["model"].path) == head_in(result.outputs["model"].path)


def test_a_merge_of_another_head_would_be_seen(tmp_path: Path, encoder_dir: Path) -> None:
    """What is compared is the head's own outputs: two that began otherwise are far apart."""
    head, texts = Head("sequence_classification", ("a", "b")), encode_probes(load_tokenizer(encoder_dir))
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append(probe(load_model(encoder_dir, torch.float32, CPU, head=head), texts, head))
    assert (found[0].values - found[1].values).abs().mean() > 0.005


@pytest.mark.parametrize("model_type", ["distilbert", "roberta", "modernbert"])
def test_other_encoders_get_heads_too(tmp_path: Path, model_type: str) -> None:
    """Their heads are made of modules of other names, all of which must be found again in what is published."""
    marks = {"cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
    base = save_tiny_encoder(tmp_path / "base", model_type, **(marks if model_type == "modernbert" else {}))
    workdir = lay_out(tmp_path / "a", base, recipe_rows("sequence_classification", 12))
    result, _ = train("sequence_classification", workdir, hyperparameters={"max_steps": 3})
    loaded = []
    for seed in (1, 2):
        torch.manual_seed(seed)  # whatever isn't in the adapter would begin otherwise
        adapter = result.outputs["model"].path
        model = load_model(base, torch.float32, CPU, head=head_in(adapter))
        with torch.no_grad():
            loaded.append(PeftModel.from_pretrained(model, adapter).eval()(torch.tensor([[2, 9, 40, 41, 3]])).logits)
    assert torch.equal(loaded[0], loaded[1])


def test_a_whole_classifier_says_itself_what_it_is(make_workdir: MakeWorkdir) -> None:
    rows = recipe_rows("sequence_classification", 18)
    numbers = {"max_steps": 20, "learning_rate": 3e-3}
    result, _ = train(
        "sequence_classification", make_workdir("a", rows), tuner={"kind": "full"}, hyperparameters=numbers
    )
    directory = result.outputs["model"].path
    config = json.loads((directory / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert config["id2label"] == {"0": "a", "1": "b", "2": "c"}
    assert config["problem_type"] == "single_label_classification"
    model, info = AutoModelForSequenceClassification.from_pretrained(directory, output_loading_info=True)
    assert not info["missing_keys"]
    # and transformers' own way to use it gives the classes that the rows have: batches padded, rows of two lengths
    tokenizer = AutoTokenizer.from_pretrained(directory)
    batch = tokenizer([row["text"] for row in rows], padding=True, return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        found = model.eval()(**batch).logits.argmax(-1).tolist()
    right = sum(model.config.id2label[one] == row["label"] for one, row in zip(found, rows, strict=True))
    assert right >= 16


def test_a_whole_embedding_model_is_a_sentence_transformers_directory(tmp_path: Path, encoder_dir: Path) -> None:
    workdir = lay_out(tmp_path / "a", encoder_dir, recipe_rows("embedding", 12))
    numbers = {"max_steps": 3, "learning_rate": 1e-3}
    result, _ = train("embedding", workdir, tuner={"kind": "full"}, hyperparameters=numbers)
    directory = result.outputs["model"].path
    kinds = [module["type"].rsplit(".", 1)[-1] for module in json.loads((directory / "modules.json").read_text())]
    assert kinds == ["Transformer", "Pooling", "Normalize"]
    pooling = json.loads((directory / "1_Pooling" / "config.json").read_text())
    chosen = [key for key, value in pooling.items() if key.startswith("pooling_mode") and value]
    assert chosen == ["pooling_mode_mean_tokens"]
    assert pooling["word_embedding_dimension"] == 64
    assert json.loads((directory / "sentence_bert_config.json").read_text())["max_seq_length"] == 128
    assert json.loads((directory / "config.json").read_text())["architectures"] == ["BertModel"]
    AutoModel.from_pretrained(directory)
    again = lay_out(tmp_path / "b", directory, recipe_rows("embedding", 12))
    assert train("embedding", again, hyperparameters={"max_steps": 1})[1].losses[0] > 0


def test_a_whole_tagger_loads_in_transformers(tmp_path: Path, encoder_dir: Path) -> None:
    workdir = lay_out(tmp_path / "a", encoder_dir, recipe_rows("token_classification", 12))
    numbers = {"max_steps": 3, "learning_rate": 1e-3}
    result, _ = train("token_classification", workdir, tuner={"kind": "full"}, hyperparameters=numbers)
    model = AutoModelForTokenClassification.from_pretrained(result.outputs["model"].path)
    assert model.config.id2label == {0: "B-a", 1: "B-b", 2: "B-c", 3: "O"}


@pytest.mark.parametrize(
    ("problem", "labels"),
    [
        ("single_label_classification", [0, 2, 1, 1]),
        ("multi_label_classification", [[0, 2], [], [1], [0, 1, 2]]),
        ("regression", [[0.5, -1.0], [2.0, 0.0], [1.0, 1.0], [0.1, 0.2]]),
    ],
)
def test_losses_are_those_of_transformers(tmp_path: Path, problem: str, labels: list[Any]) -> None:
    """The first step's loss, before anything moved, beside ``model(labels=...)`` on the same model with the same head."""
    base = save_tiny_encoder(tmp_path / "base", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    rows = [{"text": "abcdef"[: 2 + i], "label": label} for i, label in enumerate(labels)]
    _, report = train(
        "sequence_classification",
        lay_out(tmp_path / "a", base, rows),
        tuner={"kind": "full"},
        recipe_options={"problem_type": problem},
        hyperparameters={"max_steps": 1, "per_device_batch_size": 4},
        seed=5,
    )
    count = 2 if problem == "regression" else 3
    names = tuple(f"LABEL_{i}" if problem == "regression" else str(i) for i in range(count))
    torch.manual_seed(5)
    model = load_model(base, torch.float32, CPU, head=Head("sequence_classification", names, problem))
    batch = load_tokenizer(base)([row["text"] for row in rows], padding=True, return_tensors="pt")
    if problem == "multi_label_classification":
        labels = [[float(i in label) for i in range(count)] for label in labels]
    wanted = model(**batch, labels=torch.tensor(labels)).loss
    assert report.losses[0] == pytest.approx(wanted.item(), rel=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "last", "cls"])
def test_pooling_leaves_padding_out(tmp_path: Path, tiny_model_dir: Path, encoder_dir: Path, pooling: str) -> None:
    """A text beside a longer one has the embedding that it has alone, worked out by hand."""
    directory = tiny_model_dir if pooling == "last" else encoder_dir
    model = AutoModel.from_pretrained(directory).eval()
    texts = [np.arange(10, 10 + length, dtype=np.int32) for length in (3, 7)]
    parts = [EncodedInput(ids, None, np.zeros((len(ids), 2)), truncated=False) for ids in texts]
    batch = collate_inputs(parts, 0, CPU)
    with torch.no_grad():
        found = pooled(model(**batch).last_hidden_state, batch["attention_mask"], pooling)
        alone = [model(torch.tensor([ids.tolist()])).last_hidden_state[0] for ids in texts]
    picked = {"mean": lambda states: states.mean(0), "last": lambda states: states[-1], "cls": lambda states: states[0]}
    wanted = torch.stack([picked[pooling](states) for states in alone])
    assert torch.allclose(found, wanted / wanted.norm(dim=1, keepdim=True), atol=1e-5)


def test_two_processes_classify_as_one_with_the_same_global_batch(make_workdir: MakeWorkdir) -> None:
    rows, held_out = recipe_rows("sequence_classification", 12), recipe_rows("sequence_classification", 5, start=12)
    seen = {}
    for count in (1, 2):
        _, report = train(
            "sequence_classification",
            make_workdir(str(count), rows, validation=held_out),
            validation_dataset="artifacts/b",
            hyperparameters={"max_steps": 4, "eval_steps": 2, "per_device_batch_size": 4 // count},
            resources={"device_count": count},
        )
        seen[count] = [*report.losses, *(report.steps[4][f"valid_{name}"] for name in ("loss", "accuracy", "macro_f1"))]
    assert seen[1] == pytest.approx(seen[2], abs=1e-4)


def test_an_adapter_is_gone_on_with_by_the_same_classes_alone(make_workdir: MakeWorkdir) -> None:
    rows = recipe_rows("sequence_classification", 12)
    first, _ = train("sequence_classification", make_workdir("a", rows), hyperparameters={"max_steps": 2})
    adapter = first.outputs["model"].path
    more, report = train(
        "sequence_classification", make_workdir("b", rows, adapter=adapter), hyperparameters={"max_steps": 2}
    )
    assert len(report.losses) == 2
    assert more.outputs["model"].metadata["task"] == "sequence_classification"
    other = [{"text": row["text"], "label": row["label"] * 2} for row in rows]
    with pytest.raises(
        InvalidArgument, match=r"its adapter ends in .* a and b and c, and this training in .* aa and bb"
    ):
        train("sequence_classification", make_workdir("c", other, adapter=adapter))


def test_a_classifier_is_trained_further_on_its_own_classes_alone(make_workdir: MakeWorkdir, tmp_path: Path) -> None:
    rows = recipe_rows("sequence_classification", 12)
    numbers = {"max_steps": 1, "learning_rate": 1e-3}
    whole, _ = train(
        "sequence_classification", make_workdir("a", rows), tuner={"kind": "full"}, hyperparameters=numbers
    )
    base = whole.outputs["model"].path
    train("sequence_classification", lay_out(tmp_path / "b", base, rows), hyperparameters={"max_steps": 1})
    other = [{"text": row["text"], "label": row["label"] * 2} for row in rows]
    with pytest.raises(InvalidArgument, match="has a head for the classes a, b, c, and this training's are aa, bb, cc"):
        train("sequence_classification", lay_out(tmp_path / "c", base, other))
    with pytest.raises(InvalidArgument, match="LlamaForSequenceClassification, which writes no text"):
        train("sft", lay_out(tmp_path / "d", base, chat_rows(4)))


def test_infonce_needs_something_to_tell_texts_from(make_workdir: MakeWorkdir) -> None:
    with pytest.raises(InvalidArgument, match="needs at least 2, or a negative in each row"):
        train(
            "embedding",
            make_workdir("a", recipe_rows("embedding", 6)),
            hyperparameters={"per_device_batch_size": 1},
        )
    rows = [{**row, "negative": "zz"} for row in recipe_rows("embedding", 6)]
    train("embedding", make_workdir("b", rows), hyperparameters={"per_device_batch_size": 1, "max_steps": 1})


@pytest.mark.parametrize(("loss", "score"), [("cosine_similarity", 0.5), ("contrastive", 1)])
def test_scored_pairs_come_nearer(make_workdir: MakeWorkdir, loss: str, score: float) -> None:
    rows = [
        {"sentence1": row["anchor"], "sentence2": row["positive"], "score": score if i % 2 else 0}
        for i, row in enumerate(recipe_rows("embedding", 16))
    ]
    workdir = make_workdir("a", rows, validation=rows)
    result, report = train("embedding", workdir, validation_dataset="artifacts/b", recipe_options={"loss": loss})
    assert report.losses[-1] < report.losses[0]
    assert -1 <= result.values["metrics"]["valid_spearman"] <= 1


def test_noise_on_embeddings_goes_with_heads(make_workdir: MakeWorkdir) -> None:
    rows = recipe_rows("sequence_classification", 12)
    losses = [
        train(
            "sequence_classification",
            make_workdir(str(alpha), rows),
            hyperparameters={"max_steps": 1, "neftune_noise_alpha": alpha},
        )[1].losses
        for alpha in (None, 50.0)
    ]
    assert losses[0] != losses[1]


def test_listwise_and_pointwise_are_what_they_say() -> None:
    scores = torch.tensor([1.0, 0.0, -1.0])
    odds = [math.exp(value) for value in (1, 0, -1)]
    assert _listwise(scores).item() == pytest.approx(-math.log(odds[0] / sum(odds)))
    ones = [math.log(1 + math.exp(-1)), math.log(2), math.log(1 + math.exp(-1))]
    assert _pointwise(scores).item() == pytest.approx(sum(ones) / 3)
