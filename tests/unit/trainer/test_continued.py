"""Going on from an adapter: shape and base model are the adapter's, and a request that contradicts them is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from martlet_core.errors import FailedPrecondition, InvalidArgument
from martlet_trainer.recipes.training import run
from martlet_trainer.testing import Recorder, chat_rows, training_spec

MakeWorkdir = Callable[..., Path]

ROWS = chat_rows(8)
#: All rows in one batch, so that a step's loss says which weights it began with.
NUMBERS = {"max_steps": 3, "per_device_batch_size": 8, "learning_rate_schedule": "constant"}
SHAPE = {"lora_rank": 6, "lora_alpha": 9.0, "target_modules": ["q_proj", "down_proj"], "lora_dropout": 0.0}


def train(workdir: Path, *, adapter_base_model: str = "", **changes: Any) -> tuple[Any, Recorder]:
    report = Recorder()
    spec = training_spec(hyperparameters=NUMBERS | changes.pop("hyperparameters", {}), **changes)
    if adapter_base_model:
        spec["adapter_base_model"] = adapter_base_model
    return run(spec, workdir, report, lambda: False), report


@pytest.fixture
def adapter(make_workdir: MakeWorkdir) -> Path:
    """An adapter of a shape of its own, trained for three steps."""
    return train(make_workdir("before", ROWS), tuner=SHAPE)[0].outputs["model"].path


def going_on(make_workdir: MakeWorkdir, adapter: Path, tuner: dict[str, Any], **changes: Any) -> tuple[Any, Recorder]:
    spec = {"base_model": "ft:tiny:me:a:12345678", "adapter_base_model": "tiny", **changes}
    workdir = make_workdir(f"after-{len(tuner)}-{len(changes)}", ROWS, adapter=adapter)
    spec["tuner"] = tuner
    report = Recorder()
    values = {**training_spec(hyperparameters=NUMBERS | {"max_steps": 1}), **spec}
    return run(values, workdir, report, lambda: False), report


def test_it_begins_with_the_adapters_weights_and_keeps_its_shape(make_workdir: MakeWorkdir, adapter: Path) -> None:
    _, unbroken = train(make_workdir("unbroken", ROWS), tuner=SHAPE, hyperparameters={"max_steps": 4})
    result, report = going_on(make_workdir, adapter, {})
    assert report.losses[0] == pytest.approx(unbroken.losses[3], rel=1e-5)
    output = result.outputs["model"]
    written = json.loads((output.path / "adapter_config.json").read_text())
    assert (written["r"], written["lora_alpha"], set(written["target_modules"])) == (6, 9, {"q_proj", "down_proj"})
    assert written["base_model_name_or_path"] == "tiny"
    assert (output.metadata["base_model"], output.metadata["lora_rank"]) == ("tiny", 6)
    tuner = result.values["resolved_config"]["tuner"]
    assert (tuner["lora_rank"], tuner["lora_alpha"], tuner["target_modules"]) == (6, 9.0, ["down_proj", "q_proj"])
    changed = (output.path / "adapter_model.safetensors").read_bytes()
    assert changed != (adapter / "adapter_model.safetensors").read_bytes()


def test_the_base_is_the_one_that_was_looked_up(make_workdir: MakeWorkdir, adapter: Path) -> None:
    """Adapters made elsewhere record a path of the machine that made them."""
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": "/somewhere/else"}))
    result, _ = going_on(make_workdir, adapter, {}, adapter_base_model="org/model@main")
    written = json.loads((result.outputs["model"].path / "adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == result.outputs["model"].metadata["base_model"] == "org/model@main"


def test_another_shape_is_refused_with_every_field_that_contradicts(make_workdir: MakeWorkdir, adapter: Path) -> None:
    with pytest.raises(InvalidArgument) as caught:
        going_on(make_workdir, adapter, {"lora_rank": 4, "target_modules": ["all-linear"], "use_rslora": True})
    found = {violation.field: violation.description for violation in caught.value.violations}
    assert set(found) == {"spec.tuner.lora_rank", "spec.tuner.target_modules", "spec.tuner.use_rslora"}
    text = "is 4, but ft:tiny:me:a:12345678 has 6, which training can't change; leave it out"
    assert found["spec.tuner.lora_rank"] == text


def test_the_same_shape_may_be_asked_for(make_workdir: MakeWorkdir, adapter: Path) -> None:
    same = {"lora_rank": 6, "lora_alpha": 9, "target_modules": ["q_proj", "down_proj"], "use_dora": False}
    result, _ = going_on(make_workdir, adapter, same)
    assert result.outputs["model"].metadata["lora_rank"] == 6


def test_dropout_is_the_adapters_unless_it_is_asked_for(make_workdir: MakeWorkdir) -> None:
    made, _ = train(make_workdir("before", ROWS), tuner={"lora_dropout": 0.25})
    adapter = made.outputs["model"].path
    kept, _ = going_on(make_workdir, adapter, {})
    changed, _ = going_on(make_workdir, adapter, {"lora_dropout": 0.0})
    for result, expected in ((kept, 0.25), (changed, 0.0)):
        assert result.values["resolved_config"]["tuner"]["lora_dropout"] == expected
        written = json.loads((result.outputs["model"].path / "adapter_config.json").read_text())
        assert written["lora_dropout"] == expected


def test_it_can_go_on_over_a_quantized_base(make_workdir: MakeWorkdir, adapter: Path) -> None:
    result, report = going_on(make_workdir, adapter, {"kind": "qlora"})
    assert result.outputs["model"].metadata["lora_rank"] == 6
    assert len(report.losses) == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"peft_type": "IA3"}, "an adapter of kind"),
        ({"peft_type": "NOVEL"}, "no adapter that can be read"),
        ({"target_modules": ["c_attn"]}, "doesn't fit its base model"),
        ({"r": 5}, "doesn't fit its base model"),
    ],
)
def test_what_can_not_be_gone_on_from_says_so(
    make_workdir: MakeWorkdir, adapter: Path, change: dict[str, Any], words: str
) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(FailedPrecondition, match=words):
        going_on(make_workdir, adapter, {})
