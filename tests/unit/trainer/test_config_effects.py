"""No field is accepted and then ignored: each one changes what a training does, or is shown to work elsewhere, or is refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from martlet_core.errors import FailedPrecondition, InvalidArgument, MartletError
from martlet_trainer.config import (
    Config,
    MergeConfig,
    Schedule,
    TrainingConfig,
    parse_merge_config,
    parse_training_config,
)
from martlet_trainer.recipes.training import run
from martlet_trainer.testing import Recorder, lay_out
from martlet_trainer.training.devices import place

ROWS = [
    {"messages": [{"role": "user", "content": f"{i}+{i}" + "?" * i}, {"role": "assistant", "content": f"{2 * i}"}]}
    for i in range(12)
]
#: With two rounds each.
ROUNDS = [
    {"messages": [*row["messages"], {"role": "user", "content": "and?"}, {"role": "assistant", "content": f"{i}"}]}
    for i, row in enumerate(ROWS)
]
BASE = {
    "base_model": "tiny",
    "training_dataset": "artifacts/a",
    "resources.device": "cpu",
    "hyperparameters.max_steps": 2,
    "hyperparameters.per_device_batch_size": 4,
    "hyperparameters.learning_rate": 1e-2,
    "hyperparameters.precision": "float32",
}
GALORE = {
    "tuner.kind": "full",
    "hyperparameters.optimizer": "galore_adamw",
    "hyperparameters.projection_rank": 8,
}
EVERY_STEP = {"data.validation_split": 0.25, "hyperparameters.eval_steps": 1}

#: Field, what else is set (None: unset), and a value that must make a difference.
EFFECTS: tuple[tuple[str, Mapping[str, Any], Any], ...] = (
    ("tuner.kind", {}, "full"),
    ("tuner.kind", {}, "qlora"),
    ("tuner.lora_rank", {}, 6),
    ("tuner.lora_alpha", {}, 3.0),
    ("tuner.lora_dropout", {}, 0.5),
    ("tuner.target_modules", {}, ["q_proj"]),
    ("tuner.target_regex", {}, r".*\.layers\.0\.self_attn\.[qv]_proj"),
    ("tuner.modules_to_save", {}, ["norm"]),
    ("tuner.use_rslora", {}, True),
    ("tuner.options", {"tuner.kind": "loha", "tuner.lora_rank": None}, {"r": 3}),
    ("tuner.init_weights", {}, "pissa"),
    ("tuner.use_dora", {}, True),
    ("tuner.use_dora", {"tuner.kind": "qlora"}, True),
    ("tuner.quantization", {"tuner.kind": "qlora"}, "int8"),
    ("hyperparameters.epoch_count", {"hyperparameters.max_steps": None}, 1.0),
    ("hyperparameters.max_steps", {}, 3),
    ("hyperparameters.per_device_batch_size", {}, 3),
    ("hyperparameters.gradient_accumulation_steps", {}, 2),
    ("hyperparameters.learning_rate", {}, 1e-3),
    ("hyperparameters.learning_rate_multiplier", {"hyperparameters.learning_rate": None}, 5.0),
    ("hyperparameters.warmup_ratio", {}, 0.9),
    ("hyperparameters.weight_decay", {}, 0.5),
    ("hyperparameters.max_grad_norm", {}, 0.01),
    ("hyperparameters.eval_steps", {"data.validation_split": 0.25}, 1),
    (
        "hyperparameters.early_stopping_patience",
        {**EVERY_STEP, "hyperparameters.max_steps": 6, "hyperparameters.learning_rate": 1e-30},
        1,
    ),
    ("hyperparameters.optimizer", {}, "sgd"),
    ("hyperparameters.projection_rank", {**GALORE, "hyperparameters.projection_rank": None}, 4),
    ("hyperparameters.projection_interval", {**GALORE, "hyperparameters.max_steps": 3}, 1),
    ("hyperparameters.projection_scale", GALORE, 2.0),
    ("hyperparameters.lora_plus_ratio", {}, 8.0),
    ("hyperparameters.neftune_noise_alpha", {}, 20.0),
    ("hyperparameters.precision", {}, "bfloat16"),
    ("data.max_length", {}, 40),
    ("data.packing", {"data.max_length": 128}, True),
    ("data.on_bad_rows", {"rows": [*ROWS, {"messages": []}]}, "skip"),
    ("data.on_long_rows", {"data.max_length": 40}, "refuse"),
    ("data.validation_split", {}, 0.25),
    ("data.assistant_only_loss", {}, False),
    ("data.last_round_only", {"rows": ROUNDS}, True),
    ("data.system", {}, "Be brief."),
    ("data.system", {}, ""),
    ("checkpoints.interval_steps", {}, 1),
    ("seed", {}, 7),
)

#: Fields that a short training in one process can't show, and the test that does.
ELSEWHERE: Mapping[str, str] = {
    "base_model": "test_jobs.py::test_inputs_of_a_training_from_an_artifact",
    "training_dataset": "test_jobs.py::test_inputs_of_a_training_from_the_catalogue",
    "training_datasets": "test_several_datasets.py::test_a_training_on_three_data_sets_counts_what_each_gave",
    "validation_dataset": "test_sft.py::test_early_stopping_returns_the_best_weights",
    "recipe": "test_config.py::test_a_wrong_field_is_named_with_its_remedy",
    "recipe_options": "test_config.py::test_a_wrong_field_is_named_with_its_remedy",
    "suffix": "test_jobs.py::test_result_of_a_training",
    "hyperparameters.learning_rate_schedule": "test_config_effects.py::test_schedules_differ",
    "hyperparameters.gradient_checkpointing": "test_config_effects.py::test_gradient_checkpointing_recomputes",
    "hyperparameters.use_liger_kernel": "test_liger.py::test_the_model_itself_gets_all_but_the_loss",
    "trackers": "test_jobs.py::test_trackers_are_kept_from_the_training_and_change_nothing_in_it",
    "resources.device": "test_config_effects.py::test_device_decides_where_a_training_runs",
    "resources.sharding": "test_sharding.py::test_spread_weights_train_as_whole_ones_and_go_on_bit_by_bit",
    "resources.device_count": "test_sft.py::test_two_processes_train_as_one_with_the_same_global_batch",
    "resources.priority": "test_job_contract.py::test_priority_and_attempts_reach_the_job",
    "resources.max_attempts": "test_job_contract.py::test_priority_and_attempts_reach_the_job",
    "checkpoints.interval_seconds": "test_sft.py::test_time_is_an_interval_too",
    "merge.adapter": "test_jobs.py::test_inputs_of_a_merge",
    "merge.precision": "test_merge.py::test_auto_keeps_the_type_of_the_base",
    "merge.suffix": "test_jobs.py::test_result_of_a_merge",
    "merge.max_logprob_difference": "test_merge.py::test_a_difference_over_the_limit_fails_and_names_both_numbers",
}


def fields_of(model: type[Config], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Config):
            yield from fields_of(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name


def spec_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """``{"tuner.kind": "lora"}`` -> ``{"tuner": {"kind": "lora"}}``; None leaves a field out."""
    spec: dict[str, Any] = {}
    for path, value in values.items():
        if path == "rows" or value is None:
            continue
        *groups, name = path.split(".")
        place_of = spec
        for group in groups:
            place_of = place_of.setdefault(group, {})
        place_of[name] = value
    return spec


Outcome = Callable[[Mapping[str, Any]], Any]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Outcome:
    """What comes of a training with some fields changed: its numbers, what it wrote, or its error. Same spec, same outcome."""
    known: dict[str, Any] = {}

    def find(changes: Mapping[str, Any]) -> Any:
        key = json.dumps(changes, sort_keys=True)
        if key not in known:
            directory = tmp_path_factory.mktemp("training")
            known[key] = train(lay_out(directory / "a", tiny_model_dir, changes.get("rows", ROWS)), {**BASE, **changes})
        return known[key]

    return find


def train(workdir: Path, values: Mapping[str, Any]) -> Any:
    report = Recorder()
    try:
        result = run(spec_of(values), workdir, report, lambda: False)
    except MartletError as error:
        return type(error).__name__, error.message
    names = ("loss", "valid_loss", "token_accuracy", "learning_rate", "grad_norm", "epoch")
    numbers = {step: {name: values.get(name) for name in names} for step, values in report.steps.items()}
    model = result.outputs["model"]
    files = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in model.path.iterdir() if path.is_file()
    }
    data = {name: value for name, value in result.values.items() if name.endswith("_data")}
    return numbers, model.kind, files, data, [step for _, step, _ in report.checkpoints]


def test_every_field_is_in_the_tables() -> None:
    """A new field needs a row; a row's test must exist."""
    fields = {*fields_of(TrainingConfig), *fields_of(MergeConfig, "merge.")}
    assert fields == {*(field for field, _, _ in EFFECTS), *ELSEWHERE}
    for test in ELSEWHERE.values():
        file, _, name = test.partition("::")
        assert f"def {name}(" in (Path(__file__).parent / file).read_text(encoding="utf-8"), test


def test_the_same_spec_has_the_same_outcome(tmp_path: Path, tiny_model_dir: Path, outcome: Outcome) -> None:
    """Without this, a difference would say nothing."""
    assert train(lay_out(tmp_path / "again", tiny_model_dir, ROWS), BASE) == outcome({})


@pytest.mark.parametrize(("field", "others", "value"), EFFECTS, ids=[f"{f}={v!r}"[:60] for f, _, v in EFFECTS])
def test_a_field_makes_a_difference(outcome: Outcome, field: str, others: Mapping[str, Any], value: Any) -> None:
    without = {name: setting for name, setting in others.items() if name != field}
    assert outcome({**without, field: value}) != outcome(without)


def test_schedules_differ(outcome: Outcome) -> None:
    warm = {"hyperparameters.max_steps": 6, "hyperparameters.warmup_ratio": None}
    curves = set()
    for schedule in get_args(Schedule):
        numbers, *_ = outcome({**warm, "hyperparameters.learning_rate_schedule": schedule, **_warmup(schedule)})
        curves.add(tuple(step["learning_rate"] for step in numbers.values()))
    assert len(curves) == len(get_args(Schedule))


def _warmup(schedule: str) -> dict[str, float]:
    return {} if schedule == "constant" else {"hyperparameters.warmup_ratio": 0.4}


def test_gradient_checkpointing_recomputes(outcome: Outcome, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same numbers, by computing each layer twice."""
    from transformers.models.llama.modeling_llama import LlamaMLP

    calls: list[bool] = []
    original = LlamaMLP.forward
    monkeypatch.setattr(LlamaMLP, "forward", lambda *args: calls.append(torch.is_grad_enabled()) or original(*args))
    found = {}
    for wanted in (False, True):
        calls.clear()
        found[wanted] = outcome({"hyperparameters.gradient_checkpointing": wanted}), sum(calls)
    (plain, once), (recomputed, more) = found[False], found[True]
    assert more == 2 * once > 0
    losses = [[step["loss"] for step in numbers.values()] for numbers, *_ in (recomputed, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_gradient_checkpointing_of_a_model_without_it_is_refused(
    outcome: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import LlamaForCausalLM

    monkeypatch.setattr(LlamaForCausalLM, "supports_gradient_checkpointing", False)
    kind, message = outcome({"hyperparameters.gradient_checkpointing": True, "hyperparameters.max_steps": 1})
    assert (kind, "architecture has none" in message) == ("InvalidArgument", True)


def test_device_decides_where_a_training_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def placed(device: str, count: int = 1) -> str:
        resources = {"device": device, "device_count": count}
        config = parse_training_config({"base_model": "a", "training_dataset": "artifacts/a", "resources": resources})
        return place(config).device.type

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert (placed("auto"), placed("cpu")) == ("cpu", "cpu")
    with pytest.raises(FailedPrecondition, match="asks for 1 GPUs, but this worker has 0"):
        placed("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    assert (placed("auto"), placed("cpu"), placed("cuda", 2)) == ("cuda", "cpu", "cuda")
    with pytest.raises(FailedPrecondition, match="asks for 3 devices"):
        placed("auto", 3)


FULL = "has no meaning with tuner.kind full"


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"tuner.kind": "full", "tuner.lora_rank": 4}, "tuner.lora_rank", FULL),
        ({"tuner.kind": "full", "tuner.lora_alpha": 4}, "tuner.lora_alpha", FULL),
        ({"tuner.kind": "full", "tuner.lora_dropout": 0.1}, "tuner.lora_dropout", FULL),
        ({"tuner.kind": "full", "tuner.target_modules": ["q_proj"]}, "tuner.target_modules", FULL),
        ({"tuner.kind": "full", "tuner.modules_to_save": ["norm"]}, "tuner.modules_to_save", FULL),
        ({"tuner.kind": "full", "tuner.use_rslora": True}, "tuner.use_rslora", FULL),
        ({"tuner.kind": "full", "tuner.use_dora": True}, "tuner.use_dora", FULL),
        ({"tuner.kind": "full", "tuner.quantization": "int8"}, "tuner.quantization", FULL),
        ({"tuner.quantization": "int8"}, "tuner.quantization", "set tuner.kind to qlora"),
        (
            {"hyperparameters.learning_rate_schedule": "constant", "hyperparameters.warmup_ratio": 0.1},
            "hyperparameters.warmup_ratio",
            "set that to constant_with_warmup",
        ),
        ({"hyperparameters.eval_steps": 5}, "hyperparameters.eval_steps", "needs validation rows"),
        ({"hyperparameters.early_stopping_patience": 5}, "hyperparameters.early_stopping_patience", "needs validation"),
        ({"hyperparameters.precision": "float16"}, "hyperparameters.precision", "needs a GPU"),
    ],
)
def test_what_would_be_ignored_is_refused(changes: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_training_config(spec_of({**BASE, **changes}))
    [violation] = caught.value.violations
    assert violation.field == f"spec.{field}"
    assert words in violation.description


@pytest.mark.parametrize("kind", ["lora", "qlora", "full"])
def test_what_a_training_resolved_to_may_be_asked_for_again(kind: str) -> None:
    config = parse_training_config(spec_of({**BASE, "tuner.kind": kind})).resolved()
    assert parse_training_config(config.model_dump(mode="json", exclude_none=True)) == config


def test_merges_take_a_suffix() -> None:
    assert parse_merge_config({"adapter": "ft:a", "suffix": "mine"}).suffix == "mine"
    with pytest.raises(InvalidArgument, match="1 to 64"):
        parse_merge_config({"adapter": "ft:a", "suffix": "a b"})
