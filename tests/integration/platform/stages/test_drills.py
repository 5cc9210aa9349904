"""Drills of the whole platform: services are killed in the middle of a run, the launcher starts them again, and the run ends
as if nothing had happened, with nobody's help. Drills of one worker and its job are in tests/faults.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

Drill = Any  # the fixture's class; conftest modules can't be imported
RUN = """\
name: drilled
reuse: true
inputs: {base: "", rows: "", alias: drilled, least: 0.0, seed: 0}
steps:
  train:
    kind: train
    with:
      base_model: ${inputs.base}
      training_dataset: ${inputs.rows}
      tuner: {lora_rank: 4}
      hyperparameters: {max_steps: 600, per_device_batch_size: 4}
      checkpoints: {interval_steps: 20}
  merge:
    kind: merge
    with: {adapter: "${train.adapter}"}
  nf4:
    kind: quantize
    with: {model: "${merge.model}", method: bnb-nf4, max_perplexity_ratio: 100, sample_prompts: [Hello]}
  evaluate:
    kind: evaluate
    with:
      targets: [{name: merged, model: "${merge.model}"}, {name: nf4, model: "${nf4.model}"}]
      dataset: ${inputs.rows}
      suites: [{suite: exact_match}]
      concurrency: 1
      sampling: {max_tokens: 8}
      seed: ${inputs.seed}
  gate:
    kind: gate
    with: {require: ["evaluate.nf4.accuracy >= ${inputs.least}", nf4.size_ratio < 1]}
  deploy:
    kind: deploy
    needs: [gate]
    with: {alias: "${inputs.alias}", model: "${nf4.model}"}
"""


#: Steps that make jobs.
MAKING = ("train", "merge", "nf4", "evaluate")
#: Step in whose middle they are killed -> what is killed together. Every process but the object store comes to its turn.
KILLS = {
    "train": ("gateway", "gateway-worker", "trainer", "trainer-worker"),
    "nf4": ("quantizer", "quantizer-bnb-worker", "valkey"),
    "evaluate": ("evaluator", "evaluator-worker", "inference"),
}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("step", KILLS)
def test_a_run_survives_kills_in_the_middle_of(drill: Drill, step: str) -> None:
    """Slow: each drill goes the whole way from rows to an alias; steps that nobody disturbs are taken from the drill before."""
    alias = f"drilled-{step}"
    # What is to be disturbed is done, whatever there is of it.
    run = drill.submit(RUN.replace(f"  {step}:\n", f"  {step}:\n    reuse: false\n"), alias=alias, seed=len(step))
    drill.await_step(run, step)
    drill.kill(*KILLS[step])
    ended = drill.await_end(run)
    steps = ended["steps"]
    assert ended["state"] == "SUCCEEDED", str(ended["error"])
    assert {name: shown["state"] for name, shown in steps.items()} == dict.fromkeys(steps, "SUCCEEDED")
    assert {shown["attempt"] for shown in steps.values()} == {1}
    for name in MAKING:
        expected = [] if steps[name]["reused"] else [steps[name]["job"]]
        assert drill.jobs_of(run, name) == expected, f"{name} was done once, or not at all where its result was there"
    attempts = drill.job(step, steps[step]["job"])["attempt"]
    assert attempts >= 2, "its worker was killed, and another one went on"
    for name, output in (("merge", "artifact"), ("nf4", "report"), ("evaluate", "report"), ("evaluate", "records")):
        artifact = drill.call("GET", f"/{steps[name]['outputs'][output]}")
        assert artifact["files"], f"{name}'s {output}"
    assert drill.call("GET", f"/aliases/{alias}")["model"] == steps["nf4"]["outputs"]["model"]
    answer = drill.platform.martlet("chat", "--model", alias, "hi")
    assert answer["model"] == steps["nf4"]["outputs"]["model"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_gate_that_fails_stops_the_deployment_and_says_by_how_much(drill: Drill, tmp_path: Path) -> None:
    """Slow for the run before the gate, if no drill went before: REST and the command must say what the run's worker says."""
    run = drill.submit(RUN, alias="closed", least=2.0)
    ended = drill.await_end(run)
    assert ended["state"] == "FAILED"
    accuracy = ended["steps"]["evaluate"]["metrics"]["nf4.exact_match.accuracy"]
    by_how_much = f"fails by {2.0 - accuracy:.4g}"
    assert by_how_much in ended["error"]["message"], ended["error"]
    assert ended["error"]["reason"] == "GATE_CLOSED"
    assert (ended["steps"]["gate"]["state"], ended["steps"]["deploy"]["state"]) == ("FAILED", "SKIPPED")
    assert "deploy" in ended["error"]["message"]
    assert "closed" not in [alias["id"] for alias in drill.call("GET", "/aliases")["data"]]

    shown = drill.platform.run("run", "show", run)
    assert by_how_much in shown.stdout, shown.stdout
    definition = tmp_path / "run.yaml"
    definition.write_text(RUN)
    given = [f"--input={name}={value}" for name, value in {**drill.inputs, "alias": "closed", "least": 2.0}.items()]
    watched = drill.platform.run("run", "submit", str(definition), *given, "--watch")
    assert watched.returncode == 1, "a script goes no further"
    assert by_how_much in watched.stdout + watched.stderr, (watched.stdout, watched.stderr)
