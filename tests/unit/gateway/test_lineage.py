"""Lineages and model cards: from a quantized model down to the rows and the base model's revision."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from martlet_core.artifacts.types import Artifact, PublishedModel
from martlet_core.ids import new_id
from martlet_core.job_archive import archive_job
from martlet_core.jobs import Job, JobState
from martlet_core.stores import Stores

BASE = "org/model@abc123"
TUNED, SMALL = "ft:model:acme:news:1", "ft:model:acme:nf4:2"


class Made:
    """A tenant's history: rows -> training -> adapter -> quantization -> model, and an evaluation of it."""

    def __init__(self, stores: Stores, directory: Path) -> None:
        self._stores = stores
        self._directory = directory
        self.rows = self.artifact("dataset", "rows", "train.jsonl")
        training = self.job(
            "trainer",
            "training",
            {
                "base_model": BASE,
                "training_dataset": f"artifacts/{self.rows.id}",
                "hyperparameters": {"learning_rate": 2e-4},
            },
            {
                "metrics": {"train_loss": 0.25},
                "resolved_config": {"hyperparameters": {"learning_rate": 2e-4, "epoch_count": 1.0}},
            },
            {"martlet-run": "run1", "martlet-step": "train"},
        )
        self.adapter = self.artifact(
            "adapter", "weights", "adapter.bin", training, {"base_model": BASE}, [self.rows.id]
        )
        stores.models.publish(PublishedModel(TUNED, "adapter", "acme", self.adapter.id, BASE, 8, training))
        quantization = self.job(
            "quantizer",
            "quantization",
            {"model": TUNED, "method": "bnb-nf4"},
            {"size_ratio": 0.3, "perplexity_ratio": 1.1},
        )
        self.small = self.artifact("quantized_model", "w4", "model.bin", quantization, {"base_model": BASE})
        stores.models.publish(PublishedModel(SMALL, "whole", "acme", self.small.id, source_job=quantization))
        metric = {"value": 0.875, "low": 0.8, "high": 0.95}
        self.job(
            "evaluator",
            "evaluation",
            {"dataset": "artifacts/held-out"},
            {"rows_used": 80, "targets": [{"name": "s", "model": SMALL, "metrics": {"exact_match.accuracy": metric}}]},
        )

    def artifact(
        self, kind: str, content: str, name: str, job: str = "", metadata: Any = None, parents: Any = ()
    ) -> Artifact:
        directory = self._directory / new_id()
        directory.mkdir()
        (directory / name).write_text(content)
        made_by = {"made_by": {"code_version": "c0ffee", "image": "martlet-trainer@sha256:1"}} if job else {}
        return self._stores.artifacts.put_directory(
            directory,
            kind=kind,
            tenant="acme",
            metadata={**(metadata or {}), **made_by},
            source_job=job,
            parents=parents,
        )

    def job(self, stage: str, kind: str, spec: Any, result: Any, labels: Any = None) -> str:
        """A job that is over and archived."""
        jobs = self._stores.jobs
        job, _ = jobs.create(Job(new_id(), stage, kind, "acme", spec, stage, labels=labels or {}))
        claim = jobs.claim(job.id, "w", 30)
        assert claim
        done = jobs.finish(job.id, claim.token, JobState.SUCCEEDED, result=result)
        archive_job(jobs, self._stores.objects, replace(done, end_time=done.start_time + 61.0))
        return job.id


@pytest.fixture
def made(gateway: Any, tmp_path: Path) -> Made:
    return Made(gateway.stores, tmp_path)


async def test_a_lineage_goes_down_to_rows_and_base_model(gateway: Any, made: Made) -> None:
    found = (await gateway.http().get(f"/v1/martlet/lineage/{SMALL}")).json()
    assert (found["kind"], found["sha256"], found["job"]["kind"]) == (
        "quantized_model",
        made.small.sha256,
        "quantization",
    )
    assert found["made_by"] == {"code_version": "c0ffee", "image": "martlet-trainer@sha256:1"}
    assert found["job"]["metrics"] == {"size_ratio": 0.3, "perplexity_ratio": 1.1}
    (adapter,) = found["parents"]
    assert (adapter["role"], adapter["name"], adapter["artifact"]) == ("model", TUNED, f"artifacts/{made.adapter.id}")
    assert (adapter["job"]["run"], adapter["job"]["step"], adapter["job"]["seconds"]) == ("runs/run1", "train", 61.0)
    assert adapter["job"]["spec"]["hyperparameters"] == {"learning_rate": 2e-4}
    below = {node["role"]: node for node in adapter["parents"]}
    assert set(below) == {"base_model", "training_dataset"}
    assert (below["base_model"]["repository"], below["base_model"]["revision"]) == ("org/model", "abc123")
    assert below["training_dataset"]["files"][0]["sha256"] == made.rows.files[0].sha256
    assert found["evaluations"][0]["metrics"]["exact_match.accuracy"]["value"] == 0.875


async def test_names_of_every_kind_are_found_and_other_tenants_are_not(gateway: Any, made: Made) -> None:
    http = gateway.http()
    await http.put("/v1/martlet/aliases/news", json={"model": SMALL})
    aliased = (await http.get("/v1/martlet/lineage/news")).json()
    assert (aliased["name"], aliased["alias"]) == (SMALL, "news")
    for name in (f"artifacts/{made.rows.id}", f"file-{made.rows.id}"):
        assert (await http.get(f"/v1/martlet/lineage/{name}")).json()["kind"] == "dataset"
    other = gateway.http(gateway.other_key)
    for name in (SMALL, "news", f"artifacts/{made.rows.id}", "nothing", "artifacts/nothing"):
        answer = await other.get(f"/v1/martlet/lineage/{name}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "lineage_not_found")


async def test_what_was_deleted_is_said_to_be(gateway: Any, made: Made) -> None:
    gateway.stores.artifacts.delete(made.rows.id)
    found = (await gateway.http().get(f"/v1/martlet/lineage/{TUNED}")).json()
    rows = next(node for node in found["parents"] if node["role"] == "training_dataset")
    assert (rows["kind"], rows["note"]) == ("unknown", "it was deleted")


async def test_a_model_card_is_hugging_faces_form(gateway: Any, made: Made) -> None:
    answer = await gateway.http().get(f"/v1/martlet/lineage/{SMALL}", params={"form": "card"})
    assert answer.headers["content-type"].startswith("text/markdown")
    _, front, body = answer.text.split("---\n", 2)
    facts = yaml.safe_load(front)
    assert (facts["base_model"], facts["base_model_relation"], facts["library_name"]) == (
        BASE,
        "quantized",
        "transformers",
    )
    assert facts["tags"] == ["martlet", "quantization", "training"]
    result = facts["model-index"][0]["results"][0]
    assert result["metrics"] == [{"type": "exact_match.accuracy", "value": 0.875}]
    assert f"training_dataset: `artifacts/{made.rows.id}`: `train.jsonl` (sha256 `{made.rows.files[0].sha256}`)" in body
    assert "| `hyperparameters.epoch_count` | `1` |" in body
    assert "| `exact_match.accuracy` | 0.875 | 0.8 to 0.95 | 80 |" in body
    assert "`c0ffee`" in body
    adapter = await gateway.http().get(f"/v1/martlet/lineage/{TUNED}", params={"form": "card"})
    assert "library_name: peft" in adapter.text
    own = made.artifact("adapter", "weights", "adapter.bin", metadata={"base_model": BASE, "tuner": "adapter"})
    card = await gateway.http().get(f"/v1/martlet/lineage/artifacts/{own.id}", params={"form": "card"})
    assert "library_name: martlet" in card.text
