"""Numbers of whole validations, beside ones worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from martlet_trainer.training.scores import entities, entity_scores, macro_f1, micro_f1, spearman


def one_hot(classes: list[int], count: int) -> np.ndarray:
    return np.eye(count, dtype=bool)[classes]


def test_f1_of_classes() -> None:
    """Class 0: 1 of 2 found, 1 of 1 right (F1 2/3); class 1: 1 of 2 found, 1 of 2 right (1/2); class 2: found when it wasn't there (0)."""
    actual, chosen = one_hot([0, 0, 1, 1], 4), one_hot([0, 1, 1, 2], 4)
    assert macro_f1(chosen, actual) == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)  # class 3 is nowhere
    assert micro_f1(chosen, actual) == pytest.approx(0.5)


def test_f1_of_nothing_is_zero() -> None:
    nothing = np.zeros((3, 2), dtype=bool)
    assert (macro_f1(nothing, nothing), micro_f1(nothing, nothing)) == (0.0, 0.0)


def test_rank_correlation_goes_by_ranks_and_shares_ties() -> None:
    assert spearman(np.array([1.0, 2.0, 3.0]), np.array([1.0, 10.0, 1000.0])) == pytest.approx(1.0)
    assert spearman(np.array([1.0, 2.0, 3.0]), np.array([3.0, 2.0, 1.0])) == pytest.approx(-1.0)
    # ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: covariance 4.5, variances 4.5 and 5
    assert spearman(np.array([1, 2, 2, 3.0]), np.array([1, 2, 3, 4.0])) == pytest.approx(4.5 / (4.5 * 5) ** 0.5)
    assert spearman(np.array([1.0, 1.0]), np.array([1.0, 2.0])) == 0.0


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("O B-PER I-PER O B-LOC", {("PER", 1, 3), ("LOC", 4, 5)}),
        ("B-PER B-PER I-PER", {("PER", 0, 1), ("PER", 1, 3)}),
        ("I-PER I-PER I-LOC", {("PER", 0, 2), ("LOC", 2, 3)}),
        ("B-PER I-LOC", {("PER", 0, 1), ("LOC", 1, 2)}),
        ("NOUN NOUN VERB", {("NOUN", 0, 2), ("VERB", 2, 3)}),
        ("O O", set()),
    ],
)
def test_entities(tags: str, found: set[tuple[str, int, int]]) -> None:
    assert entities(tags.split()) == found


def test_an_entity_counts_where_all_of_it_is_right() -> None:
    actual = [["B-PER", "I-PER", "O"], ["B-LOC"]]
    chosen = [["B-PER", "O", "O"], ["B-LOC"]]
    assert entity_scores(chosen, actual) == {"precision": 0.5, "recall": 0.5, "f1": 0.5}
    assert entity_scores([["O"]], [["O"]]) == {"precision": 0.0, "recall": 0.0, "f1": 0.0}
