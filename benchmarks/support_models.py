"""Fills docs/support/models.{json,md}: every causal language model that transformers ships, really trained, from a tiny random config.

    .martlet/envs/trainer/bin/python benchmarks/support_models.py [--only TYPE] [--again] [--processes 2] [--page]

Each architecture is tried in a fork of this process, which is killed after ``LIMIT_SECONDS`` and may not have more than ``LIMIT_BYTES``. What
has an outcome is not run again, so the command goes on where it ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import statistics
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from environment import ROOT, machine, versions
from models_page import DATA, PAGE, TRIALS, page
from support_fork import fork
from support_sweep import sweep_parser

STEPS = 24
LIMIT_SECONDS, LIMIT_BYTES = 180.0, 6 << 30
#: Outcomes of a sweep that isn't over.
CELLS = ROOT / ".martlet" / "support-models"
#: What two ways of computing the same mean loss may differ by, as a share of it.
_SAME = 1e-3


def main() -> None:
    """Run what is missing, then write the page."""
    parser = sweep_parser(__doc__, "*", "type of a config")
    parser.add_argument("--processes", type=int, default=2, help="architectures at a time, each on one core")
    arguments = parser.parse_args()
    record: dict[str, Any] = json.loads(DATA.read_text()) if DATA.is_file() else {"cells": {}}
    if not arguments.page:
        sweep(record, arguments.only, arguments.processes, again=arguments.again)
        DATA.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    PAGE.write_text(page(record))
    print(f"written: {PAGE.name}")


def sweep(record: dict[str, Any], only: str, processes: int, *, again: bool) -> None:
    """Try the architectures that a pattern names, some at a time; each outcome is kept in ``CELLS`` when it is there."""
    import martlet_trainer.recipes.merge
    import martlet_trainer.recipes.training  # noqa: F401  # imported before the forks, which then start at once
    from martlet_trainer.testing_architectures import causal_architectures

    CELLS.mkdir(parents=True, exist_ok=True)
    known = causal_architectures()
    wanted = [name for name in known if fnmatch(name, only)]
    if again:
        for name in wanted:
            (CELLS / f"{name}.json").unlink(missing_ok=True)
    missing = [
        name for name in wanted if (again or name not in record["cells"]) and not (CELLS / f"{name}.json").is_file()
    ]
    run_apart(missing, processes)
    for name in wanted:
        if (CELLS / f"{name}.json").is_file():
            record["cells"][name] = {"class": known[name], **json.loads((CELLS / f"{name}.json").read_text())}
    record["cells"] = {name: record["cells"][name] for name in known if name in record["cells"]}
    record["machine"] = {name: value for name, value in machine().items() if name != "load_average"}
    record["versions"] = versions(("torch", "transformers", "peft"))


@dataclass(frozen=True)
class _Running:
    model_type: str
    begun: float


def run_apart(names: Sequence[str], processes: int) -> None:
    """Try architectures, each in a fork of this process."""
    waiting, running = list(names), dict[int, _Running]()
    while waiting or running:
        while waiting and len(running) < processes:
            name = waiting.pop(0)
            running[_fork(name)] = _Running(name, time.monotonic())
        for child, cell in list(running.items()):
            seconds = time.monotonic() - cell.begun
            late = seconds > LIMIT_SECONDS
            if late:
                os.killpg(child, signal.SIGKILL)
            if os.waitpid(child, 0 if late else os.WNOHANG)[0]:
                del running[child]
                _note_end(cell.model_type, seconds, late=late)
        time.sleep(0.05)


def _fork(name: str) -> int:
    def life() -> None:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_DATA, (LIMIT_BYTES, LIMIT_BYTES))
        with open(CELLS / f"{name}.log", "w") as log, tempfile.TemporaryDirectory(prefix="martlet-bench-") as scratch:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            (CELLS / f"{name}.part").write_text(json.dumps(try_architecture(name, Path(scratch))))

    return fork(life)


def _note_end(name: str, seconds: float, *, late: bool) -> None:
    part = CELLS / f"{name}.part"
    found = {"loads": f"it didn't end within {LIMIT_SECONDS:g} s" if late else "its process died"}
    if part.is_file() and not late:
        found = json.loads(part.read_text())
    part.unlink(missing_ok=True)
    found |= {"seconds": round(seconds, 1), "date": f"{datetime.now(UTC):%Y-%m-%d}"}
    (CELLS / f"{name}.json").write_text(json.dumps(found))
    print(f"{name}: {found}", flush=True)


def try_architecture(model_type: str, scratch: Path) -> dict[str, Any]:
    """What came of each of ``TRIALS``: ``yes``, or why not; those that an earlier one makes pointless are left out."""
    trial = Trial(model_type, scratch)
    outcome: dict[str, Any] = {}
    for name in TRIALS:
        try:
            outcome[name] = getattr(trial, name)()
        except Exception as error:  # noqa: BLE001  # whatever stands against it is the outcome
            traceback.print_exc()
            outcome[name] = f"{type(error).__name__}: {error}".strip()[:300]
        if outcome[name] != "yes" and name in ("loads", "trains"):
            break
    return outcome | trial.facts


class Trial:
    """An architecture's trials, one after the other: each goes on with what the one before it left.

    Args:
        model_type: of the config.
        scratch: directory of its files: ``base``, ``work/output/model`` (the adapter), ``merge/output/model``.
        head_width: None for the table's own.

    Attributes:
        facts: what was seen beside the outcomes.
    """

    def __init__(self, model_type: str, scratch: Path, head_width: int | None = None) -> None:
        self._model_type = model_type
        self._widths = [] if head_width is None else [head_width]
        self._base = scratch / "base"
        self._work = scratch / "work"
        self._merge = scratch / "merge"
        self.facts: dict[str, Any] = {}

    def loads(self) -> str:
        """The trainer's loader reads what transformers wrote."""
        import torch
        from martlet_trainer.testing import save_random_model
        from martlet_trainer.testing_architectures import tiny_config
        from martlet_trainer.training.models import load_model
        from transformers import AutoConfig

        config = tiny_config(self._model_type, *self._widths)
        save_random_model(self._base, config)
        if AutoConfig.from_pretrained(self._base).model_type != self._model_type:
            config.save_pretrained(
                self._base
            )  # of a model with other parts, of which transformers wrote the text model's alone
        load_model(self._base, torch.float32, torch.device("cpu"))
        return "yes"

    def trains(self) -> str:
        """LoRA by the recipe ``sft``: the loss falls."""
        from martlet_trainer import testing
        from martlet_trainer.recipes.training import run

        testing.lay_out(self._work, self._base, testing.chat_rows(16), validation=testing.chat_rows(4, start=30))
        report = testing.Recorder()
        spec = testing.training_spec(validation_dataset="artifacts/v", hyperparameters={"max_steps": STEPS})
        run(spec, self._work, report, lambda: False)
        first, last = statistics.mean(report.losses[:4]), statistics.mean(report.losses[-4:])
        self._validation = next(
            values["valid_loss"] for _, values in sorted(report.steps.items(), reverse=True) if "valid_loss" in values
        )
        why = next((line for line in report.lines if line.startswith("batches are padded")), "")
        self.facts = {"loss": [round(first, 3), round(last, 3)], "packs": why.rpartition(": ")[2] or "yes"}
        return "yes" if last < first else f"the loss went from {first:.3f} to {last:.3f}"

    def reloads(self) -> str:
        """peft and transformers alone read the adapter, and get the validation loss that the trainer got."""
        import torch

        model, rows = self._with_adapter(), self._validation_rows()
        with torch.no_grad():
            losses = [_summed_loss(model, row) for row in rows]
            with model.disable_adapter():
                without = sum(_summed_loss(model, row) for row in rows)
        count = sum(row.target_count for row in rows)
        found = sum(losses) / count
        if abs(found - without / count) < _SAME * found:
            return "it changes nothing"
        if abs(found - self._validation) > _SAME * max(1.0, found):
            return f"its validation loss is {found:.4f}, and was {self._validation:.4f}"
        return "yes"

    def merges(self) -> str:
        """The recipe ``merge``, which compares log-probabilities itself."""
        from martlet_trainer import testing
        from martlet_trainer.recipes import merge

        inputs = self._merge / "inputs"
        inputs.mkdir(parents=True)
        (inputs / "base_model").symlink_to(self._base)
        (inputs / "adapter").symlink_to(self._work / "output/model")
        values = {"adapter": "ft:a", "base_model": "tiny", "max_logprob_difference": 1e-3}
        merge.run(values, self._merge, testing.Recorder(), lambda: False)
        return "yes"

    def generates(self) -> str:
        """With the adapter, four tokens; without a cache of the text so far where the architecture can't keep one."""
        import torch

        model = self._with_adapter()
        start = torch.tensor([self._validation_rows()[0].input_ids[:-2].tolist()])
        options = {
            "attention_mask": torch.ones_like(start),
            "max_new_tokens": 4,
            "min_new_tokens": 4,
            "do_sample": False,
        }
        try:
            whole = model.generate(input_ids=start, **options)
        except (AttributeError, ValueError, RuntimeError):
            whole = model.generate(input_ids=start, use_cache=False, **options)
            self.facts["cache"] = "none"
        return (
            "yes" if whole.shape[1] == start.shape[1] + 4 else f"{whole.shape[1] - start.shape[1]} tokens instead of 4"
        )

    def _with_adapter(self) -> Any:
        import torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        base = AutoModelForCausalLM.from_pretrained(self._base, dtype=torch.float32, attn_implementation="eager")
        return PeftModel.from_pretrained(base, str(self._work / "output/model")).eval()

    def _validation_rows(self) -> list[Any]:
        from martlet_inputs.rows.kinds import CONVERSATIONS
        from martlet_inputs.rows.report import DataReport
        from martlet_trainer.data.encode import RowEncoder
        from martlet_trainer.data.examples import encode_conversation
        from martlet_trainer.data.load import encoded_rows
        from martlet_trainer.training.models import load_tokenizer

        encode = encode_conversation(RowEncoder(load_tokenizer(self._base), max_length=512))
        return list(encoded_rows(self._work / "inputs/validation_dataset", encode, CONVERSATIONS, DataReport()))


def _summed_loss(model: Any, row: Any) -> float:
    import torch

    ids = torch.from_numpy(row.input_ids.astype("int64")).unsqueeze(0)
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0, :-1].float()
    losses = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
    return losses[torch.from_numpy(row.is_target[1:])].sum().item()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
