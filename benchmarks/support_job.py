"""Quantization jobs of the table of support, in the environment of their methods' family; each outcome is a line of JSON.

    .martlet/envs/quantizer-FAMILY/bin/python benchmarks/support_job.py SPECS.json FD

A job is the real one, ``martlet_quantizer.quantize.run``. Of a spec with ``forked``, job and steps are forks of this process, which
has imported transformers already, instead of new interpreters: a step still has nothing but what lies on disk.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from martlet_core.errors import MartletError
from martlet_core.recipe import FailedWithResult
from martlet_quantizer import quantize, step, steps, testing
from martlet_quantizer.texts import heldout_rows
from support_fork import apart, fork

#: Rows of the built-in texts that tiny models are measured on.
_ROWS = 4
_KEPT = (
    "size_ratio", "bits_per_weight", "perplexity", "base_perplexity", "perplexity_ratio", "top1_agreement", "positions", "group_size",
    "calibration_rows_used", "quantize_seconds", "peak_memory_bytes", "engines",
)  # fmt: skip


def main(specs_file: Path, fd: int) -> None:
    """Run the jobs that the file lists (``key``, ``config``, ``model``, ``workdir``, ``forked``, ``limit_seconds``) in turns."""
    os.set_inheritable(fd, False)
    with os.fdopen(fd, "w") as outcomes:
        for spec in json.loads(specs_file.read_text()):
            if spec["forked"]:
                _import(spec["config"]["method"])
            begun = time.monotonic()
            outcome = {"quantized": "no"} | apart(lambda spec=spec: job(spec), spec["limit_seconds"])
            outcome |= {"key": spec["key"], "seconds": round(time.monotonic() - begun, 1)}
            outcomes.write(json.dumps(outcome) + "\n")
            outcomes.flush()


def _import(method: str) -> None:
    """Import now what each fork would import. Not GPTQModel, which starts threads as it is imported; a fork has none of them."""
    from martlet_quantizer import methods, reload  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401

    found = methods.find(method)
    if found.family != "gptqmodel":
        methods.load(found)


def job(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Lay out the working directory and run one job."""
    workdir = Path(spec["workdir"])
    shutil.rmtree(workdir, ignore_errors=True)
    workdir.mkdir(parents=True)
    rows = workdir / "evaluation.jsonl"
    rows.write_text("".join(json.dumps(_conversation(row)) + "\n" for row in heldout_rows()[:_ROWS]))
    few = {"evaluation": rows} if spec["forked"] else {}  # else the built-in texts, as any job has them
    testing.lay_out(workdir, Path(spec["model"]), **few)
    if spec["forked"]:
        quantize.run_step = run_forked
    return run_job(spec["config"], workdir)


def _conversation(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A built-in row as a file of rows may have it."""
    if "messages" in row:
        return row
    return {"messages": [{"role": "user", "content": "Tell me."}, {"role": "assistant", "content": row["text"]}]}


def run_job(config: Mapping[str, Any], workdir: Path) -> dict[str, Any]:
    """What came of a job: ``quantized`` and ``reloaded`` are ``yes``, ``no`` or ``refused``; ``reason`` and ``message`` say why."""
    report = testing.Recorder()
    try:
        result = quantize.run(config, workdir, report, lambda: False).values
        return {"quantized": "yes", "reloaded": "yes", **_facts(result, workdir)}
    except FailedWithResult as failure:
        reloaded = "no" if failure.error.reason == "RELOAD_FAILED" else "yes"
        told = {"reason": failure.error.reason, "message": failure.error.message}
        return {"quantized": "yes", "reloaded": reloaded, **told, **_facts(failure.result.values, workdir)}
    except MartletError as error:
        quantized = "refused" if error.reason in ("METHOD_IMPOSSIBLE", "INVALID_ARGUMENT") else "no"
        return {"quantized": quantized, "reloaded": "", "reason": error.reason, "message": error.message}


def run_forked(name: str, arguments: Mapping[str, Any], report: Any, *_: Any, workdir: Path, **more: Any) -> Any:
    """``steps.run_step`` with a fork in the place of a new interpreter; other families' environments are asked as ever."""
    if "python" in more:
        return steps.run_step(name, arguments, report, lambda: False, workdir=workdir, **more)
    read, write = os.pipe()

    def life() -> None:
        os.close(read)
        _be_a_step(name, arguments, write)

    child = fork(life)
    os.close(write)
    try:
        final = steps._listen(read, report, lambda: False)
    finally:
        os.close(read)
        _, status = os.waitpid(child, 0)
    return steps._judge(name, final, os.waitstatus_to_exitcode(status))


def _be_a_step(name: str, arguments: Mapping[str, Any], fd: int) -> None:
    """What a forked process does."""
    file = Path(arguments["scratch"] if "scratch" in arguments else arguments["directory"]).parent / "step.json"
    file.write_text(json.dumps(arguments))
    os.environ[steps.REPORT_FD] = str(fd)
    step.main(["step", name, str(file)])


def _facts(result: Mapping[str, Any], workdir: Path) -> dict[str, Any]:
    report = json.loads((workdir / "output/report/report.json").read_text())
    details = report["details"]
    found = {name: result[name] for name in _KEPT if name in result}
    layers = {
        "untouched_share": details["untouched_share"],
        "quantized_layers": details["quantized_layers"],
        "left_alone": len(details["left_alone"]),
    }
    return {**found, **layers, "versions": report["versions"]}


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
