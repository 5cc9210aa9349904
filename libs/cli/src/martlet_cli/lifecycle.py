"""The lifecycle demo: one run from rows to a served name, and what each variant of the model is worth.

The run is ``examples/lifecycle.yaml``; this starts the platform, uploads the rows, follows the run and makes the table.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from martlet_core.errors import FailedPrecondition
from rich.markup import escape

from martlet_cli import environments
from martlet_cli.demo import background, demo_platform, prepare
from martlet_cli.gateway import Connection, Gateway, translated
from martlet_cli.layout import Layout, write_json
from martlet_cli.output import Output, duration, size
from martlet_cli.platform_options import PlatformOptions
from martlet_cli.run_view import RUNS, follow

DEFINITION = "examples/lifecycle.yaml"
_ACCURACY, _SPEED = "classification.accuracy", "latency.tokens_per_second"


@dataclass(frozen=True)
class Variant:
    """A model of the run, measured.

    Attributes:
        name: of the target (``tuned``, ``int8``).
        model: name to use in requests.
        accuracy: share of held-out rows that it got right, with its 95 % interval.
        perplexity_ratio: to the unquantized merged model; None where nothing was quantized.
        size_ratio: of the weight files, likewise.
        size_bytes: of the weight files, likewise.
        tokens_per_second: that it generated, 8 requests at a time.
    """

    name: str
    model: str
    accuracy: float
    accuracy_low: float | None
    accuracy_high: float | None
    perplexity_ratio: float | None
    size_ratio: float | None
    size_bytes: int | None
    tokens_per_second: float | None


def run(layout: Layout, output: Output, options: PlatformOptions, up_arguments: list[str], *, keep: bool) -> None:
    """Run the demo; a platform that it starts is stopped again unless ``keep``.

    Raises:
        MartletError: if a step fails.
    """
    begun = time.monotonic()
    say = output.say
    with background(lambda: prepare(layout, say)) as example_of:
        for name in options.services:
            environments.sync(layout, options.environment(name), say=lambda line: say(f"[dim]{escape(line)}[/]"))
        with demo_platform(layout, up_arguments, say, keep):
            example = example_of()
            setup_seconds = time.monotonic() - begun
            gateway = Gateway(Connection.discover(layout))
            done = _carry_out(layout, output, gateway, {"train_data": example.train, "test_data": example.test})
            variants = variants_of(gateway, done)
            result = {
                "run": done["id"],
                "dataset": example.name,
                "alias": _outputs(done, "deploy").get("alias"),
                "setup_seconds": round(setup_seconds, 1),
                "total_seconds": round(time.monotonic() - begun, 1),
                "variants": [asdict(variant) for variant in variants],
            }
            write_json(layout.home / "lifecycle.json", result)
            _show(output, result, variants)


def _carry_out(layout: Layout, output: Output, gateway: Gateway, files: Mapping[str, Any]) -> dict[str, Any]:
    """Upload the rows, submit the run, follow it. FailedPrecondition if it doesn't succeed."""
    inputs = {}
    for name, path in files.items():
        with translated(), open(path, "rb") as rows:
            made = gateway.openai.files.create(file=(path.name, rows), purpose="fine-tune")
        inputs[name] = "artifacts/" + made.id.removeprefix("file-")
    source = (layout.root / DEFINITION).read_text(encoding="utf-8")
    run = gateway.call("POST", RUNS, json={"source": source, "inputs": inputs})
    output.say(f"run {escape(run['id'])} ({DEFINITION})")
    done = follow(gateway, run["id"], output)
    if done["state"] != "SUCCEEDED":
        told = (done.get("error") or {}).get("message", "")
        raise FailedPrecondition(f"the run {run['id']} {done['state'].lower()}: {told}")
    return done


def variants_of(gateway: Gateway, run: Mapping[str, Any]) -> list[Variant]:
    """The variants that the run measured, in the order of its targets.

    Args:
        gateway: where its evaluation job is.
        run: that succeeded.
    """
    measured = _step(run, "evaluate")
    job = gateway.call("GET", f"/evaluation/jobs/{measured['job'].rpartition('/')[2]}")
    quantized = {step["id"]: step["metrics"] for step in run["steps"] if step["kind"] == "quantize"}
    unquantized = next(iter(quantized.values()), {})
    whole = {"perplexity_ratio": 1.0, "size_ratio": 1.0, "size_bytes": unquantized.get("base_size_bytes")}
    variants = []
    for target in job["result"]["targets"]:
        metrics, name = target["metrics"], target["name"]
        accuracy = metrics[_ACCURACY]
        cost = quantized.get(name) or (whole if name == "merged" else {})
        speed = next((m["value"] for key, m in metrics.items() if key.startswith(_SPEED)), None)
        variants.append(
            Variant(
                name=name,
                model=target["model"],
                accuracy=accuracy["value"],
                accuracy_low=accuracy.get("low"),
                accuracy_high=accuracy.get("high"),
                perplexity_ratio=cost.get("perplexity_ratio"),
                size_ratio=cost.get("size_ratio"),
                size_bytes=int(cost["size_bytes"]) if cost.get("size_bytes") else None,
                tokens_per_second=speed,
            )
        )
    return variants


def _show(output: Output, result: Mapping[str, Any], variants: list[Variant]) -> None:
    if output.as_json:
        output.json(result)
        return
    rows = [
        {
            "variant": variant.name,
            "accuracy": f"{variant.accuracy:.1%}",
            "95 % interval": f"{variant.accuracy_low:.1%} to {variant.accuracy_high:.1%}"
            if variant.accuracy_low is not None and variant.accuracy_high is not None
            else "",
            "perplexity": f"x {variant.perplexity_ratio:.3f}" if variant.perplexity_ratio else "",
            "size": f"{size(variant.size_bytes)} (x {variant.size_ratio:.2f})"
            if variant.size_bytes and variant.size_ratio
            else "",
            "tokens/s": f"{variant.tokens_per_second:.0f}" if variant.tokens_per_second else "",
            "model": variant.model,
        }
        for variant in variants
    ]
    output.console.print()
    output.table(rows, rows[0], title=f"{result['dataset']}, the same held-out rows for each")
    output.console.print(
        f"[bold]{escape(str(result['alias']))}[/] answers for the smaller model now; whole command "
        f"{duration(result['total_seconds'])}"
    )


def _step(run: Mapping[str, Any], step_id: str) -> Mapping[str, Any]:
    return next(step for step in run["steps"] if step["id"] == step_id)


def _outputs(run: Mapping[str, Any], step_id: str) -> Mapping[str, str]:
    return _step(run, step_id).get("outputs") or {}
