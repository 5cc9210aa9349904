"""One training by ms-swift or LLaMA-Factory, in an environment of its own, called as its command calls it.

    PEER_ENVIRONMENT/bin/python benchmarks/trainer_peers.py {ms-swift|llamafactory} WORK.json

The work is what ``trainer.py`` gives to every side; one callback, which transformers' trainer hands to both, notes when steps end. What
differs from the peers' defaults is what makes the work the same: no gradient checkpointing, no dropout, no checkpoints.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from pathlib import Path
from typing import Any

from step_clock import StepClock

#: Tokens a row by which the peer's rows may be longer or shorter: a line break or two at their ends.
MOST_TOKENS_OFF = 3.0

Train = Callable[[Mapping[str, Any], Path], Any]


def main(peer: str, work: Mapping[str, Any]) -> None:
    """Train, and print what the clock says as the last line."""
    train = PEERS[peer]()  # imported first: ms-swift puts callbacks of its own in the place of transformers'
    from transformers import TrainerCallback, trainer

    clock, losses, seen = StepClock(), [], []

    def count(_: Any, __: Any, inputs: Mapping[str, Any]) -> None:
        mask = inputs.get("attention_mask")  # without padding there may be none
        seen.append((len(inputs["input_ids"]), int(inputs["input_ids"].numel() if mask is None else mask.sum())))

    class Clock(TrainerCallback):
        def on_train_begin(self, *_: Any, model: Any, **__: Any) -> None:
            model.register_forward_pre_hook(count, with_kwargs=True)

        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.mark()

        def on_log(self, *_: Any, logs: Mapping[str, Any] | None = None, **__: Any) -> None:
            losses.extend([float(logs["loss"])] if logs and "loss" in logs else [])

    trainer.DEFAULT_CALLBACKS.append(Clock)
    with tempfile.TemporaryDirectory() as scratch:
        train(work, Path(scratch))
    values = clock.values(work["batch_size"], work["tokens_per_row"])
    found = sum(tokens for _, tokens in seen) / sum(rows for rows, _ in seen)
    if abs(found - work["tokens_per_row"]) > MOST_TOKENS_OFF:
        raise SystemExit(f"{peer} saw {found:.1f} tokens a row, not {work['tokens_per_row']:.1f}: that is other work")
    print(json.dumps({**values, "tokens_per_row": found, "last_loss": losses[-1]}))


def ms_swift() -> Train:
    """``swift sft``."""
    from swift.pipelines import sft_main  # pyright: ignore[reportMissingImports]

    return lambda work, scratch: sft_main(
        [word for name, value in _swift_options(work, scratch).items() for word in (f"--{name}", str(value))]
    )


def _swift_options(work: Mapping[str, Any], scratch: Path) -> dict[str, Any]:
    return {
        **_shared(work, scratch),
        "model": work["model"],
        "model_type": "llama",
        "template": "chatml",
        "dataset": work["rows"],
        "dataset_shuffle": "false",
        "train_dataloader_shuffle": "false",
        "tuner_type": "lora",
        "target_modules": "all-linear",
        "torch_dtype": work["precision"],
        "gradient_checkpointing": "false",
        "split_dataset_ratio": "0",
        "report_to": "none",
        "dataloader_num_workers": "0",
    }


def llamafactory() -> Train:
    """``llamafactory-cli train``."""
    # It imports torchaudio for rows with sound. PyPI has that for CUDA alone, which can't be loaded beside a torch for CPUs.
    sys.modules["torchaudio"] = module_from_spec(ModuleSpec("torchaudio", None))
    from llamafactory.train.tuner import run_exp  # pyright: ignore[reportMissingImports]

    return lambda work, scratch: run_exp(_llamafactory_options(work, scratch))


def _llamafactory_options(work: Mapping[str, Any], scratch: Path) -> dict[str, Any]:
    data = scratch / "data"
    data.mkdir()
    (data / "rows.jsonl").symlink_to(work["rows"])
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    columns = {"messages": "messages"}
    rows = {"file_name": "rows.jsonl", "formatting": "sharegpt", "columns": columns}
    described = {"rows": {**rows, "tags": {**tags, "system_tag": "system"}}}
    (data / "dataset_info.json").write_text(json.dumps(described))
    return {
        **_shared(work, scratch),
        "model_name_or_path": work["model"],
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "lora_target": "all",
        "dataset": "rows",
        "dataset_dir": str(data),
        "template": "chatml",
        "cutoff_len": work["max_length"],
        "disable_gradient_checkpointing": True,
        "disable_shuffling": True,
        "report_to": "none",
        "overwrite_cache": True,
        "preprocessing_num_workers": 1,
        "dataloader_num_workers": 0,
    }


def _shared(work: Mapping[str, Any], scratch: Path) -> dict[str, Any]:
    """What both call alike."""
    return {
        "output_dir": str(scratch / "out"),
        "max_steps": work["steps"],
        "per_device_train_batch_size": work["batch_size"],
        "gradient_accumulation_steps": 1,
        "learning_rate": work["learning_rate"],
        "lr_scheduler_type": "linear",
        "warmup_ratio": 0.03,
        "weight_decay": 0.0,
        "lora_rank": work["lora_rank"],
        "lora_alpha": 2 * work["lora_rank"],
        "lora_dropout": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "bf16": work["precision"] == "bfloat16",
        "fp16": False,
        "seed": 42,
    }


PEERS = {"ms-swift": ms_swift, "llamafactory": llamafactory}


if __name__ == "__main__":
    main(sys.argv[1], json.loads(Path(sys.argv[2]).read_text()))
