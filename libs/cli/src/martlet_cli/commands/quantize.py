"""``quantize create|list|show|watch|cancel|pause|resume|methods``: models made smaller. Takes SWIFT's ``export`` names too."""

from __future__ import annotations

import argparse
from typing import Any

from martlet_core.errors import InvalidArgument

from martlet_cli.commands.files import dataset_artifact
from martlet_cli.context import Context, Subparsers, command, group
from martlet_cli.output import Output, duration, size
from martlet_cli.stage_jobs import StageJobs, asked

_EXAMPLE = """example:
  martlet quantize ft:smollm2-135m-instruct:default:merged:0a1b2c3d --method bnb-nf4 --watch
  martlet quantize --model smollm2-135m-instruct --quant_method awq --quant_bits 4 --dataset rows.jsonl"""

#: SWIFT's `--quant_method` and `--quant_bits` -> our method. Without bits, what SWIFT takes then.
SWIFT_METHODS = {
    ("awq", 4): "awq",
    ("gptq", 4): "gptq",
    ("bnb", 4): "bnb-nf4",
    ("bnb", 8): "bnb-int8",
    ("fp8", 8): "fp8-dynamic",
}
_SWIFT_BITS = {"awq": 4, "gptq": 4, "bnb": 4, "fp8": 8}


def _outcome(job: dict[str, Any]) -> str:
    result = job.get("result") or {}
    if not result.get("perplexity_ratio"):
        return ""
    measured = f"{result['size_ratio']:.2f} of the size, perplexity x {result['perplexity_ratio']:.3f}"
    return f"{result.get('quantized_model') or result.get('model_artifact') or 'not published'} ({measured})"


def _describe(output: Output, job: dict[str, Any]) -> None:
    result = job.get("result") or {}
    if not result.get("perplexity_ratio"):
        return
    output.console.print("\n[bold]beside the unquantized model[/]")
    rows = [
        {
            "model": "unquantized",
            "size": size(result["base_size_bytes"]),
            "perplexity": result["base_perplexity"],
        },
        {
            "model": result["method"],
            "size": size(result["size_bytes"]),
            "perplexity": result["perplexity"],
            "top-1 agreement": f"{result['top1_agreement']:.1%}",
            "bits a weight": f"{result['bits_per_weight']:.2f}",
            "took": duration(result["quantize_seconds"]),
            "peak memory": size(result["peak_memory_bytes"]),
        },
    ]
    output.table(rows, rows[1])
    if result.get("engines"):
        output.console.print("\n[bold]engines that were asked to load it[/]")
        engines = [engine | {"result": _verdict(engine)} for engine in result["engines"]]
        output.table(engines, ("engine", "result", "seconds", "detail"))


def _verdict(engine: dict[str, Any]) -> str:
    if engine["loaded"]:
        return "ok"
    return "not tried" if engine.get("detail", "").startswith("not tried: ") else "failed"


_JOBS = StageJobs(
    verb="quantize",
    noun="quantization",
    path="quantization/jobs",
    collection="quantizationJobs",
    columns={
        "model": lambda job: job["spec"]["model"],
        "method": lambda job: job["spec"]["method"],
        "quantized_model": lambda job: (job.get("result") or {}).get("quantized_model"),
    },
    outcome=_outcome,
    describe=_describe,
)


def add(subparsers: Subparsers) -> None:
    """Add the commands."""
    commands = group(
        subparsers, "quantize", "make whole models smaller (`martlet quantize MODEL --method M` is short for create)"
    )
    create = command(
        commands,
        "create",
        _create,
        "quantize a model; the result is read back and measured before it is published",
        epilog=_EXAMPLE,
    )
    create.add_argument("model", nargs="?", help="a whole model: a registered name, ft:..., artifacts/<id> or a hub id")
    create.add_argument("--method", help="bnb-nf4, bnb-int8, w8a8-int8, fp8-dynamic, w4a16, gguf, awq or gptq")
    create.add_argument("--dataset", help="rows to calibrate with: a local file or the id of an uploaded one")
    create.add_argument("--evaluation_dataset", help="rows to measure on: a local file or the id of an uploaded one")
    create.add_argument("--quant_n_samples", type=int, metavar="N", help="most rows to calibrate with (default 128)")
    create.add_argument("--max_length", type=int, metavar="N", help="longest piece of calibration text in tokens (512)")
    create.add_argument("--group_size", type=int, metavar="N", help="weights that share a scale (default 128)")
    create.add_argument("--ignore", nargs="+", metavar="NAME", help="layers to leave alone, by name or expression")
    create.add_argument("--gguf_type", choices=("q8_0", "q4_0", "q4_1"), help="kind of GGUF weights (default q8_0)")
    create.add_argument("--max_perplexity_ratio", type=float, metavar="X", help="worse results fail the job")
    create.add_argument(
        "--check-serving",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="place the result on a replica to see that its engine serves it; others wait meanwhile (default: yes)",
    )
    create.add_argument("--suffix", help="part of the quantized model's name (default: the method)")
    create.add_argument("--priority", type=int, metavar="N", help="place in the queue, 0 (low) to 9 (high)")
    create.add_argument("--watch", action="store_true", help="follow the job until it is over")
    swift = create.add_argument_group("SWIFT's names")
    swift.add_argument("--model", dest="swift_model", help="as MODEL")
    swift.add_argument("--quant_method", choices=("awq", "gptq", "bnb", "fp8"), help="with --quant_bits, as --method")
    swift.add_argument("--quant_bits", type=int, metavar="N", help="4 or 8")
    _JOBS.add(commands)


def _create(context: Context, arguments: argparse.Namespace) -> int:
    model = arguments.model or arguments.swift_model
    if not model:
        raise InvalidArgument.field("MODEL", "is required, for example smollm2-135m-instruct")
    spec = asked(
        model=model,
        method=_method(arguments),
        calibration={
            "dataset": dataset_artifact(context, "--dataset", arguments.dataset),
            "max_rows": arguments.quant_n_samples,
            "sequence_length": arguments.max_length,
        },
        evaluation_dataset=dataset_artifact(context, "--evaluation_dataset", arguments.evaluation_dataset),
        options={
            "group_size": arguments.group_size,
            "ignore": arguments.ignore,
            "gguf_type": arguments.gguf_type,
        },
        max_perplexity_ratio=arguments.max_perplexity_ratio,
        suffix=arguments.suffix,
        check_serving=arguments.check_serving,
        resources={"priority": arguments.priority},
    )
    return _JOBS.create(context, {"spec": spec}, watch=arguments.watch)


def _method(arguments: argparse.Namespace) -> str:
    """Our name of the method, from ours or SWIFT's arguments."""
    if arguments.method and (arguments.quant_method or arguments.quant_bits):
        raise InvalidArgument.field("--method", "can't be used together with --quant_method and --quant_bits")
    if arguments.method:
        return arguments.method
    if not arguments.quant_method:
        raise InvalidArgument.field("--method", "is required, for example --method bnb-nf4")
    bits = arguments.quant_bits or _SWIFT_BITS[arguments.quant_method]
    method = SWIFT_METHODS.get((arguments.quant_method, bits))
    if method is None:
        known = ", ".join(str(b) for name, b in SWIFT_METHODS if name == arguments.quant_method)
        raise InvalidArgument.field("--quant_bits", f"is {bits}; --quant_method {arguments.quant_method} has: {known}")
    return method
