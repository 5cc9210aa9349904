"""Intervals and tests against values worked out by hand or known to scipy and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from martlet_evaluator.overlap import bleu, chrf, rouge
from martlet_evaluator.statistics import compare, estimate, mcnemar, mean_measure, sign_flip
from martlet_evaluator.suites.classification import macro_f1, read_label


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (5, 5), (10, 2), (3, 14), (60, 33)])
def test_mcnemar_is_the_two_sided_binomial_test(gained: int, lost: int) -> None:
    from scipy.stats import binomtest

    expected = binomtest(gained, gained + lost, 0.5).pvalue if gained + lost else 1.0
    assert mcnemar(gained, lost) == pytest.approx(expected, rel=1e-9)


def test_sign_flips_of_few_rows_are_exact() -> None:
    # 1, 2 and 4: of 8 sign patterns only +++ and --- reach a sum of 7.
    assert sign_flip([1.0, 2.0, 4.0], seed=0) == pytest.approx(2 / 8)
    assert sign_flip([1.0, -1.0], seed=0) == 1.0
    assert sign_flip([0.0, 0.0], seed=0) == 1.0


def test_sign_flips_of_many_rows_agree_with_scipy() -> None:
    from scipy.stats import permutation_test

    differences = np.random.default_rng(3).normal(0.2, 1.0, 60)
    expected = permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=20_000, rng=np.random.default_rng(0)
    )
    assert sign_flip(differences.tolist(), seed=0, resamples=20_000) == pytest.approx(expected.pvalue, abs=0.02)


def test_the_interval_of_a_mean_agrees_with_scipy_and_is_the_same_for_the_same_seed() -> None:
    from scipy.stats import bootstrap

    values = np.random.default_rng(5).exponential(2.0, 200)
    measure = mean_measure("m", range(200), values.tolist())
    found = estimate(measure, seed=7, resamples=10_000)
    expected = bootstrap(
        (values,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(expected.low, abs=0.03)
    assert found.high == pytest.approx(expected.high, abs=0.03)
    assert estimate(measure, seed=7, resamples=10_000) == found
    assert estimate(measure, seed=8, resamples=10_000) != found


def test_one_row_has_no_interval_and_no_rows_have_no_value() -> None:
    assert estimate(mean_measure("m", [1], [0.5]), seed=0).low is None
    assert np.isnan(estimate(mean_measure("m", [], []), seed=0).value)


def test_targets_are_paired_by_row_and_rows_that_one_lacks_are_left_out() -> None:
    before = mean_measure("m", [1, 2, 3, 4, 9], [0, 0, 1, 1, 0])
    after = mean_measure("m", [4, 3, 2, 1], [1, 0, 1, 1])
    found = compare(before, after, seed=0)
    assert found is not None
    assert (found.rows, found.gained, found.lost, found.test) == (4, (1, 2), (3,), "mcnemar")
    assert found.difference == pytest.approx(0.25)
    assert found.low <= found.difference <= found.high
    assert compare(before, mean_measure("m", [9], [1]), seed=0) is None


def test_pairing_narrows_the_interval() -> None:
    hardness = np.random.default_rng(0).normal(0, 5, 200)
    before = mean_measure("m", range(200), hardness.tolist())
    after = mean_measure("m", range(200), (hardness + 0.5).tolist())
    found = compare(before, after, seed=0)
    alone = estimate(before, seed=0)
    assert found is not None
    assert alone.low is not None
    assert alone.high is not None
    assert found.high - found.low < 1e-9 < alone.high - alone.low
    assert found.p_value < 0.001


def test_macro_f1_is_scikit_learns() -> None:
    from sklearn.metrics import f1_score

    source = np.random.default_rng(2)
    expected, said = (source.choice(["a", "b", "c"], 100).tolist() for _ in range(2))
    measure = macro_f1(list(range(100)), expected, said)
    assert measure.value == pytest.approx(f1_score(expected, said, average="macro"))
    found = estimate(measure, seed=0)
    assert found.low is not None
    assert found.high is not None
    assert found.low < measure.value < found.high


def test_an_answer_that_is_no_label_counts_against_the_expected_one() -> None:
    from sklearn.metrics import f1_score

    expected, said = ["a", "a", "b", "b"], ["a", "(none)", "b", "b"]
    assert macro_f1([0, 1, 2, 3], expected, said).value == pytest.approx(
        f1_score(expected, said, average="macro", labels=["a", "b"])
    )


def test_corpus_scores_from_sums_are_sacrebleus() -> None:
    import sacrebleu

    texts = ["the cat sat on the mat today", "a dog barked loudly at night", "no overlap here"]
    references = ["the cat sat on the mat", "the dog barked at night", "entirely different words"]
    for metric, expected in (
        (bleu(), sacrebleu.corpus_bleu(texts, [references]).score),
        (chrf(), sacrebleu.corpus_chrf(texts, [references]).score),
    ):
        stats = metric.stats(texts, references)
        assert metric.finish(stats.sum(axis=0, keepdims=True))[0] == pytest.approx(expected)
    assert metric.rows(stats)[0] == pytest.approx(sacrebleu.sentence_chrf(texts[0], [references[0]]).score)


def test_rouge_knows_words_of_other_scripts() -> None:
    assert rouge(("rouge1",), "the cat", "the cat sat")["rouge1"] == pytest.approx(0.8)
    assert rouge(("rouge1",), "猫は寝る", "猫は走る")["rouge1"] == pytest.approx(0.75)
    assert rouge(("rougeL",), "Привет мир", "привет, мир")["rougeL"] == 1.0


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("yes", "yes"),
        (" Yes.\n", "yes"),
        ("**no**, because", "no"),
        ("not sure", "not sure"),
        ("nothing", ""),
        ("", ""),
        ("I say yes", ""),
    ],
)
def test_a_label_is_read_from_the_start_of_an_answer(text: str, label: str) -> None:
    assert read_label(text, ["yes", "no", "not", "not sure"]) == label
