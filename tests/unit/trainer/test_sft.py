"""The sft recipe on a tiny model: what it writes, how it stops and goes on, and that its numbers are the field's."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from martlet_core.errors import FailedPrecondition, Internal, InvalidArgument
from martlet_core.recipe import StopRequested
from martlet_trainer.recipes.training import run
from martlet_trainer.training import launch
from martlet_trainer.training.checkpoint import read_state
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

MakeWorkdir = Callable[..., Path]


def never() -> bool:
    return False


def train(
    kit: SimpleNamespace, workdir: Path, should_stop: Callable[[], bool] = never, **changes: Any
) -> tuple[Any, Any]:
    report = kit.Recorder()
    return run(kit.spec(**changes), workdir, report, should_stop), report


def close(left: list[float], right: list[float], tolerance: float = 1e-5) -> bool:
    return len(left) == len(right) and all(abs(a - b) <= tolerance for a, b in zip(left, right, strict=True))


class StopAfter:
    """Asks to stop at the n-th time it is asked."""

    def __init__(self, asked: int) -> None:
        self._left = asked

    def __call__(self) -> bool:
        self._left -= 1
        return self._left < 0


def test_it_learns_and_writes_a_plain_adapter(
    kit: SimpleNamespace, make_workdir: MakeWorkdir, tiny_model_dir: Path
) -> None:
    rows = [{"messages": [*row["messages"][:2], {"role": "assistant", "content": "7"}]} for row in kit.chat_rows(40)]
    workdir = make_workdir("a", rows)
    result, report = train(
        kit, workdir, hyperparameters={"max_steps": 40, "learning_rate": 2e-2}, tuner={"lora_rank": 8}
    )
    assert report.losses[-1] < 0.2 * report.losses[0]
    assert report.steps[40]["token_accuracy"] == 1.0
    assert set(report.steps[1]) == {
        "loss", "token_accuracy", "learning_rate", "grad_norm", "tokens_per_second", "samples_per_second", "epoch", "peak_memory_bytes"
    }  # fmt: skip

    output = result.outputs["model"]
    assert (output.kind, output.metadata["base_model"], output.metadata["lora_rank"]) == ("adapter", "tiny", 8)
    assert sorted(p.name for p in output.path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert json.loads((output.path / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny"
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    tuned = PeftModel.from_pretrained(base, output.path)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    prompt = tokenizer.apply_chat_template(
        kit.chat_rows(1)[0]["messages"][:2], add_generation_prompt=True, return_tensors="pt"
    )
    with torch.no_grad():
        likeliest = tuned(**prompt).logits[0, -1].argmax().item()
    assert tokenizer.decode([likeliest]) == "7"

    values = result.values
    assert values["training_data"]["rows_used"] == 40
    assert values["trained_tokens"] > 40 * 20
    assert values["resolved_config"]["tuner"]["lora_alpha"] == 16.0
    assert values["resolved_config"]["data"]["max_length"] == 512
    assert values["peak_memory_bytes"] > 0
    with (result.outputs["metrics"].path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["train_loss"]) for row in rows] == report.losses
    columns = ["step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy"]
    assert list(rows[0])[:5] == columns, "what readers of OpenAI's results file expect"
    json.dumps(values)


@pytest.mark.parametrize(
    "changes",
    [
        {
            "hyperparameters": {
                "gradient_accumulation_steps": 2,
                "learning_rate_schedule": "linear",
                "warmup_ratio": 0.3,
            }
        },
        {"tuner": {"lora_dropout": 0.2}, "hyperparameters": {"gradient_accumulation_steps": 2}},
        {"tuner": {"kind": "full"}, "hyperparameters": {"learning_rate": 1e-3}},
        {"data": {"packing": True, "max_length": 64, "validation_split": 0.1}, "hyperparameters": {"eval_steps": 2}},
    ],
    ids=["accumulation", "dropout", "full", "packing and validation"],
)
def test_stopped_anywhere_it_goes_on_as_if_nothing_had_been(
    kit: SimpleNamespace, make_workdir: MakeWorkdir, changes: dict[str, Any]
) -> None:
    """Also between two micro-batches of a step, and more than once."""
    rows = kit.chat_rows(30)
    _, unbroken = train(kit, make_workdir("unbroken", rows), **changes)
    losses: dict[int, float] = {}
    resume, attempts, asked = None, 0, 5
    while True:
        attempts += 1
        workdir = make_workdir(f"attempt-{attempts}", rows, resume=resume)
        report = kit.Recorder()
        try:
            result = run(kit.spec(**changes), workdir, report, StopAfter(asked))
        except StopRequested:
            losses |= {step: values["loss"] for step, values in report.steps.items() if "loss" in values}
            if report.checkpoints:
                resume = report.checkpoints[-1][0]
                assert read_state(resume).step == max(losses)
            asked += 3
            continue
        losses |= {step: values["loss"] for step, values in report.steps.items() if "loss" in values}
        break
    assert attempts > 1
    assert close([losses[step] for step in sorted(losses)], unbroken.losses)
    with (result.outputs["metrics"].path / "metrics.csv").open() as file:
        history = [float(row["train_loss"]) for row in csv.DictReader(file)]
    assert close(history, unbroken.losses), "the history is whole, whoever measured it"


_CHILD = """
import json, sys
from pathlib import Path
from martlet_trainer.recipes.training import run
class Report:
    def phase(self, name): pass
    def log(self, message, level="info"): pass
    def metrics(self, step, total_steps, values, eta_seconds=None): print(json.dumps([step, values.get("loss")]), flush=True)
    def checkpoint(self, path, step, metrics, is_best=False): print(json.dumps(["checkpoint", str(path)]), flush=True)
    def partial_result(self, values): pass
run(json.loads(sys.argv[1]), Path(sys.argv[2]), Report(), lambda: False)
"""


def test_killed_it_loses_one_interval_at_most(kit: SimpleNamespace, make_workdir: MakeWorkdir) -> None:
    """SIGKILL in mid-training; what a second process then computes is what the first would have."""
    rows, spec = kit.chat_rows(30), kit.spec(checkpoints={"interval_steps": 2}, hyperparameters={"max_steps": 400})
    workdir = make_workdir("killed", rows)
    command = [sys.executable, "-c", _CHILD, json.dumps(spec), str(workdir)]
    seen: dict[int, float] = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            first, second = json.loads(line)
            if first != "checkpoint" and second is not None:
                seen[first] = second
            if len(seen) == 7:
                child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    whole = sorted(p for p in (workdir / "checkpoints").iterdir() if not p.name.startswith("."))
    newest = max(whole, key=lambda path: read_state(path).step)
    assert read_state(newest).step >= 6
    step = read_state(newest).step
    resumed = kit.Recorder()
    with pytest.raises(StopRequested):
        run(spec, make_workdir("second", rows, resume=newest), resumed, lambda: len(resumed.steps) >= 3)
    unbroken = kit.Recorder()
    with pytest.raises(StopRequested):
        run(spec, make_workdir("unbroken", rows), unbroken, lambda: len(unbroken.steps) >= step + 3)
    assert min(resumed.steps) == step + 1
    assert close(resumed.losses, unbroken.losses[step:])
    assert close([seen[s] for s in sorted(seen)], unbroken.losses[: len(seen)])


def test_time_is_an_interval_too(
    kit: SimpleNamespace, make_workdir: MakeWorkdir, monkeypatch: pytest.MonkeyPatch
) -> None:
    from martlet_trainer.training import loop

    clock = iter(range(0, 10_000, 7))
    monkeypatch.setattr(
        loop, "time", SimpleNamespace(monotonic=lambda: next(clock), perf_counter=lambda: float(next(clock)))
    )
    _, report = train(kit, make_workdir("a", kit.chat_rows(8)), checkpoints={"interval_seconds": 60})
    assert len(report.checkpoints) > 1
    assert report.checkpoints[-1][1] == 6, "the last step has one in any case"


def test_early_stopping_returns_the_best_weights(kit: SimpleNamespace, make_workdir: MakeWorkdir) -> None:
    """Contradicting validation rows: the better the training rows are learned, the worse these get."""
    wrong = [{"messages": [*row["messages"][:2], {"role": "assistant", "content": "zzz"}]} for row in kit.chat_rows(6)]
    changes = {
        "hyperparameters": {"max_steps": 40, "eval_steps": 2, "early_stopping_patience": 2, "learning_rate": 3e-2},
        "validation_dataset": "artifacts/b",
    }
    result, report = train(kit, make_workdir("a", kit.chat_rows(20), validation=wrong), **changes)
    valid = {step: values["valid_loss"] for step, values in report.steps.items() if "valid_loss" in values}
    best = min(valid, key=lambda step: valid[step])
    last = max(report.steps)
    assert last == best + 4 < 40
    assert result.values["metrics"]["best_step"] == best
    assert [step for _, step, is_best in report.checkpoints if is_best][-1] == best
    best_dir = next(path for path, step, _ in report.checkpoints if step == best)
    final = (result.outputs["model"].path / "adapter_model.safetensors").read_bytes()
    assert final == (best_dir / "adapter_model.safetensors").read_bytes()
    assert result.values["validation_data"]["rows_used"] == 6
    # An attempt that goes on after the end has the best weights at hand too, although it never saw them being made.
    resumed, _ = train(
        kit, make_workdir("b", kit.chat_rows(20), validation=wrong, resume=report.checkpoints[-1][0]), **changes
    )
    assert (resumed.outputs["model"].path / "adapter_model.safetensors").read_bytes() == final


def test_full_training_writes_an_ordinary_model(kit: SimpleNamespace, make_workdir: MakeWorkdir) -> None:
    result, report = train(
        kit,
        make_workdir("a", kit.chat_rows(20)),
        tuner={"kind": "full"},
        hyperparameters={"max_steps": 20, "learning_rate": 3e-3},
    )
    assert report.losses[-1] < report.losses[0] - 0.5
    output = result.outputs["model"]
    assert (output.kind, output.metadata["base_model"]) == ("model", "tiny")
    model = AutoModelForCausalLM.from_pretrained(output.path)
    assert model.config._attn_implementation == "sdpa"
    assert AutoTokenizer.from_pretrained(output.path).chat_template


def test_two_processes_train_as_one_with_the_same_global_batch(kit: SimpleNamespace, make_workdir: MakeWorkdir) -> None:
    """Gloo on the CPU, stopped from outside on the way. 22 rows (18 to train on) in batches of 8: at the end of an epoch one process has
    fewer rows than the other."""
    rows = kit.chat_rows(22)
    numbers = {"max_steps": 7, "per_device_batch_size": 8, "eval_steps": 3}
    _, one = train(kit, make_workdir("one", rows), hyperparameters=numbers, data={"validation_split": 0.2})
    spec = kit.spec(
        hyperparameters={**numbers, "per_device_batch_size": 4},
        data={"validation_split": 0.2},
        resources={"device_count": 2},
    )
    first, second = kit.Recorder(), kit.Recorder()
    with pytest.raises(StopRequested):
        run(spec, make_workdir("first", rows), first, lambda: len(first.steps) >= 2)
    result = run(spec, make_workdir("second", rows, resume=first.checkpoints[-1][0]), second, never)
    assert min(second.steps) == first.checkpoints[-1][1] + 1
    two = {**first.steps, **second.steps}
    assert close([two[step]["loss"] for step in sorted(two)], one.losses, 1e-4)
    for step in (3, 6, 7):
        assert abs(two[step]["valid_loss"] - one.steps[step]["valid_loss"]) < 1e-4
    assert (result.outputs["model"].path / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize(
    ("body", "error", "words"), [("fail", InvalidArgument, "spec.seed: is odd"), ("die", Internal, "exit codes")]
)
def test_an_error_in_one_of_several_processes_reaches_the_caller(
    kit: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, error: type[Exception], words: str
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    with pytest.raises(error, match=words):
        launch.run_processes(f"failing_body:{body}", {}, tmp_path, 1, kit.Recorder(), never)


def test_bad_rows_fail_or_are_left_out(kit: SimpleNamespace, make_workdir: MakeWorkdir) -> None:
    """Here are those that only the tokenizer can find; the others are tested with validation."""
    rows = kit.chat_rows(8)
    rows[5]["messages"][2]["content"] = "x" * 600
    with pytest.raises(InvalidArgument) as caught:
        train(kit, make_workdir("a", rows), data={"on_long_rows": "refuse"})
    assert caught.value.reason == "BAD_ROWS"
    assert "line 6" in caught.value.violations[0].description
    result, report = train(kit, make_workdir("b", rows), data={"on_long_rows": "refuse", "on_bad_rows": "skip"})
    assert (result.values["training_data"]["rows_refused"], report.partial["training_data"]["rows_used"]) == (1, 7)
    assert result.values["device"] == report.partial["device"] == "cpu"
    result, _ = train(kit, make_workdir("c", rows))
    assert result.values["training_data"]["rows_truncated"] == 1


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"tuner": {"target_modules": ["q_prj"]}}, InvalidArgument, "Linear modules of this model: down_proj"),
        ({"data": {"max_length": 1024}}, InvalidArgument, "more than the model's context of 512"),
        ({"hyperparameters": {"precision": "float16"}}, InvalidArgument, "needs a GPU"),
    ],
)
def test_what_can_not_work_says_so(
    kit: SimpleNamespace, make_workdir: MakeWorkdir, changes: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        train(kit, make_workdir("a", kit.chat_rows(12)), **changes)


def test_a_loss_that_is_no_number_ends_the_training(
    kit: SimpleNamespace, make_workdir: MakeWorkdir, tiny_model_dir: Path, tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    model.model.norm.weight.data.fill_(float("nan"))
    model.save_pretrained(tmp_path / "broken")
    AutoTokenizer.from_pretrained(tiny_model_dir).save_pretrained(tmp_path / "broken")
    workdir = make_workdir("a", kit.chat_rows(4))
    (workdir / "inputs" / "base_model").unlink()
    (workdir / "inputs" / "base_model").symlink_to(tmp_path / "broken")
    with pytest.raises(FailedPrecondition, match="the loss is nan at step 1; lower"):
        train(kit, workdir)


def test_a_checkpoint_of_another_training_is_refused(kit: SimpleNamespace, make_workdir: MakeWorkdir) -> None:
    _, report = train(kit, make_workdir("a", kit.chat_rows(12)))
    resume = report.checkpoints[-1][0]
    with pytest.raises(FailedPrecondition, match="row_count"):
        train(kit, make_workdir("b", kit.chat_rows(13), resume=resume))
    with pytest.raises(FailedPrecondition, match="don't fit"):
        train(kit, make_workdir("c", kit.chat_rows(12), resume=resume), tuner={"lora_rank": 2})


def test_losses_are_those_of_trl(
    kit: SimpleNamespace, make_workdir: MakeWorkdir, tiny_model_dir: Path, tmp_path: Path
) -> None:
    """The same adapter, rows and hyperparameters through TRL's SFTTrainer give the same curve. One batch is the whole data set, so the two
    orders don't matter; rows are handed over as text that already went through the chat template."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    rows = kit.chat_rows(10)
    start, _ = train(kit, make_workdir("start", rows), hyperparameters={"max_steps": 3})
    adapter = start.outputs["model"].path
    workdir = make_workdir("ours", rows)
    (workdir / "inputs" / "adapter").symlink_to(adapter)
    numbers = {
        "max_steps": 5,
        "per_device_batch_size": 5,
        "gradient_accumulation_steps": 2,
        "learning_rate_schedule": "linear",
        "warmup_ratio": 0,
    }
    _, ours = train(kit, workdir, hyperparameters=numbers)

    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    texts = []
    for row in rows:
        prompt = tokenizer.apply_chat_template(row["messages"][:2], add_generation_prompt=True, tokenize=False)
        texts.append({"prompt": prompt, "completion": row["messages"][2]["content"]})
    trainer = SFTTrainer(
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32), adapter, is_trainable=True),
        SFTConfig(
            output_dir=str(tmp_path / "trl"), max_steps=5, per_device_train_batch_size=5, gradient_accumulation_steps=2, learning_rate=1e-2,
            lr_scheduler_type="linear", warmup_steps=0, weight_decay=0.0, max_grad_norm=1.0, logging_steps=1, report_to=[], save_strategy="no",
            bf16=False, gradient_checkpointing=False, use_cpu=True, disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(texts),
        processing_class=tokenizer,
    )  # fmt: skip
    trainer.train()
    theirs = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert close(ours.losses, theirs, 1e-3)
