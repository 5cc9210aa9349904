"""The paired interval: right on known cases, repeatable, and wide when there is little to see."""

from __future__ import annotations

import random

import pytest
from martlet_cli.statistics import paired_gain


def test_known_shares() -> None:
    gain = paired_gain([True, False, False, False], [True, True, False, False])
    assert (gain.rows, gain.before, gain.after, gain.gain) == (4, 0.25, 0.5, 0.25)


def test_no_change_has_no_width() -> None:
    gain = paired_gain([True, False] * 50, [True, False] * 50)
    assert (gain.low, gain.gain, gain.high) == (0, 0, 0)


def test_interval_agrees_with_the_normal_approximation() -> None:
    source = random.Random(3)
    before = [source.random() < 0.5 for _ in range(800)]
    after = [source.random() < 0.7 for _ in range(800)]
    differences = [int(b) - int(a) for a, b in zip(before, after, strict=True)]
    mean = sum(differences) / 800
    half = 1.96 * (sum((d - mean) ** 2 for d in differences) / 800) ** 0.5 / 800**0.5
    gain = paired_gain(before, after)
    assert gain.low == pytest.approx(mean - half, abs=0.005)
    assert gain.high == pytest.approx(mean + half, abs=0.005)


def test_repeatable_by_seed() -> None:
    before, after = [True, False, False] * 40, [True, True, False] * 40
    assert paired_gain(before, after, seed=1) == paired_gain(before, after, seed=1)


@pytest.mark.parametrize(("before", "after"), [([], []), ([True], [True, False])])
def test_refuses_rows_that_do_not_match(before: list[bool], after: list[bool]) -> None:
    with pytest.raises(ValueError, match="same rows"):
        paired_gain(before, after)
