"""Every kind of adapter: it trains, goes on as if never stopped, is read back by peft, and merges."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from martlet_core.artifacts.types import PublishedModel
from martlet_core.errors import FailedPrecondition, InvalidArgument
from martlet_core.model_rules import check_plain_lora
from martlet_core.recipe import StopRequested
from martlet_trainer.config import parse_training_config
from martlet_trainer.recipes import merge
from martlet_trainer.recipes.training import run
from martlet_trainer.testing import Recorder, chat_rows, training_spec
from martlet_trainer.testing_cases import SMALL_OPTIONS, SMALL_RATES
from martlet_trainer.training.models import load_model
from martlet_trainer.tuners.kinds import KINDS
from peft import PeftModel
from safetensors.torch import load_file

MakeWorkdir = Callable[..., Path]
ADAPTERS = [name for name, kind in KINDS.items() if kind.peft_config and not kind.virtual_tokens]
CPU = torch.device("cpu")


def train(kind: str, workdir: Path, stop: Any = lambda report: False, **numbers: Any) -> tuple[Any, Recorder]:
    report = Recorder()
    rate = SMALL_RATES.get(kind, 1e-2)
    spec = training_spec(
        hyperparameters={"max_steps": 30, "learning_rate": rate, **numbers},
    )
    spec["tuner"] = {"kind": kind, "options": SMALL_OPTIONS.get(kind, {})}
    return run(spec, workdir, report, lambda: stop(report)), report


@pytest.mark.parametrize("kind", ADAPTERS)
def test_an_adapter_learns_is_read_back_and_merges(make_workdir: MakeWorkdir, tmp_path: Path, kind: str) -> None:
    workdir = make_workdir("a", chat_rows(16))
    result, report = train(kind, workdir)
    assert report.losses[-1] < report.losses[0] - 0.05
    output = result.outputs["model"]
    assert (output.kind, output.metadata["tuner"], output.metadata["base_model"]) == ("adapter", kind, "tiny")
    base = workdir / "inputs" / "base_model"
    ids = torch.tensor([[1, 9, 40, 41, 42, 43, 2, 1, 10, 44, 45]])
    with torch.no_grad():
        bare = load_model(base, torch.float32, CPU).eval()(ids).logits
        adapted = PeftModel.from_pretrained(load_model(base, torch.float32, CPU), output.path).eval()(ids).logits
    assert (adapted - bare).norm() > 1e-3 * bare.norm(), "the adapter changes nothing"
    inputs = tmp_path / "merge" / "inputs"
    inputs.mkdir(parents=True)
    (inputs / "base_model").symlink_to(base.resolve())
    (inputs / "adapter").symlink_to(output.path)
    values = {"adapter": "ft:a", "base_model": "tiny"}
    merged = merge.run(values, tmp_path / "merge", Recorder(), lambda: False)
    with torch.no_grad():
        found = load_model(merged.outputs["model"].path, torch.float32, CPU).eval()(ids).logits
    assert (found - adapted).norm() < 1e-3 * adapted.norm()


@pytest.mark.parametrize("kind", ADAPTERS)
def test_it_goes_on_from_a_checkpoint_as_if_it_had_never_stopped(make_workdir: MakeWorkdir, kind: str) -> None:
    rows = chat_rows(12)
    whole, _ = train(kind, make_workdir("whole", rows), max_steps=5)
    first = make_workdir("first", rows)
    with pytest.raises(StopRequested):
        train(kind, first, lambda report: len(report.losses) >= 3, max_steps=5)
    resume = first / "checkpoints" / "step-3"
    resumed, _ = train(kind, make_workdir("second", rows, resume=resume), max_steps=5)
    weights = [result.outputs["model"].path / "adapter_model.safetensors" for result in (whole, resumed)]
    assert len({path.read_bytes() for path in weights}) == 1


@pytest.mark.parametrize(
    ("tuner", "message"),
    [
        ({"kind": "lara"}, r"spec\.tuner\.kind: is 'lara'; must be one of: lora, qlora, full, lisa, llamapro"),
        (
            {"kind": "vera", "lora_rank": 4},
            r"lora_rank: is LoRA's, and tuner\.kind is vera; .*: r, d_initial, vera_dropout",
        ),
        ({"kind": "vera", "options": {"rank": 4}}, r"tuner\.options\.rank"),
        ({"kind": "lora", "options": {"r": 4}}, r"tuner\.options\.r"),
        ({"kind": "loha", "options": {"r": 0}}, r"tuner\.options\.r"),
        ({"target_regex": "*q_proj"}, r"tuner\.target_regex.*is no regular expression"),
        ({"target_regex": "q_proj", "target_modules": ["q_proj"]}, r"target_regex: can't be used together"),
    ],
)
def test_wrong_options_are_refused_at_submission(tuner: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        parse_training_config({"base_model": "m", "training_dataset": "artifacts/a", "tuner": tuner})


@pytest.mark.parametrize(
    ("tuner", "message"),
    [
        (
            {"kind": "vblora", "options": {"vector_length": 24}},
            r"tuner\.options: don't fit this model: .*vector_length",
        ),
        (
            {"kind": "loha", "target_modules": ["query"]},
            r"tuner\.target_modules: can't be adapted: .*Linear modules .*q_proj",
        ),
        ({"target_regex": "q_proj"}, r"tuner\.target_regex: can't be adapted: .*Linear modules .*q_proj"),
    ],
)
def test_what_does_not_fit_the_model_is_said_at_its_field(
    make_workdir: MakeWorkdir, tuner: dict[str, Any], message: str
) -> None:
    spec = training_spec()
    spec["tuner"] = tuner
    with pytest.raises(InvalidArgument, match=message):
        run(spec, make_workdir("a", chat_rows(4)), Recorder(), lambda: False)


def test_learning_rates_go_by_the_kind() -> None:
    spec = {"base_model": "m", "training_dataset": "artifacts/a"}
    rates = {
        kind: parse_training_config({**spec, "tuner": {"kind": kind}}).resolved().hyperparameters.learning_rate
        for kind in KINDS
    }
    assert (rates["lora"], rates["full"], rates["vera"]) == pytest.approx((2e-4, 1e-5, 4e-3))


@pytest.mark.parametrize("facts", [{"tuner": "vera"}, {"peft_type": "VERA"}])
def test_engines_are_not_asked_to_take_them(facts: dict[str, Any]) -> None:
    model = PublishedModel("ft:a", "adapter", "acme", "a1", base_model="base")
    with pytest.raises(FailedPrecondition, match=r"matrices of another kind \(vera\); plain LoRA alone"):
        check_plain_lora(model, facts)
    check_plain_lora(model, {"peft_type": "LORA"})


def test_a_pattern_chooses_modules_by_their_whole_name(make_workdir: MakeWorkdir) -> None:
    """Also of the adapter that a training goes on with."""
    rows, pattern = chat_rows(8), r".*\.layers\.0\.self_attn\.[qv]_proj"
    result, _ = train_lora(make_workdir("a", rows), tuner={"target_regex": pattern})
    output = result.outputs["model"]
    names = load_file(output.path / "adapter_model.safetensors")
    layers = {name.split(".lora_")[0].removeprefix("base_model.model.model.") for name in names}
    assert layers == {"layers.0.self_attn.q_proj", "layers.0.self_attn.v_proj"}
    assert output.metadata["target_regex"] == pattern
    again, _ = train_lora_on(make_workdir("b", rows, validation=rows[:4], adapter=output.path), {"max_steps": 1})
    assert again.values["resolved_config"]["tuner"]["target_regex"] == pattern


def train_lora(workdir: Path, stop: Any = lambda report: False, **changes: Any) -> tuple[Any, Recorder]:
    report = Recorder()
    spec = training_spec(tuner={"lora_rank": 4, **changes.pop("tuner", {})}, **changes)
    return run(spec, workdir, report, lambda: stop(report)), report


@pytest.mark.parametrize("rank_stabilized", [False, True])
@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_a_start_inside_the_base_model_leaves_a_plain_adapter(
    make_workdir: MakeWorkdir, start: str, rank_stabilized: bool
) -> None:
    """It begins as the base model, and what it wrote does on the untouched base model what was trained."""
    rows, tuner = chat_rows(16), {"init_weights": start, "use_rslora": rank_stabilized}
    numbers = {"max_steps": 12, "learning_rate": 1e-3, "eval_steps": 12}
    held_out = {"validation_dataset": "artifacts/b"}
    _, plain = train_lora(make_workdir("plain", rows, validation=rows[:4]), hyperparameters=numbers, **held_out)
    workdir = make_workdir("a", rows, validation=rows[:4])
    result, report = train_lora(workdir, tuner=tuner, hyperparameters=numbers, **held_out)
    assert report.losses[0] == pytest.approx(plain.losses[0], abs=1e-3)
    assert report.losses[1] != pytest.approx(plain.losses[1], abs=1e-3)
    output = result.outputs["model"]
    assert (output.metadata["tuner"], output.metadata["lora_rank"]) == ("lora", 8)
    adapter = make_workdir("again", rows, validation=rows[:4], adapter=output.path)
    numbers = {"max_steps": 1, "learning_rate": 1e-12}
    _, after = train_lora_on(adapter, numbers)
    assert after.steps[1]["valid_loss"] == pytest.approx(report.steps[12]["valid_loss"], abs=1e-3)


def train_lora_on(workdir: Path, numbers: dict[str, Any]) -> tuple[Any, Recorder]:
    """Go on from an adapter, whose shape is its own."""
    report = Recorder()
    spec = training_spec(hyperparameters=numbers, validation_dataset="artifacts/b", base_model="ft:a")
    del spec["tuner"]
    return run({**spec, "adapter_base_model": "tiny"}, workdir, report, lambda: False), report


@pytest.mark.parametrize("start", ["gaussian", "orthogonal", "pissa", "olora"])
def test_a_start_is_found_again_in_a_checkpoint(make_workdir: MakeWorkdir, start: str) -> None:
    rows, changes = chat_rows(12), {"tuner": {"init_weights": start}, "hyperparameters": {"max_steps": 5}}
    whole, _ = train_lora(make_workdir("whole", rows), **changes)
    first = make_workdir("first", rows)
    with pytest.raises(StopRequested):
        train_lora(first, lambda report: len(report.losses) >= 3, **changes)
    resume = first / "checkpoints" / "step-3"
    resumed, _ = train_lora(make_workdir("second", rows, resume=resume), **changes)
    weights = [result.outputs["model"].path / "adapter_model.safetensors" for result in (whole, resumed)]
    assert len({path.read_bytes() for path in weights}) == 1


def test_noise_is_on_training_batches_alone(make_workdir: MakeWorkdir) -> None:
    """Rows of different lengths, end to end and packed; what is validated is the model itself."""
    rows = chat_rows(12)
    losses = {}
    for name, alpha, packing in (("without", None, False), ("with", 5.0, False), ("packed", 5.0, True)):
        numbers = {"max_steps": 2, "learning_rate": 1e-12, "eval_steps": 2}
        numbers |= {} if alpha is None else {"neftune_noise_alpha": alpha}
        workdir = make_workdir(name, rows, validation=rows[:4])
        _, report = train_lora(
            workdir,
            hyperparameters=numbers,
            validation_dataset="artifacts/b",
            data={"packing": packing, "max_length": 256},
        )
        losses[name] = (report.losses, report.steps[2]["valid_loss"])
    assert losses["with"][1] == pytest.approx(losses["without"][1], abs=1e-4)
    assert losses["with"][0] != pytest.approx(losses["without"][0], abs=1e-3)
    assert losses["packed"][1] == pytest.approx(losses["without"][1], abs=1e-4)


def test_noise_is_as_wide_as_the_paper_says() -> None:
    from martlet_trainer.training.neftune import _Noise

    noise, module = _Noise(5.0), torch.nn.Embedding(2, 64)
    noise.lengths = torch.tensor([[4, 4, 100]])
    found = noise(module, None, torch.zeros(1, 3, 64))
    assert found is not None
    limits = 5.0 / (torch.tensor([4.0, 4.0, 100.0]) * 64).sqrt()
    assert (found[0].abs().amax(-1) <= limits).all()
    assert (found[0].abs().amax(-1) > 0.8 * limits).all()
    assert noise(module.eval(), None, torch.zeros(1, 3, 64)) is None


def test_b_learns_faster_than_a_with_lora_plus() -> None:
    from martlet_trainer.config import Hyperparameters
    from martlet_trainer.training.optimizers import build_optimizer

    layer = torch.nn.ModuleDict(
        {"lora_A": torch.nn.Linear(4, 2, bias=False), "lora_B": torch.nn.Linear(2, 4, bias=False)}
    )
    numbers = Hyperparameters(learning_rate=1e-3, lora_plus_ratio=16.0)
    rates = [group["lr"] for group in build_optimizer(layer, numbers).param_groups]
    assert rates == pytest.approx([1e-3, 1.6e-2])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tuner": {"kind": "qlora", "init_weights": "pissa"}}, "needs plain LoRA on unquantized weights"),
        ({"tuner": {"init_weights": "olora", "use_dora": True}}, "needs plain LoRA on unquantized weights"),
        ({"tuner": {"kind": "full"}, "hyperparameters": {"lora_plus_ratio": 4}}, r"lora_plus_ratio: is LoRA's"),
        ({"tuner": {"init_weights": "pizza"}}, r"tuner\.init_weights"),
    ],
)
def test_starts_that_cannot_be_are_refused_at_submission(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        parse_training_config({"base_model": "m", "training_dataset": "artifacts/a", **changes})
