"""The verdict: measured differences, limits, and the report that a failed job leaves."""

from __future__ import annotations

import math

import pytest
from martlet_quantizer.quality import Measurement, compare, from_json, to_json


def measured(nll: float, top1: list[int]) -> Measurement:
    return Measurement(nll, top1, [], len(top1), 0.0)


def test_the_difference_is_in_perplexity_and_in_the_most_likely_token() -> None:
    found = compare(measured(4 * math.log(10), [1, 2, 3, 4]), measured(4 * math.log(12), [1, 2, 3, 5]))
    assert found.base_perplexity == pytest.approx(10)
    assert found.perplexity_ratio == pytest.approx(1.2)
    assert (found.top1_agreement, found.positions) == (0.75, 4)


def test_a_broken_model_has_no_small_perplexity() -> None:
    assert measured(math.inf, [1]).perplexity == math.inf
    assert math.isnan(measured(math.nan, [1]).perplexity) or measured(math.nan, [1]).perplexity == math.inf
    assert from_json({**to_json(measured(0.0, [1])), "nll": "nan"}).nll != 0.0


def test_models_that_saw_other_texts_are_not_compared() -> None:
    with pytest.raises(ValueError, match="1 positions against 2"):
        compare(measured(1.0, [1]), measured(1.0, [1, 2]))
