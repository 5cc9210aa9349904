"""What a job may ask for: wrong requests are refused with field, value and remedy, before any model is opened."""

from __future__ import annotations

from typing import Any

import pytest
from martlet_core.errors import InvalidArgument, NotFound
from martlet_quantizer.config import parse_config
from martlet_quantizer.methods import FAMILIES, METHODS, check_model_type, find


def parse(**values: Any) -> Any:
    return parse_config({"model": "tiny", "method": "w4a16", **values})


def test_the_methods_of_the_interface_are_there() -> None:
    assert list(METHODS) == ["bnb-nf4", "bnb-int8", "w8a8-int8", "fp8-dynamic", "w4a16", "gguf", "awq", "gptq"]
    assert {method.family for method in METHODS.values()} == set(FAMILIES)


@pytest.mark.parametrize(
    ("method", "options", "bits", "limit"),
    [
        ("bnb-nf4", {}, 4, 1.35),
        ("bnb-int8", {}, 8, 1.05),
        ("w4a16", {}, 4, 1.35),
        ("w4a16", {"bits": 8}, 8, 1.05),
        ("gguf", {}, 8, 1.05),
        ("gguf", {"gguf_type": "q4_0"}, 4, 1.35),
    ],
)
def test_the_limit_follows_the_bits(method: str, options: dict[str, Any], bits: int, limit: float) -> None:
    config = parse(method=method, options=options)
    assert (config.bits, config.ratio_limit) == (bits, limit)


def test_the_limit_can_be_set() -> None:
    assert parse(max_perplexity_ratio=1.1).ratio_limit == 1.1


@pytest.mark.parametrize(
    ("values", "field", "words"),
    [
        ({"metod": "awq"}, "spec.metod", "did you mean method?"),
        ({"model": "../x"}, "spec.model", "give a registered name"),
        ({"options": {"bits": 3}}, "spec.options.bits", "must be one of: 4, 8"),
        ({"method": "awq", "options": {"bits": 8}}, "spec.options.bits", "awq doesn't take it"),
        ({"options": {"group_size": 96}}, "spec.options.group_size", "must be one of: 32, 64, 128"),
        ({"method": "bnb-nf4", "options": {"group_size": 64}}, "spec.options.group_size", "bnb-nf4 doesn't take it"),
        (
            {"method": "gguf", "options": {"gguf_type": "q4_K_M"}},
            "spec.options.gguf_type",
            "must be one of: 'q8_0', 'q4_0', 'q4_1'",
        ),
        ({"calibration": {"max_rows": 8}}, "spec.calibration.max_rows", "must be >= 16"),
        ({"calibration": {"max_rows": True}}, "spec.calibration.max_rows", "not true or false"),
        ({"calibration": {"dataset": "rows.jsonl"}}, "spec.calibration.dataset", "give artifacts/<id>"),
        ({"calibration": {"builtin": "pile"}}, "spec.calibration.builtin", "there is only texts"),
        (
            {"calibration": {"dataset": "artifacts/a"}, "evaluation_dataset": "artifacts/a"},
            "spec.evaluation_dataset",
            "is the calibration set",
        ),
        (
            {"method": "bnb-int8", "calibration": {"dataset": "artifacts/a"}},
            "spec.calibration.dataset",
            "bnb-int8 looks at no texts",
        ),
        ({"max_perplexity_ratio": float("nan")}, "spec.max_perplexity_ratio", "must be > 1"),
        ({"suffix": "a b"}, "spec.suffix", "letters, digits"),
        ({"seed": -1}, "spec.seed", "must be >= 0"),
        ({"resources": {"priority": 10}}, "spec.resources.priority", "must be >= 0 and <= 9"),
    ],
)
def test_wrong_requests_name_field_and_remedy(values: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse(**values)
    assert [v.field for v in caught.value.violations] == [field]
    assert words in caught.value.violations[0].description


@pytest.mark.parametrize(("name", "close"), [("bnb_nf5", "bnb-nf4"), ("AWQ4", "awq"), ("gguf-q8_0", "gguf")])
def test_an_unknown_method_is_not_found_and_close_ones_are_named(name: str, close: str) -> None:
    with pytest.raises(NotFound, match=f"there is no method '{name}'; did you mean .*{close}") as caught:
        parse(method=name)
    assert caught.value.reason == "METHOD_NOT_FOUND"


def test_a_method_names_the_architectures_it_takes() -> None:
    check_model_type(find("gguf"), "qwen3")
    check_model_type(find("bnb-nf4"), "anything")
    with pytest.raises(
        InvalidArgument, match=r"gguf can't quantize a 'gemma3_text' model.*methods that may: bnb-nf4"
    ) as caught:
        check_model_type(find("gguf"), "gemma3_text")
    assert caught.value.reason == "METHOD_IMPOSSIBLE"


def test_a_method_that_was_tried_and_failed_says_why() -> None:
    check_model_type(find("w8a8-int8"), "mixtral")
    with pytest.raises(InvalidArgument, match="can't read experts back") as caught:
        check_model_type(find("w8a8-int8"), "qwen3_moe")
    said = caught.value.violations[0].description
    assert "w8a8-int8" not in said.partition("methods that may:")[2]
    assert "fp8-dynamic" in said
