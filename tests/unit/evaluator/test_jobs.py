"""What is checked at submission, and what the worker makes of a job: on in-memory stores; ``tests/integration`` has the rest."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from martlet_core.artifacts.store import ContentAddressedStore
from martlet_core.artifacts.types import PublishedModel
from martlet_core.errors import FailedPrecondition, InvalidArgument, NotFound, PermissionDenied, Unavailable
from martlet_core.jobs import Job, JobState
from martlet_core.models import ObjectModelRegistry
from martlet_core.service_tokens import tenant_of_service_token
from martlet_core.stores import Stores
from martlet_core.testing.job_store import MemoryJobStore
from martlet_core.testing.object_store import MemoryObjectStore
from martlet_evaluator.config import parse_evaluation_config
from martlet_evaluator.evaluate import read_deployment
from martlet_evaluator.jobs import Submissions
from martlet_evaluator.settings import EvaluatorSettings
from martlet_evaluator.worker import build_handlers

OUTSIDE = {"name": "x", "model": "m", "engine": "external", "base_url": "https://models.example/v1"}


class Kit:
    """Stores with a tenant's things in them, and nobody at the gateway's address."""

    def __init__(self, tmp_path: Path) -> None:
        objects = MemoryObjectStore()
        self._artifacts = ContentAddressedStore(objects, tmp_path / "cache")
        self.stores = Stores(MemoryJobStore(), objects, self._artifacts, ObjectModelRegistry(objects))
        self._tmp_path = tmp_path
        self.settings = EvaluatorSettings(
            gateway_url="http://127.0.0.1:9/v1",
            internal_token="internal",
            allowed_base_urls="https://models.example/v1 https://others.example/v1",
            work_dir=tmp_path / "work",
            cache_dir=tmp_path / "cache",
            models_dir=tmp_path / "models",
            in_process_targets=True,
        )
        self.dataset = self.artifact("dataset", {"rows.jsonl": json.dumps({"prompt": "a", "completion": "b"}) + "\n"})
        (self.handler,) = build_handlers(self.stores, self.settings)

    def artifact(self, kind: str, files: dict[str, str], *, tenant: str = "acme", **metadata: Any) -> str:
        directory = self._tmp_path / f"{kind}-{len(list(self._tmp_path.iterdir()))}"
        directory.mkdir()
        for name, text in files.items():
            (directory / name).write_text(text)
        made = self._artifacts.put_directory(directory, kind=kind, tenant=tenant, metadata=metadata)
        return f"artifacts/{made.id}"

    def spec(self, **changes: Any) -> dict[str, Any]:
        return {"targets": [OUTSIDE], "dataset": self.dataset, "suites": [{"suite": "exact_match"}], **changes}

    async def check(self, **changes: Any) -> None:
        await Submissions(self.stores, self.settings).check("acme", parse_evaluation_config(self.spec(**changes)))

    def job(self, **changes: Any) -> Job:
        return Job(
            id="1m8hzd3sdetkv9swjrnj",
            stage="evaluator",
            kind="evaluation",
            tenant="acme",
            queue="evaluator",
            state=JobState.RUNNING,
            spec=self.spec(**changes),
        )


@pytest.fixture
def kit(tmp_path: Path) -> Kit:
    return Kit(tmp_path)


async def test_a_sound_job_passes(kit: Kit) -> None:
    await kit.check()


async def test_targets_of_rows_with_answers_are_looked_up_by_nobody(kit: Kit) -> None:
    check = {"type": "string_check", "name": "c", "input": "{{item.a}}", "reference": "b", "operation": "eq"}
    entry = {"suite": "graders", "options": {"testing_criteria": [check], "sample": False}}
    await kit.check(targets=[{"model": "rows"}], suites=[entry])
    with pytest.raises(Unavailable):
        await kit.check(targets=[{"model": "rows"}], suites=[entry, {"suite": "exact_match"}])
    inside = {"model": "rows", "engine": "transformers"}
    assert kit.handler.prepare(kit.job(targets=[inside], suites=[entry])).config["models"] == {}


async def test_a_gateway_that_does_not_answer_is_unavailable_not_unknown(kit: Kit) -> None:
    with pytest.raises(Unavailable, match="can't be asked about base") as caught:
        await kit.check(targets=[{"model": "base"}])
    assert caught.value.retry_after_seconds


async def test_a_model_is_asked_for_nothing_that_it_was_not_made_for(kit: Kit) -> None:
    async def model(request: web.Request) -> web.Response:
        return web.json_response({"id": "m", "martlet": {"task": "embedding"}})

    app = web.Application()
    app.router.add_get("/v1/models/{name}", model)
    async with TestServer(app) as gateway:
        kit.settings = kit.settings.model_copy(update={"gateway_url": str(gateway.make_url("/v1"))})
        pairs = kit.artifact("dataset", {"rows.jsonl": json.dumps({"query": "a", "positive": "b"}) + "\n"})
        await kit.check(targets=[{"model": "m"}], suites=[{"suite": "embedding"}], dataset=pairs)
        with pytest.raises(InvalidArgument, match=r"spec\.targets\.0\.model.*use /v1/embeddings") as caught:
            await kit.check(targets=[{"model": "m"}])
        assert caught.value.reason == "WRONG_ROUTE"


async def test_only_allowed_addresses_are_asked(kit: Kit) -> None:
    with pytest.raises(PermissionDenied, match=r"spec\.targets\.0\.base_url"):
        await kit.check(targets=[{**OUTSIDE, "base_url": "https://models.example/v2"}])


async def test_data_sets_are_the_tenants_and_of_their_kind(kit: Kit) -> None:
    theirs = kit.artifact("dataset", {"rows.jsonl": "{}\n"}, tenant="umbrella")
    with pytest.raises(NotFound, match=r"spec\.dataset"):
        await kit.check(dataset=theirs)
    with pytest.raises(InvalidArgument, match="is of kind report"):
        await kit.check(dataset=kit.artifact("report", {"report.json": "{}"}))
    task = {"suite": "lm_eval", "options": {"tasks": [{"task": "gsm8k", "dataset": theirs}]}}
    with pytest.raises(NotFound, match=r"spec\.suites\.0\.options\.tasks\.0\.dataset"):
        await kit.check(suites=[task])


async def test_in_process_targets_are_resolved_for_the_tenant(kit: Kit) -> None:
    whole = kit.artifact("model", {"config.json": "{}"})
    kit.stores.models.publish(PublishedModel("ft:x", "adapter", "acme", "a1", base_model=whole, lora_rank=4))
    inside = {"name": "in", "model": "ft:x", "engine": "transformers"}
    await kit.check(targets=[inside])
    with pytest.raises(NotFound, match=r"spec\.targets\.0\.model"):
        await kit.check(targets=[{**inside, "model": "ft:y"}])
    prepared = kit.handler.prepare(kit.job(targets=[OUTSIDE, inside]))
    assert prepared.inputs == {
        "dataset": kit.dataset.removeprefix("artifacts/"),
        "model-1": whole.removeprefix("artifacts/"),
        "adapter-1": "a1",
    }
    assert prepared.config["models"] == {"in": {"model": "model-1", "adapter": "adapter-1"}}


async def test_bottlenecks_are_refused_in_process(kit: Kit) -> None:
    """Which only the trainer can load, by their model's name and by their artifact."""
    facts = {"tuner": "adapter", "base_model": kit.artifact("model", {"config.json": "{}"})}
    artifact = kit.artifact("adapter", {"adapter_config.json": "{}"}, **facts)
    named = PublishedModel(
        "ft:x", "adapter", "acme", "a1", base_model=facts["base_model"], metadata={"tuner": "adapter"}
    )
    kit.stores.models.publish(named)
    for model in ("ft:x", artifact):
        with pytest.raises(FailedPrecondition, match=r"spec\.targets\.0\.model: .* is bottlenecks") as caught:
            await kit.check(targets=[{"name": "in", "model": model, "engine": "transformers"}])
        assert caught.value.reason == "ADAPTER_NOT_SERVED"


def test_a_jobs_process_gets_a_token_for_its_tenant_and_not_the_internal_one(kit: Kit) -> None:
    prepared = kit.handler.prepare(kit.job())
    assert '"internal"' not in json.dumps(prepared.config)
    token = prepared.config["gateway"]["api_key"]
    assert tenant_of_service_token(token, "internal") == "acme"
    deployment = read_deployment(json.loads(json.dumps(prepared.config)))
    assert deployment.headers == {"authorization": f"Bearer {token}"}
    assert deployment.allowed_base_urls == kit.settings.allowed_urls
    assert deployment.deadline_seconds == 600.0


def test_only_models_in_the_jobs_own_process_need_a_gpu(kit: Kit) -> None:
    inside = {"name": "y", "model": "m", "engine": "transformers"}
    assert kit.handler.gpus_needed(kit.job()) == 0
    assert kit.handler.gpus_needed(kit.job(targets=[OUTSIDE, inside])) == 1


def test_serve_and_work_import_no_ml_library() -> None:
    code = (
        "import sys, martlet_evaluator.service, martlet_evaluator.worker;"
        "print([m for m in ('torch', 'transformers', 'lm_eval', 'datasets', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
