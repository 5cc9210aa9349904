"""``martlet bench techniques`` on the platform: trainings, merges and evaluations as jobs, and a report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

Drill = Any  # the fixture's class; conftest modules can't be imported


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_techniques_are_compared_and_a_second_command_finds_all_of_it_done(drill: Drill, tmp_path: Path) -> None:
    """Slow for two trainings, a merge and three evaluations: what the command adds up comes from all of them."""
    rows = tmp_path / "rows.jsonl"
    turns = [{"role": "user", "content": "say elm"}, {"role": "assistant", "content": "elm"}]
    rows.write_text((json.dumps({"messages": turns}) + "\n") * 8)
    command = ["bench", "techniques", "--model", drill.inputs["base"], "--train", str(rows), "--test", str(rows)]
    command += ["--techniques", "dora", "ia3", "--suite", "exact_match", "--steps", "2", "--batch-size", "4"]
    command += ["--max-length", "64", "--out", str(tmp_path / "report")]
    first = drill.platform.martlet(*command, code=1, timeout=800)[-1]  # behind what it says of each run
    base, dora, ia3 = first
    # The base model is a directory, which no replica of this platform serves: that is told, and the others go on.
    assert (base["technique"], base["numbers"]) == ("base", {})
    assert "does not exist or you do not have access to it" in base["error"]
    assert [(one["technique"], one["error"]) for one in (dora, ia3)] == [("dora", ""), ("ia3", "")]
    dora, ia3 = dora["numbers"], ia3["numbers"]
    assert dora["trained_parameters"] > ia3["trained_parameters"] > 0
    assert dora["size_bytes"] > 4 * dora["trained_parameters"] * 0.9
    assert all(n["peak_memory_bytes"] > 1e7 and n["validation_loss"] > 0 for n in (dora, ia3))
    assert all(0 <= n["accuracy"] <= 1 and n["served_tokens_per_second"] > 0 for n in (dora, ia3))
    jobs = drill.call("GET", "/jobs?limit=1000")["data"]
    again = drill.platform.martlet(*command, code=1, timeout=100)[-1]
    assert again == first
    assert len(drill.call("GET", "/jobs?limit=1000")["data"]) == len(jobs)
    written = json.loads((tmp_path / "report/report.json").read_text())
    assert written["measured"] == first
