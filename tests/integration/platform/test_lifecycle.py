"""Quantize, place, evaluate, gate and deploy, in one run on a whole platform with vLLM: the command starts it, the stock client
talks to what comes of it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from martlet_cli.testing import RunningPlatform

DEFINITION = """
name: small lifecycle
inputs: {rows: "", alias: smaller}
steps:
  nf4:
    kind: quantize
    with:
      model: smollm2-135m-instruct
      method: bnb-nf4
      sample_prompts: ["What colour is rose number 3?"]
  evaluate:
    kind: evaluate
    with:
      targets: [{name: base, model: smollm2-135m-instruct}, {name: nf4, model: "${nf4.model}"}]
      dataset: ${inputs.rows}
      suites: [{suite: classification}]
      max_rows: 12
  gate:
    kind: gate
    with: {require: [nf4.size_ratio < 0.5, evaluate.nf4.accuracy >= 0]}
  deploy:
    kind: deploy
    needs: [gate]
    with: {alias: "${inputs.alias}", model: "${nf4.model}"}
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_quantizes_measures_and_deploys(chatting_platform: RunningPlatform, tmp_path: Path) -> None:
    """Slow for a quantization that is measured and an engine that is started anew: four services and a run meet here only."""
    colours = ("red", "blue")
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"What colour is rose number {n}? Say red or blue."},
                {"role": "assistant", "content": colours[n % 2]},
            ]
        }
        for n in range(24)
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    definition = tmp_path / "run.yaml"
    definition.write_text(DEFINITION)
    said = chatting_platform.martlet(
        "run", "submit", str(definition), "--input", f"rows=@{data}", "--watch", timeout=800
    )
    run = said[-1] if isinstance(said, list) else said
    steps = {step["id"]: step for step in run["steps"]}
    assert {name: step["state"] for name, step in steps.items()} == dict.fromkeys(steps, "SUCCEEDED")
    assert steps["nf4"]["metrics"]["perplexity_ratio"] < 2.0
    quantized = chatting_platform.martlet("quantize", "show", steps["nf4"]["job"])["result"]
    served = quantized["engines"][-1]
    assert (served["engine"], served["loaded"]) == ("vllm", True), served
    assert served["detail"].startswith("answered 'The capital of France is Paris"), served
    assert " on replicas/" in served["detail"]
    job = chatting_platform.martlet("evaluate", "show", steps["evaluate"]["job"])
    measured = {target["name"]: target["metrics"] for target in job["result"]["targets"]}
    assert set(measured) == {"base", "nf4"}
    assert (job["result"]["rows_used"], job["result"]["rows_failed"]) == (12, 0)
    [comparison] = [c for c in job["result"]["comparisons"] if c["metric"] == "classification.accuracy"]
    difference = (
        measured["nf4"]["classification.accuracy"]["value"] - measured["base"]["classification.accuracy"]["value"]
    )
    assert comparison["difference"] == pytest.approx(difference, abs=1e-9)
    question: Any = [{"role": "user", "content": "What is the capital of France?"}]
    answer = chatting_platform.client.chat.completions.create(
        model="smaller", messages=question, max_tokens=12, temperature=0
    )
    assert "Paris" in (answer.choices[0].message.content or "")
    assert answer.model == steps["nf4"]["outputs"]["model"]
