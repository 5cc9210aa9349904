"""Rows of models that end in a head: every form that users have, and refusals that name the field."""

from __future__ import annotations

from typing import Any

import pytest
from martlet_core.errors import InvalidArgument
from martlet_inputs.rows.formats import Conversation, RowError
from martlet_inputs.rows.kinds import RowKind
from martlet_inputs.rows.labelled import LABELLED, TAGGED
from martlet_inputs.rows.ranking import EMBEDDING_PAIRS, RERANKING
from martlet_inputs.rows.report import DataReport
from martlet_trainer.config import parse_training_config
from martlet_trainer.labels import label_id, label_names

USER = {"role": "user", "content": "So happy"}
SINGLE, MULTI, NUMBERS = LABELLED.values()
PAIRS, SCORED, VERDICTS = EMBEDDING_PAIRS.values()


@pytest.mark.parametrize("row", [{"text": "So happy"}, {"query": "So happy"}, {"messages": [USER]}])
@pytest.mark.parametrize(
    ("kind", "label", "labels"),
    [
        (SINGLE, 1, (1,)),
        (SINGLE, "joy", ("joy",)),
        (MULTI, [0, 2], (0, 2)),
        (MULTI, [], ()),
        (NUMBERS, 0.8, (0.8,)),
        (NUMBERS, [1, -0.6], (1.0, -0.6)),
    ],
)
def test_labelled_rows(row: dict[str, Any], kind: RowKind[Any], label: Any, labels: tuple[Any, ...]) -> None:
    found = kind.read({**row, "label": label}, DataReport())
    text = found.text.messages[0]["content"] if isinstance(found.text, Conversation) else found.text
    assert (text, found.labels) == ("So happy", labels)


@pytest.mark.parametrize(
    ("kind", "row", "message"),
    [
        (SINGLE, {"text": "a"}, "has no known format"),
        (SINGLE, {"text": "a", "label": [1]}, "problem_type multi_label_classification"),
        (SINGLE, {"text": "a", "label": 0.5}, "problem_type regression"),
        (SINGLE, {"text": "a", "label": True}, "must be the class's name, or its number"),
        (SINGLE, {"text": "a", "label": -1}, "counted from 0"),
        (SINGLE, {"text": " ", "label": 1}, "is empty"),
        (SINGLE, {"messages": [{"role": "user"}], "label": 1}, "is empty"),
        (MULTI, {"text": "a", "label": 1}, "must be the list of the row's classes"),
        (MULTI, {"text": "a", "label": ["x", "x"]}, "names a class twice"),
        (NUMBERS, {"text": "a", "label": "high"}, "must be a number"),
        (NUMBERS, {"text": "a", "label": float("nan")}, "must be a number"),
        (TAGGED, {"tokens": ["a", "b"], "tags": ["O"]}, "has 1 entries for 2 tokens"),
        (TAGGED, {"tokens": ["a", ""], "tags": ["O", "O"]}, "is empty"),
        (TAGGED, {"tokens": "a b", "tags": ["O", "O"]}, "must be a list"),
        (PAIRS, {"anchor": "a", "positive": "b", "score": 0.5}, "choose loss cosine_similarity"),
        (PAIRS, {"messages": [USER, USER], "positive_messages": [[USER]]}, "must be a list with one turn"),
        (PAIRS, {"anchor": "a", "positive": 3}, "must be text, a list of texts"),
        (SCORED, {"sentence1": "a", "sentence2": "b"}, "is missing; loss cosine_similarity"),
        (SCORED, {"sentence1": "a", "sentence2": "b", "score": 4}, "is 4; loss cosine_similarity"),
        (VERDICTS, {"sentence1": "a", "sentence2": "b", "score": 0.5}, "loss contrastive takes 1"),
        (VERDICTS, {"anchor": "a", "positive": "b", "negative": "c", "label": 1}, "is for loss infonce"),
        (VERDICTS, {"anchor": "a", "positive": ["b", "c"], "label": 1}, "write a row for each"),
        (RERANKING, {"query": "a", "positive": "b"}, "needs documents of both kinds"),
    ],
)
def test_bad_rows_are_refused(kind: RowKind[Any], row: dict[str, Any], message: str) -> None:
    with pytest.raises(RowError, match=message):
        kind.read(row, DataReport())


@pytest.mark.parametrize("kind", [PAIRS, RERANKING])
def test_ranked_texts_are_read_in_every_form(kind: RowKind[Any]) -> None:
    def turns(text: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": text}]

    rows = [
        {"messages": turns("q"), "positive_messages": [turns("p")], "negative_messages": [turns("m"), turns("n")]},
        {"query": "q", "positive": "p", "negative": ["m", "n"]},
        {"anchor": "q", "positive": ["p"], "negative": ["m", "n"]},
    ]
    for row in rows:
        found = kind.read(row, DataReport())
        assert (found.anchor, found.positives, found.negatives) == ("q", ("p",), ("m", "n"))


def report_of(kind: RowKind[Any], *labels: Any) -> DataReport:
    found = DataReport()
    for line, label in enumerate(labels, 1):
        for name in kind.labels(kind.read({"text": "a", "label": label}, found)):
            found.labels.setdefault(name, f"line {line}")
    return found


def names_of(training: DataReport, validation: DataReport | None = None, **options: Any) -> tuple[str, ...]:
    spec = {"base_model": "m", "training_dataset": "artifacts/a", "recipe": "sequence_classification"}
    reports = {"spec.training_dataset": training}
    if validation is not None:
        reports["spec.validation_dataset"] = validation
    return label_names(parse_training_config({**spec, "recipe_options": options}), reports)


def test_classes_are_found_in_the_rows_and_sorted() -> None:
    assert names_of(report_of(SINGLE, "no", "yes", "maybe", "no")) == ("maybe", "no", "yes")
    assert names_of(report_of(SINGLE, 2, 0)) == ("0", "1", "2")
    assert names_of(report_of(SINGLE, 1, 0), num_labels=4) == ("0", "1", "2", "3")
    assert names_of(report_of(SINGLE, 1, 0), labels=["bad", "good"]) == ("bad", "good")
    assert names_of(report_of(NUMBERS, [1.0, 2.0]), problem_type="regression") == ("LABEL_0", "LABEL_1")
    assert label_id(("bad", "good"), "good") == label_id(("bad", "good"), 1) == 1


@pytest.mark.parametrize(
    ("training", "validation", "options", "message"),
    [
        (("a", "b"), ("c",), {}, "validation_dataset: line 1: 'c' is none of the classes of the training rows: a, b"),
        (("a", "x"), None, {"labels": ["a", "b"]}, "line 2: 'x' is none of the classes of recipe_options: a, b"),
        ((0, 5), None, {"labels": ["a", "b"]}, r"line 2: 5 is none of the classes of recipe_options: a, b \(0 to 1\)"),
        ((0, 3), None, {"num_labels": 2}, "line 2: 3 is none"),
        (("a", "b"), None, {"num_labels": 3}, "num_labels: is 3, but the training rows name 2 classes"),
        (("a", 1), None, {}, "names classes in two ways"),
        (("a", "a"), None, {}, "has one class"),
    ],
)
def test_classes_that_nobody_named_are_refused(
    training: tuple[Any, ...], validation: tuple[Any, ...] | None, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidArgument, match=message):
        names_of(report_of(SINGLE, *training), report_of(SINGLE, *validation) if validation else None, **options)


def test_numbers_of_a_regression_are_equally_many() -> None:
    with pytest.raises(InvalidArgument, match="line 2: label has 2 numbers, others have 1"):
        names_of(report_of(NUMBERS, 1.0, [1.0, 2.0]), problem_type="regression")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": ["a", "a"]}, "each must be a name of its own"),
        ({"labels": ["a", "b"], "num_labels": 3}, "labels has 2"),
        ({"labels": ["a", "b"], "problem_type": "regression"}, "a regression has none"),
        ({"problem_type": "clustering"}, "problem_type"),
    ],
)
def test_options_that_contradict_one_another_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        names_of(DataReport(), **options)


@pytest.mark.parametrize(
    ("tuner", "field"),
    [
        ({"kind": "prefix_tuning"}, "tuner.kind"),
        ({"kind": "lisa"}, "tuner.kind"),
        ({"kind": "llamapro"}, "tuner.kind"),
        ({"init_weights": "eva"}, "tuner.init_weights"),
    ],
)
def test_tuners_that_train_no_head_are_refused(tuner: dict[str, Any], field: str) -> None:
    spec = {"base_model": "m", "training_dataset": "artifacts/a", "recipe": "reranker", "tuner": tuner}
    with pytest.raises(InvalidArgument) as caught:
        parse_training_config(spec)
    assert f"spec.{field}" in [violation.field for violation in caught.value.violations]
