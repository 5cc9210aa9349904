"""Ways of training compared on SmolLM2-135M and the headlines: ``martlet bench techniques`` on a platform of its own.

    python benchmarks/techniques.py [--engine transformers] [--held-out 200] [what else the command takes]

The platform's data stay in ``.martlet/techniques`` until ``--clear``: a comparison that was interrupted goes on where it was, and one that
is asked for more techniques measures only those. The report lies in ``benchmarks/techniques``, with the machine beside it.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
from pathlib import Path

from environment import ROOT, machine, versions_in
from headlines import DATA, MODEL, TRAINER_PYTHON, prepare_model, prepare_rows

HOME = ROOT / ".martlet" / "techniques"
OUT = ROOT / "benchmarks" / "techniques"
COMMAND = [str(ROOT / ".martlet" / "envs" / "cli" / "bin" / "martlet"), "--home", str(HOME)]
#: Those of the committed report.
TECHNIQUES = ("lora", "rslora", "dora", "lora-plus", "pissa", "adalora", "qlora", "lokr", "vera", "ia3", "full", "lisa")


def main() -> None:
    """Start the platform, compare, stop it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--engine",
        choices=("vllm", "transformers"),
        default="transformers",
        help="which serves the results (default transformers: it starts in seconds, which counts with a model each)",
    )
    parser.add_argument("--held-out", type=int, default=200, help="held-out rows: asked, and their loss (default 200)")
    parser.add_argument("--clear", action="store_true", help="begin anew")
    options, rest = parser.parse_known_args()
    if options.clear:
        shutil.rmtree(HOME, ignore_errors=True)
    if "--techniques" not in rest:
        rest += ["--techniques", *TECHNIQUES]
    prepare_model()
    prepare_rows()
    notes = [word for note in about(options.engine) for word in ("--note", note)]
    up = ["up", "--detach", "--wait", "all", "--engine", options.engine, "--stages", "trainer,evaluator"]
    subprocess.run([*COMMAND, *up, "--http-port", "0", "--grpc-port", "0"], check=True)
    try:
        rows = ["--train", str(DATA / "train.jsonl"), "--test", str(held_out(options.held_out))]
        compare = [*COMMAND, "bench", "techniques", "--model", MODEL, *rows, "--out", str(OUT), *notes, *rest]
        code = subprocess.run(compare, check=False).returncode
    finally:
        subprocess.run([*COMMAND, "down"], check=True)
    raise SystemExit(code)


def about(engine: str) -> list[str]:
    """What stands over the report."""
    here = machine()
    packages = versions_in(TRAINER_PYTHON, ["torch", "transformers", "peft", "bitsandbytes"])
    where = f"{here['cores']} core{'s' if here['cores'] > 1 else ''} of {here['cpu']}, {here['memory_gb']:.0f} GB, {here['system']}"
    return [
        f"machine: {where}",
        f"versions: {', '.join(f'{name} {number}' for name, number in packages.items())}",
        f"data: headlines, sarcastic or not (examples/headlines); answers by the engine {engine}",
    ]


def held_out(count: int) -> Path:
    """So many of the headlines that no training sees."""
    path = HOME / f"test-{count}.jsonl"
    path.write_text("".join((DATA / "test.jsonl").read_text().splitlines(keepends=True)[:count]))
    return path


if __name__ == "__main__":
    main()
