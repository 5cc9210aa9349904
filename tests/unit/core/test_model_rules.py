"""What a base model may be called, and which served model an adapter runs on."""

from __future__ import annotations

import pytest
from martlet_core.artifacts.types import PublishedModel
from martlet_core.errors import FailedPrecondition
from martlet_core.model_rules import HubModel, check_plain_lora, parse_hub_id, serves_base


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("org/model", HubModel("org/model", "")),
        ("org/model@c1", HubModel("org/model", "c1")),
        ("org/model-1.5_x@refs/pr/3", HubModel("org/model-1.5_x", "refs/pr/3")),
        ("artifacts/abc", None),
        ("file:///models/x", None),
        ("ft:base:acme::1", None),
        ("smollm2-135m-instruct", None),
        ("hf:org/model@c1", HubModel("org/model", "c1")),
        ("ms:org/model", HubModel("org/model", "", "ms")),
        ("xx:org/model", None),
        ("org/model/deeper", None),
        ("org/model@", None),
        ("org/../model", None),
    ],
)
def test_hub_ids(name: str, meant: HubModel | None) -> None:
    assert parse_hub_id(name) == meant


@pytest.mark.parametrize(
    ("served", "base_model", "fits"),
    [
        ("base", "base", True),
        ("base", "base-2", False),
        ("", "base", False),
        ("org/model@c1", "org/model@c1", True),
        ("org/model@c1", "org/model", True),
        ("org/model", "org/model@c1", False),
        ("org/model@c1", "org/model@c2", False),
        ("org/model@c1", "org/other", False),
        ("org/model@c1", "hf:org/model@c1", True),
        ("org/model@c1", "ms:org/model@c1", False),
        ("ms:org/model@c1", "ms:org/model", True),
        ("artifacts/a", "artifacts/a", True),
        ("artifacts/a", "artifacts/b", False),
    ],
)
def test_which_base_a_served_model_is(served: str, base_model: str, fits: bool) -> None:
    assert serves_base(served, base_model) is fits


def test_adapters_that_are_more_than_lora_are_refused() -> None:
    model = PublishedModel("ft:x", "adapter")
    for facts in ({}, {"use_dora": False, "modules_to_save": []}, {"use_dora": None, "modules_to_save": None}):
        check_plain_lora(model, facts)
    with pytest.raises(FailedPrecondition, match=r"DoRA and whole modules \(embed_tokens, lm_head\)") as caught:
        check_plain_lora(model, {"use_dora": True, "modules_to_save": ["embed_tokens", "lm_head"]})
    assert caught.value.reason == "ADAPTER_NEEDS_MERGE"


@pytest.mark.parametrize("facts", [{"task": "reward"}, {"task_type": "SEQ_CLS"}, {"task_type": "TOKEN_CLS"}])
def test_adapters_with_a_head_are_refused(facts: dict[str, str]) -> None:
    with pytest.raises(FailedPrecondition, match="a head of its own") as caught:
        check_plain_lora(PublishedModel("ft:x", "adapter"), facts)
    assert caught.value.reason == "ADAPTER_NEEDS_MERGE"
    check_plain_lora(PublishedModel("ft:x", "adapter"), {"task": "causal_lm", "task_type": "CAUSAL_LM"})


@pytest.mark.parametrize("facts", [{"tuner": "prompt_tuning"}, {"peft_type": "P_TUNING"}])
def test_virtual_tokens_are_refused_without_the_advice_to_merge(facts: dict[str, str]) -> None:
    with pytest.raises(FailedPrecondition, match="virtual tokens") as caught:
        check_plain_lora(PublishedModel("ft:x", "adapter"), facts)
    assert caught.value.reason == "ADAPTER_NOT_SERVED"


def test_bottlenecks_are_refused_by_metadata_and_by_file() -> None:
    with pytest.raises(FailedPrecondition, match=r"is bottlenecks .* train an adapter of kind lora") as caught:
        check_plain_lora(PublishedModel("ft:x", "adapter"), {"tuner": "adapter", "format": 1, "adapter_length": 128})
    assert caught.value.reason == "ADAPTER_NOT_SERVED"
    assert "merge" not in caught.value.message
