"""Models whose weights weren't all found are refused."""

from __future__ import annotations

import pytest
from martlet_core.errors import FailedPrecondition
from martlet_core.loading_info import check_loading_info


def test_a_model_with_all_weights_passes() -> None:
    check_loading_info({"missing_keys": set(), "unexpected_keys": {"lm_head.bias"}, "mismatched_keys": []}, "It")


def test_missing_weights_are_named() -> None:
    with pytest.raises(
        FailedPrecondition, match=r"^The files lack 4 of the model's weights, .*: a, b, c, …\.$"
    ) as caught:
        check_loading_info({"missing_keys": {"d", "c", "b", "a"}}, "The files")
    assert caught.value.reason == "WEIGHTS_MISSING"


def test_weights_of_another_shape_are_named() -> None:
    with pytest.raises(FailedPrecondition, match=r"have 1 in another shape, .*: lm_head\.weight\.$"):
        check_loading_info({"mismatched_keys": [("lm_head.weight", (2, 3), (2, 4))]}, "The files")
