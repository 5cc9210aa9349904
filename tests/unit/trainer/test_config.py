"""Configs: defaults, ranges, and what is said about a wrong one."""

from __future__ import annotations

from typing import Any

import pytest
from martlet_core.errors import InvalidArgument
from martlet_trainer.config import parse_merge_config, parse_recipe_options, parse_training_config

BASE = {"base_model": "smollm2-135m-instruct", "training_dataset": "artifacts/abc"}


def with_part(part: str, **values: Any) -> dict[str, Any]:
    return {**BASE, part: values}


def test_defaults_are_those_of_the_contract() -> None:
    config = parse_training_config(BASE).resolved()
    assert config.recipe == "sft"
    assert config.seed == 42
    assert (config.tuner.kind, config.tuner.lora_rank, config.tuner.lora_alpha) == ("lora", 8, 16.0)
    assert config.tuner.target_modules == ("all-linear",)
    numbers = config.hyperparameters
    assert (numbers.epoch_count, numbers.per_device_batch_size, numbers.gradient_accumulation_steps) == (3.0, 8, 1)
    assert (numbers.learning_rate, numbers.learning_rate_schedule, numbers.warmup_ratio) == (2e-4, "cosine", 0.03)
    assert (config.data.on_bad_rows, config.data.on_long_rows) == ("fail", "truncate")
    assert (config.resources.priority, config.resources.max_attempts, config.checkpoints.interval_seconds) == (
        5,
        5,
        300,
    )


def test_learning_rate_follows_the_tuner_and_the_multiplier() -> None:
    assert parse_training_config(with_part("tuner", kind="full")).resolved().hyperparameters.learning_rate == 1e-5
    config = parse_training_config(with_part("hyperparameters", learning_rate_multiplier=0.5)).resolved()
    assert config.hyperparameters.learning_rate == 1e-4
    assert config.resolved() == config


def test_what_a_proto_calls_unset_is_absent() -> None:
    values = {
        **BASE,
        "validation_dataset": "",
        "suffix": "",
        "data": {"on_bad_rows": "ON_BAD_ROWS_UNSPECIFIED", "on_long_rows": "ON_LONG_ROWS_REFUSE", "system": ""},
        "resources": {"device": "DEVICE_CPU"},
        "tuner": {"kind": "", "target_modules": []},
        "hyperparameters": {"max_steps": "12", "optimizer": ""},
    }
    config = parse_training_config(values)
    assert config.validation_dataset is None
    assert config.suffix is None
    assert (config.data.on_bad_rows, config.data.on_long_rows, config.data.system) == ("fail", "refuse", "")
    assert config.resources.device == "cpu"
    assert config.tuner.target_modules == ("all-linear",)
    assert config.hyperparameters.max_steps == 12


def test_a_config_survives_its_own_json() -> None:
    config = parse_training_config({**BASE, "tuner": {"target_modules": ["q_proj"]}}).resolved()
    assert parse_training_config(config.model_dump(mode="json")) == config


def with_tracker(*before: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {**BASE, "trackers": [*before, fields]}


@pytest.mark.parametrize(
    ("values", "field", "words"),
    [
        ({"training_dataset": "artifacts/a"}, "spec.base_model", "is required"),
        ({**BASE, "base_model": "../etc"}, "spec.base_model", "give a registered name"),
        ({**BASE, "training_dataset": "rows.jsonl"}, "spec.training_dataset", "artifacts/<id>"),
        ({**BASE, "recipe": "sfft"}, "spec.recipe", "must be one of: sft"),
        ({**BASE, "suffix": "a b"}, "spec.suffix", "1 to 64"),
        ({**BASE, "seed": -1}, "spec.seed", "must be >= 0 and <= 2147483647"),
        ({**BASE, "recipe_options": {"x": 1}}, "spec.recipe_options.x", "is not known"),
        ({**BASE, "tuner": 3}, "spec.tuner", "must be an object"),
        (with_tracker(kind="swanlab"), "spec.trackers.0.kind", "must be one of: 'tensorboard', 'wandb', 'mlflow'"),
        (with_tracker(kind="wandb", project="../up"), "spec.trackers.0.project", "is '../up'; use 1 to 128 letters"),
        (with_tracker(kind="wandb", run_name="a/b"), "spec.trackers.0.run_name", "a letter or digit first"),
        (with_tracker(kind="wandb", entity="a b"), "spec.trackers.0.entity", "use 1 to 64 letters"),
        (with_tracker(kind="wandb", tags=["fine", "b\n"]), "spec.trackers.0.tags.1", "use 1 to 64 letters"),
        (with_tracker(kind="wandb", tags=["a"] * 33), "spec.trackers.0.tags", "at most 32"),
        (with_tracker(kind="mlflow", entity="me"), "spec.trackers.0.entity", "is wandb's, and the kind is mlflow"),
        (with_tracker({"kind": "mlflow"}, kind="mlflow"), "spec.trackers.1.kind", "give each kind once"),
        (with_part("tuner", lora_rnk=4), "spec.tuner.lora_rnk", "did you mean lora_rank?"),
        (with_part("tuner", lora_rank=0), "spec.tuner.lora_rank", "is 0; must be >= 1 and <= 512"),
        (with_part("tuner", kind="lorra"), "spec.tuner.kind", "must be one of: lora, qlora, full, lisa"),
        (with_part("tuner", use_dora="maybe"), "spec.tuner.use_dora", "must be true or false"),
        (with_part("tuner", target_modules=["all-linear", "q"]), "spec.tuner.target_modules", "either"),
        (with_part("hyperparameters", learning_rate=-1), "spec.hyperparameters.learning_rate", "must be > 0"),
        (with_part("hyperparameters", learning_rate="fast"), "spec.hyperparameters.learning_rate", "must be a number"),
        (with_part("hyperparameters", max_steps=True), "spec.hyperparameters.max_steps", "not true or false"),
        (with_part("hyperparameters", warmup_ratio=float("nan")), "spec.hyperparameters.warmup_ratio", "<= 1"),
        (
            with_part("hyperparameters", per_device_batch_size=1.5),
            "spec.hyperparameters.per_device_batch_size",
            "whole",
        ),
        (
            with_part("hyperparameters", learning_rate=1e-3, learning_rate_multiplier=2),
            "spec.hyperparameters.learning_rate_multiplier",
            "give one of them",
        ),
        (
            with_part("hyperparameters", early_stopping_patience=1),
            "spec.hyperparameters.early_stopping_patience",
            "set",
        ),
        (with_part("data", validation_split=0.6), "spec.data.validation_split", "<= 0.5"),
        (with_part("data", on_bad_rows="drop"), "spec.data.on_bad_rows", "must be one of: 'fail', 'skip'"),
        (
            {**with_part("data", validation_split=0.1), "validation_dataset": "artifacts/b"},
            "spec.data.validation_split",
            "together with validation_dataset",
        ),
        (with_part("resources", device_count=65), "spec.resources.device_count", "<= 64"),
        (with_part("checkpoints", interval_seconds=0.5), "spec.checkpoints.interval_seconds", ">= 1"),
    ],
)
def test_a_wrong_field_is_named_with_its_remedy(values: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_training_config(values)
    assert [v.field for v in caught.value.violations] == [field]
    assert words in caught.value.violations[0].description


def test_every_wrong_field_is_named_at_once() -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_training_config({**BASE, "seed": "x", "tuner": {"lora_rank": 0}, "hyperparameters": {"epoch_count": 0}})
    fields = {v.field for v in caught.value.violations}
    assert fields == {"spec.seed", "spec.tuner.lora_rank", "spec.hyperparameters.epoch_count"}


def test_recipe_options_are_typed() -> None:
    parse_recipe_options(parse_training_config(BASE))


def test_merge_config() -> None:
    assert parse_merge_config({"adapter": "artifacts/a"}).precision == "auto"
    with pytest.raises(InvalidArgument) as caught:
        parse_merge_config({"adapter": "", "max_logprob_difference": 0})
    assert {v.field for v in caught.value.violations} == {"spec.adapter", "spec.max_logprob_difference"}
