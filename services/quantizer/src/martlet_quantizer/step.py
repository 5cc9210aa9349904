"""``python -m martlet_quantizer.step NAME ARGUMENTS``: one step of a job, in the environment of its family."""

from __future__ import annotations

import errno
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from martlet_core.errors import MartletError

from martlet_quantizer import layers, quality, reload, weights
from martlet_quantizer.calibration import calibrate, chop, encode
from martlet_quantizer.methods import find, load
from martlet_quantizer.methods.base import Task
from martlet_quantizer.rows import Row, read_rows
from martlet_quantizer.steps import REPORT_FD
from martlet_quantizer.texts import calibration_rows, heldout_rows

#: Numbers of system errors that another attempt may not meet.
_MAY_PASS = (errno.ENOMEM, errno.ENOSPC, errno.EIO)
_TRACEBACK_CHARACTERS = 8000
#: Types of weights that aren't quantized, as safetensors writes them, and the share of them that is worth a line.
_PLAIN = ("F32", "F16", "BF16")
_WORTH_SAYING = 0.01


class Speaker:
    """Writes JSON lines to the pipe."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def send(self, message: Mapping[str, Any]) -> None:
        """Write one message."""
        data = (json.dumps(message) + "\n").encode()
        while data:
            data = data[os.write(self._fd, data) :]

    def log(self, message: str) -> None:
        """Add a line to the job's events."""
        self.send({"type": "log", "message": message})

    def progress(self, step: int, total: int) -> None:
        """Say how far it is."""
        self.send({"type": "progress", "step": step, "total": total, "values": {}})


def quantize(arguments: Mapping[str, Any], speaker: Speaker) -> Mapping[str, Any]:
    """Quantize ``source`` into ``output``."""
    method = find(arguments["method"])
    source, output, scratch = (Path(arguments[name]) for name in ("source", "output", "scratch"))
    begun = time.monotonic()
    task, facts = _task(arguments, source, output, scratch, speaker)
    prepared = time.monotonic()
    written = load(method)(task)
    # As the family's transformers reads it: AutoAWQ's can't read a tokenizer that transformers 5 saved.
    weights.copy_pooling(source, output)
    weights.copy_tokenizer(reload.readable(source, method.family, scratch / "source"), output)
    finished = time.monotonic()
    missed = sorted(set(task.layers) - set(written.quantized))
    if missed:
        speaker.log(
            f"{method.name} left {len(missed)} of {len(task.layers)} layers as they are: {', '.join(missed[:5])}"
            f"{' …' if len(missed) > 5 else ''}"
        )
    if not written.quantized:
        raise ValueError("not one layer was quantized")
    return {
        **facts,
        **written.facts,
        **_untouched(method.name, source, output, {*task.left_alone, *missed}, speaker),
        "group_size": task.group_size,
        "quantized_layers": len(written.quantized),
        "left_alone": [*task.left_alone, *missed],
        "prepare_seconds": prepared - begun,
        "quantize_seconds": finished - prepared,
        "peak_memory_bytes": peak_memory_bytes(),
    }


def _untouched(method: str, source: Path, output: Path, known: set[str], speaker: Speaker) -> dict[str, float]:
    """Share of the matrices' weights that stay in 16 or 32 bit though nobody asked: experts that a library doesn't see as layers."""
    total = sum(count for _, count in weights.matrices(source).values())
    left = {
        name: count
        for name, (dtype, count) in weights.matrices(output).items()
        if dtype in _PLAIN and name not in known
    }
    share = sum(left.values()) / total if total else 0.0
    if share >= _WORTH_SAYING:
        speaker.log(
            f"{method} left {len(left)} matrices with {share:.0%} of the weights (embeddings aside) in 16 or 32 bit, such as"
            f" {next(iter(left))}: it doesn't see them as linear layers."
        )
    return {"untouched_share": round(share, 4)}


def _task(
    arguments: Mapping[str, Any], source: Path, output: Path, scratch: Path, speaker: Speaker
) -> tuple[Task, dict[str, Any]]:
    method = find(arguments["method"])
    options = arguments["options"]
    prepared = reload.readable(source, method.family, scratch / "source")
    every, heads = layers.linear_layers(prepared)
    chosen, alone = layers.split(every, options["ignore"])
    group_size = 0
    if method.group_size:
        asked = options["group_size"] or method.group_size
        group_size = layers.fit_group_size(asked, chosen)
        if group_size != asked:
            speaker.log(f"Group size {group_size} instead of {asked}, which doesn't divide the width of every layer.")
    windows, facts = _calibration_windows(arguments, prepared)
    symmetric = options["symmetric"]
    task = Task(
        source=source,
        output=output,
        scratch=scratch,
        layers=chosen,
        left_alone=[*alone, *heads],
        bits=arguments["bits"],
        group_size=group_size,
        symmetric=bool(method.symmetric if symmetric is None else symmetric),
        double_quantization=options["double_quantization"] is not False,
        gguf_type=arguments["gguf_type"],
        windows=windows,
        sequence_length=arguments["calibration"]["sequence_length"],
        seed=arguments["seed"],
        log=speaker.log,
        progress=speaker.progress,
    )
    return task, {**facts, "weight_count": layers.weight_count(prepared)}


def _calibration_windows(arguments: Mapping[str, Any], source: Path) -> tuple[Any, dict[str, int]]:
    if not find(arguments["method"]).needs_calibration:
        return (), {"calibration_rows_read": 0, "calibration_rows_used": 0, "calibration_rows_chopped": 0}
    asked = arguments["calibration"]
    rows = read_rows(Path(asked["path"]), "spec.calibration.dataset") if asked["path"] else calibration_rows()
    found = calibrate(
        _tokenizer(source),
        rows,
        max_rows=asked["max_rows"],
        sequence_length=asked["sequence_length"],
        seed=arguments["seed"],
    )
    counts = {
        "calibration_rows_read": found.read,
        "calibration_rows_used": found.used,
        "calibration_rows_chopped": found.chopped,
        "calibration_tokens": sum(map(len, found.windows)),
    }
    return found.windows, counts


def measure(arguments: Mapping[str, Any], speaker: Speaker) -> Mapping[str, Any]:
    """Measure the unquantized model, or what a method wrote."""
    source, family = Path(arguments["source"]), arguments["family"]
    scratch = Path(arguments["scratch"]) / "source"
    tokenizer = _tokenizer(reload.readable(source, family, scratch))
    path = arguments["evaluation"]
    rows: list[Row] = read_rows(Path(path), "spec.evaluation_dataset") if path else heldout_rows()
    pieces = []
    for index, row in enumerate(rows):
        ids = encode(tokenizer, row, f"spec.evaluation_dataset, row {index + 1}")
        pieces += chop(ids, quality.WINDOW_TOKENS)
    windows = quality.windows(pieces, _prefix(tokenizer, weights.read_config(source)))
    begun = time.monotonic()
    written = arguments["quantized"]
    model = reload.load_quantized(Path(written), family) if written else reload.load_base(source, family, scratch)
    load_seconds = time.monotonic() - begun
    found = quality.measure(model, tokenizer, windows, arguments["prompts"], speaker.progress)
    return {
        "measurement": {**quality.to_json(found), "nll": repr(found.nll)},
        "load_seconds": load_seconds,
        "evaluation_rows": len(rows),
        "windows": len(windows),
        "peak_memory_bytes": peak_memory_bytes(),
    }


def _prefix(tokenizer: Any, config: Mapping[str, Any]) -> list[int]:
    """What stands before every text of this model; Gemma is lost without it, even where its tokenizer forgets it."""
    bos = tokenizer.bos_token_id
    adds_itself = bos is not None and tokenizer("a")["input_ids"][:1] == [bos]
    is_gemma = str(config.get("model_type", "")).startswith("gemma")
    return [bos] if bos is not None and (adds_itself or is_gemma) else []


def engine(arguments: Mapping[str, Any], speaker: Speaker) -> Mapping[str, Any]:
    """Load the output with one more engine, and let it generate a few tokens."""
    directory = Path(arguments["directory"])
    loaded = reload.load_by(arguments["load"], directory)
    if isinstance(loaded, str):
        return {"detail": loaded}
    text = quality.answer(loaded, _tokenizer(directory), arguments["prompt"], 4)
    return {"detail": f"generated {text!r}"}


def _tokenizer(directory: Path) -> Any:
    from martlet_quantizer.loading import load_tokenizer

    return load_tokenizer(directory)


def peak_memory_bytes() -> int:
    """The most memory this process has held since it began, in bytes: allocated on the GPU where there is one, else resident."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def _may_pass(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno in _MAY_PASS
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


#: The steps by name; each takes its arguments and a ``Speaker``.
STEPS: Mapping[str, Callable[[Mapping[str, Any], Speaker], Mapping[str, Any]]] = {
    "quantize": quantize,
    "measure": measure,
    "engine": engine,
}


def main(argv: list[str]) -> int:
    """Run a step and say how it ended."""
    fd = int(os.environ.pop(REPORT_FD))
    os.set_inheritable(fd, False)
    speaker = Speaker(fd)
    try:
        arguments = json.loads(Path(argv[2]).read_text())
        speaker.send({"type": "result", "values": STEPS[argv[1]](arguments, speaker)})
    except MartletError as error:
        speaker.send({"type": "error", "error": error.to_dict()})
    except Exception as error:  # noqa: BLE001  # whatever a library raises must reach the job
        text = traceback.format_exc()
        print(text, file=sys.stderr, flush=True)
        speaker.send(
            {
                "type": "crash",
                "exception": type(error).__name__,
                "message": str(error)[:2000],
                "traceback": text[-_TRACEBACK_CHARACTERS:],
                "may_pass": _may_pass(error),
            }
        )
    return 0


if __name__ == "__main__":
    main(sys.argv)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # without waiting for threads that a library left behind
