"""OpenAI's Evals API, with the stock client and an evaluator that keeps jobs in a dict."""

from __future__ import annotations

import asyncio
import copy
import itertools
import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
from google.protobuf import json_format
from martlet.common.v1 import job_pb2
from martlet.evaluator.v1 import evaluation_job_pb2, evaluation_service_pb2_grpc
from martlet_core.errors import FailedPrecondition, FieldViolation, InvalidArgument, NotFound, Unavailable
from martlet_core.rpc.server import GrpcServer, Service
from martlet_gateway.settings import GatewaySettings
from martlet_gateway.testing.evaluator import REPORT, EvaluatorDouble, record
from openai.types import eval_create_response, eval_list_response, eval_retrieve_response, eval_update_response
from openai.types.evals import run_cancel_response, run_create_response, run_list_response, run_retrieve_response
from openai.types.evals.runs import output_item_list_response, output_item_retrieve_response

SCHEMA = {
    "type": "object",
    "properties": {
        "question": {"type": "string"},
        "answer": {"type": "string"},
        "turns": {"type": "array", "items": {"type": "object", "properties": {"role": {}, "content": {}}}},
        "meta": {"type": "object", "properties": {"level": {"type": "integer"}}},
    },
    "required": ["question", "answer"],
}
CONFIG = {"type": "custom", "item_schema": SCHEMA, "include_sample_schema": True}
EXACT = {
    "type": "string_check",
    "name": "exact",
    "input": "{{ sample.output_text }}",
    "reference": "{{item.answer}}",
    "operation": "eq",
}
CLOSE = {
    "type": "text_similarity",
    "name": "close",
    "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}",
    "evaluation_metric": "rouge_l",
    "pass_threshold": 0.5,
}
LABEL = {
    "type": "label_model",
    "name": "polite",
    "model": "smollm2-135m-instruct",
    "input": [
        {"role": "developer", "content": "Say polite or rude."},
        {"type": "message", "role": "user", "content": {"type": "input_text", "text": "{{sample.output_text}}"}},
    ],
    "labels": ["polite", "rude"],
    "passing_labels": ["polite"],
}
SCORE = {
    "type": "score_model",
    "name": "useful",
    "model": "qwen-tiny",
    "input": [{"role": "user", "content": "1 to 5 for {{item.question}}: {{sample.output_text}}"}],
    "range": [1, 5],
    "pass_threshold": 3.5,
    "sampling_params": {"temperature": 0, "seed": 1, "top_p": 1, "max_completions_tokens": 8},
}
MULTI = {
    "type": "multi",
    "name": "both",
    "graders": {"a": EXACT, "b": {k: v for k, v in CLOSE.items() if k != "pass_threshold"}},
    "calculate_output": "min(a, 0.5 * a + b^2 / 2)",
}
ROWS = [{"item": {"question": f"What is {n}+{n}?", "answer": str(2 * n)}} for n in range(3)]
TEMPLATE = {"type": "template", "template": [{"role": "user", "content": "{{item.question}}"}]}


@dataclass
class Evals:
    """The gateway under test, its evaluator, and the stock client."""

    gateway: Any
    evaluator: EvaluatorDouble
    client: openai.AsyncOpenAI

    async def define(self, *criteria: dict[str, Any], **fields: Any) -> Any:
        config = fields.pop("data_source_config", CONFIG)
        return await self.client.evals.create(
            data_source_config=config, testing_criteria=list(criteria) or [EXACT, CLOSE], **fields
        )

    async def start(self, eval_id: str, **fields: Any) -> Any:
        """A run on three rows of the request."""
        source = fields.pop("data_source", None) or completions()
        return await self.client.evals.runs.create(eval_id, data_source=source, **fields)

    def finish(self, run_id: str, records: list[dict[str, Any]]) -> None:
        self.evaluator.finish(run_id, self.gateway.stores.artifacts, records)

    @property
    def jobs_made(self) -> list[Any]:
        return [call for call in self.evaluator.calls if call.method == "CreateEvaluationJob"]


def completions(**changes: Any) -> Any:
    source = {"type": "completions", "model": "smollm2-135m-instruct", "input_messages": TEMPLATE}
    source |= {"source": {"type": "file_content", "content": ROWS}} | changes
    return {key: value for key, value in source.items() if value is not None}


def strictly(model: Any, found: Any) -> Any:
    """The object as its pydantic model demands it. ``error`` is null where there is none, as OpenAI's own service has it, though
    the model wants an object."""
    values = copy.deepcopy(found.to_dict())
    for holder in (values, values.get("sample")):
        if isinstance(holder, dict) and "error" in holder and holder["error"] is None:
            holder["error"] = {"code": "", "message": ""}
    return model.model_validate(values)


@pytest.fixture
async def evaluator() -> AsyncIterator[tuple[EvaluatorDouble, str]]:
    double = EvaluatorDouble()
    add = evaluation_service_pb2_grpc.add_EvaluationServiceServicer_to_server
    service = Service(add, double, "martlet.evaluator.v1.EvaluationService")
    server = GrpcServer("127.0.0.1:0", (service,), internal_token="internal-token")
    yield double, f"127.0.0.1:{await server.start()}"
    await server.stop(0)


@pytest.fixture
async def settings(tmp_path: Path, trainer: Any, evaluator: Any) -> GatewaySettings:
    return GatewaySettings(
        http_port=0,
        grpc_address="127.0.0.1:0",
        trainer_address=trainer[1],
        evaluator_address=evaluator[1],
        internal_token="internal-token",
        upload_dir=tmp_path / "uploads",
        cache_dir=tmp_path / "cache",
    )


@pytest.fixture
async def evals(gateway: Any, evaluator: Any) -> Evals:
    return Evals(gateway, evaluator[0], gateway.openai())


async def test_an_eval_is_defined_changed_and_deleted(evals: Evals) -> None:
    made = await evals.define(EXACT, CLOSE, LABEL, SCORE, name="sums", metadata={"team": "x"})
    strictly(eval_create_response.EvalCreateResponse, made)
    assert made.id.startswith("eval_")
    assert made.name == "sums"
    assert made.data_source_config.to_dict()["schema"]["properties"]["item"] == SCHEMA
    assert made.data_source_config.to_dict()["schema"]["properties"]["sample"]["required"] == ["output_text"]
    assert [criterion.to_dict() for criterion in made.testing_criteria] == [EXACT, CLOSE, LABEL, SCORE]
    changed = await evals.client.evals.update(made.id, name="sums 2")
    strictly(eval_update_response.EvalUpdateResponse, changed)
    assert (changed.name, changed.metadata) == ("sums 2", {"team": "x"})
    assert (await evals.client.evals.update(made.id, metadata={"a": "b"})).metadata == {"a": "b"}
    seen = strictly(eval_retrieve_response.EvalRetrieveResponse, await evals.client.evals.retrieve(made.id))
    assert (seen.name, seen.metadata, seen.created_at) == ("sums 2", {"a": "b"}, made.created_at)
    gone = await evals.client.evals.delete(made.id)
    assert (gone.deleted, gone.eval_id, gone.object) == (True, made.id, "eval.deleted")
    with pytest.raises(openai.NotFoundError) as caught:
        await evals.client.evals.retrieve(made.id)
    assert (caught.value.code, caught.value.param) == ("eval_not_found", "eval_id")


async def test_multi_and_what_needs_no_samples(evals: Evals) -> None:
    assert (await evals.define(MULTI)).testing_criteria[0].to_dict() == MULTI
    free = {"type": "custom", "item_schema": {"type": "object"}}
    grader = {**EXACT, "input": '{"x": {{item.anything.at[0].all}}, "y": {{}} }', "reference": "{{item.b}}"}
    made = await evals.define(grader, data_source_config=free)
    assert made.data_source_config.to_dict()["schema"]["required"] == ["item"]
    assert made.name == made.id


async def test_evals_are_listed_in_pages(evals: Evals) -> None:
    ids = [(await evals.define(name=str(n))).id for n in range(5)]
    assert [e.id async for e in evals.client.evals.list(limit=2)] == ids
    assert [e.id async for e in evals.client.evals.list(limit=2, order="desc")] == ids[::-1]
    await evals.client.evals.update(ids[1], name="last")
    assert [e.id async for e in evals.client.evals.list(limit=2, order_by="updated_at")] == [
        ids[0],
        *ids[2:],
        ids[1],
    ]
    page = await evals.client.evals.list(limit=2, order="desc", order_by="updated_at")
    strictly(eval_list_response.EvalListResponse, page.data[0])
    assert [e.id for e in page.data] == [ids[1], ids[4]]
    assert page.has_more
    raw = (await evals.gateway.http().get("/v1/evals?limit=2")).json()
    assert (raw["object"], raw["first_id"], raw["last_id"]) == ("list", ids[0], ids[1])


async def test_tenants_see_nothing_of_each_other(evals: Evals) -> None:
    made = await evals.define()
    run = await evals.start(made.id)
    other = evals.gateway.openai(evals.gateway.other_key)
    assert [e async for e in other.evals.list()] == []
    for call in (
        other.evals.retrieve(made.id),
        other.evals.update(made.id, name="mine"),
        other.evals.delete(made.id),
        other.evals.runs.create(made.id, data_source=completions()),
        other.evals.runs.list(made.id),
        other.evals.runs.retrieve(run.id, eval_id=made.id),
        other.evals.runs.cancel(run.id, eval_id=made.id),
        other.evals.runs.delete(run.id, eval_id=made.id),
        other.evals.runs.output_items.list(run.id, eval_id=made.id),
    ):
        with pytest.raises(openai.NotFoundError):
            await call
    assert (await evals.client.evals.runs.retrieve(run.id, eval_id=made.id)).status == "queued"


async def test_a_run_is_an_evaluation_job(evals: Evals) -> None:
    made = await evals.define(EXACT, LABEL)
    sampling = {
        "temperature": 0.5,
        "seed": 7,
        "max_completion_tokens": 64,
        "top_p": 1,
        "response_format": {"type": "text"},
    }
    run = await evals.start(
        made.id,
        data_source=completions(sampling_params=sampling),
        name="first",
        metadata={"k": "v"},
        extra_body={"martlet": {"concurrency": 3, "resources": {"priority": 9}, "max_rows": 2}},
    )
    strictly(run_create_response.RunCreateResponse, run)
    job = evals.evaluator.job(run.id)
    assert job.spec == evaluation_job_pb2.EvaluationSpec(
        targets=[
            evaluation_job_pb2.EvaluationTarget(
                name="smollm2-135m-instruct",
                model="smollm2-135m-instruct",
                engine=evaluation_job_pb2.TARGET_ENGINE_GATEWAY,
            )
        ],
        dataset=job.spec.dataset,
        suites=[evaluation_job_pb2.SuiteSpec(suite="graders", options=job.spec.suites[0].options)],
        sampling=evaluation_job_pb2.SamplingSpec(max_tokens=64, temperature=0.5, seed=7),
        max_failed_rows=3,
        max_rows=2,
        concurrency=3,
        resources=evaluation_job_pb2.EvaluationResources(priority=9),
    )
    assert json_format.MessageToDict(job.spec.suites[0].options) == {
        "testing_criteria": [EXACT, LABEL],
        "input_messages": TEMPLATE["template"],
        "sample": True,
    }
    assert (job.display_name, dict(job.labels)) == ("first", {"eval": made.id})
    artifact = evals.gateway.stores.artifacts.get(job.spec.dataset.removeprefix("artifacts/"), tenant="acme")
    stored = b"".join(evals.gateway.stores.artifacts.open_file(artifact, "rows.jsonl"))
    assert [json.loads(line) for line in stored.splitlines()] == ROWS
    assert (run.status, run.name, run.metadata, run.model) == ("queued", "first", {"k": "v"}, "smollm2-135m-instruct")
    assert run.result_counts.to_dict() == {"total": 2, "errored": 0, "failed": 0, "passed": 0}
    assert run.data_source.to_dict() == completions(sampling_params=sampling)
    assert run.error is None
    job.state = job_pb2.JOB_STATE_RUNNING
    assert (await evals.client.evals.runs.retrieve(run.id, eval_id=made.id)).status == "in_progress"


@pytest.mark.parametrize(
    ("reference", "options"),
    [
        (None, {"input_messages": TEMPLATE["template"]}),
        ({"type": "item_reference", "item_reference": "item.turns"}, {"item_reference": "item.turns"}),
    ],
)
@pytest.mark.parametrize("kind", ["completions", "responses"])
async def test_rows_of_a_file(evals: Evals, kind: str, reference: Any, options: dict[str, Any]) -> None:
    turns = [{"role": "user", "content": "Hi"}]
    lines = [json.dumps({"item": {**row["item"], "turns": turns}}) for row in ROWS]
    file = await evals.client.files.create(file=("rows.jsonl", "\n".join(lines).encode()), purpose="evals")
    made = await evals.define(EXACT)
    source = completions(type=kind, source={"type": "file_id", "id": file.id}, input_messages=reference or TEMPLATE)
    run = await evals.start(made.id, data_source=source)
    strictly(run_create_response.RunCreateResponse, run)
    spec = evals.evaluator.job(run.id).spec
    assert spec.dataset == file.id.replace("file-", "artifacts/")
    found = json_format.MessageToDict(spec.suites[0].options)
    assert found == {"testing_criteria": [EXACT], "sample": True, **options}
    with pytest.raises(openai.ConflictError):  # a run that isn't over needs it
        await evals.client.files.delete(file.id)


async def test_chats_ask_for_themselves(evals: Evals) -> None:
    file_id = await evals.gateway.upload()
    made = await evals.define({**EXACT, "reference": "hello"}, data_source_config={**CONFIG, "item_schema": {}})
    source = {"type": "file_id", "id": file_id}
    run = await evals.start(made.id, data_source=completions(source=source, input_messages=None))
    options = json_format.MessageToDict(evals.evaluator.job(run.id).spec.suites[0].options)
    assert "input_messages" not in options
    evals_file = await evals.client.files.create(file=("r.jsonl", b'{"item": {}}'), purpose="evals")
    source = {"type": "file_id", "id": evals_file.id}
    with pytest.raises(openai.BadRequestError) as caught:
        await evals.start(made.id, data_source=completions(source=source, input_messages=None))
    assert caught.value.param == "data_source.input_messages"


async def test_samples_that_are_in_the_rows(evals: Evals) -> None:
    made = await evals.define({**EXACT, "input": "{{sample.text}}"})
    content = [{**row, "sample": {"text": "4"}} for row in ROWS]
    source = {"type": "jsonl", "source": {"type": "file_content", "content": content}}
    run = await evals.start(made.id, data_source=source)
    strictly(run_create_response.RunCreateResponse, run)
    spec = evals.evaluator.job(run.id).spec
    assert (run.model, spec.targets[0].model) == ("", "rows")
    assert json_format.MessageToDict(spec.suites[0].options)["sample"] is False
    del content[1]["sample"]["text"]
    with pytest.raises(openai.BadRequestError) as caught:
        await evals.start(made.id, data_source=source)
    assert "row 2 (line 2): has no sample.text, which a grader names" in caught.value.message


async def test_a_finished_run(evals: Evals) -> None:
    made = await evals.define()
    run = await evals.start(made.id)
    assert [item async for item in evals.client.evals.runs.output_items.list(run.id, eval_id=made.id)] == []
    items = [row["item"] for row in ROWS]
    records = [
        record(0, items[0], "0", {"exact": 1.0, "close": 1.0}),
        record(1, items[1], "3", {"exact": 0.0, "close": 1.0}),
        record(2, items[2], "", {}, error="the model didn't answer"),
    ]
    judge = {"model": "qwen-tiny", "usage": {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6}}
    records[1]["results"][1]["sample"] = judge
    evals.finish(run.id, records)
    done = await evals.client.evals.runs.retrieve(run.id, eval_id=made.id)
    strictly(run_retrieve_response.RunRetrieveResponse, done)
    assert done.status == "completed"
    assert done.result_counts.to_dict() == {"total": 3, "passed": 1, "failed": 1, "errored": 1}
    assert [result.to_dict() for result in done.per_testing_criteria_results] == [
        {"testing_criteria": "exact", "passed": 1, "failed": 1},
        {"testing_criteria": "close", "passed": 2, "failed": 0},
    ]
    assert [(u.run_model_name, u.invocation_count, u.prompt_tokens, u.total_tokens) for u in done.per_model_usage] == [
        ("smollm2-135m-instruct", 2, 22, 28),
        ("qwen-tiny", 1, 5, 6),
    ]
    listing = evals.client.evals.runs.output_items
    found = [item async for item in listing.list(run.id, eval_id=made.id, limit=2)]
    for item in found:
        strictly(output_item_list_response.OutputItemListResponse, item)
    assert [item.status for item in found] == ["pass", "fail", "error"]
    assert [item.datasource_item for item in found] == items
    assert found[1].sample.output[0].content == "3"
    assert found[1].results[1].sample == judge
    assert found[2].sample.error.message == "the model didn't answer"
    assert [i.id async for i in listing.list(run.id, eval_id=made.id, status="fail")] == [found[1].id]
    assert [i.id async for i in listing.list(run.id, eval_id=made.id, limit=1, order="desc")] == [
        item.id for item in reversed(found)
    ]
    one = await listing.retrieve(found[2].id, eval_id=made.id, run_id=run.id)
    strictly(output_item_retrieve_response.OutputItemRetrieveResponse, one)
    assert one.to_dict() == found[2].to_dict()
    page = await evals.gateway.http().get(done.report_url)
    assert (page.text, page.headers["content-type"]) == (REPORT, "text/html; charset=utf-8")
    assert page.headers["content-security-policy"].startswith("sandbox")
    # What came of it is kept: the evaluator needs to be asked no more.
    evals.evaluator.jobs.clear()
    assert (await evals.client.evals.runs.retrieve(run.id, eval_id=made.id)).to_dict() == done.to_dict()


async def test_many_items_are_read_from_where_they_are(evals: Evals) -> None:
    """Over a mebibyte, so that the records are counted in a process of their own, and pages begin within the file."""
    made = await evals.define(EXACT)
    run = await evals.start(made.id)
    records = [record(n, {"n": n, "pad": "x" * 4000}, "4", {"exact": float(n % 7 > 0)}) for n in range(300)]
    evals.finish(run.id, records)
    listing = evals.client.evals.runs.output_items
    seen = [item async for item in listing.list(run.id, eval_id=made.id, limit=90)]
    assert [item.datasource_item["n"] for item in seen] == list(range(300))
    assert [item.datasource_item_id for item in seen] == list(range(300))
    assert len({item.id for item in seen}) == 300
    failed = [i.datasource_item_id async for i in listing.list(run.id, eval_id=made.id, status="fail", order="desc")]
    assert failed == list(range(0, 300, 7))[::-1]
    done = await evals.client.evals.runs.retrieve(run.id, eval_id=made.id)
    assert (done.result_counts.total, done.result_counts.failed) == (300, len(failed))


async def test_large_files_of_rows_are_checked(evals: Evals) -> None:
    """Over a mebibyte, so that they are read in a process of their own."""
    made = await evals.define(EXACT)
    lines = [json.dumps({"item": {"question": "x" * 3000, "answer": "y"}}) for _ in range(500)]
    lines[400] = json.dumps({"item": {"question": "x"}})
    file = await evals.client.files.create(file=("rows.jsonl", "\n".join(lines).encode()), purpose="evals")
    with pytest.raises(openai.BadRequestError) as caught:
        await evals.start(made.id, data_source=completions(source={"type": "file_id", "id": file.id}))
    assert "1 of 500 rows don't fit this eval: row 401 (line 401): item has no `answer`" in caught.value.message


async def test_a_failed_run_says_why(evals: Evals) -> None:
    made = await evals.define(EXACT)
    run = await evals.start(made.id)
    evals.evaluator.fail(run.id, FailedPrecondition("spec.dataset: its data is gone", reason="INPUT_GONE"))
    failed = await evals.client.evals.runs.retrieve(run.id, eval_id=made.id)
    strictly(run_retrieve_response.RunRetrieveResponse, failed)
    assert (failed.status, failed.error.code) == ("failed", "input_gone")
    assert failed.error.message == "data_source.source: its data is gone"
    items = await evals.client.evals.runs.output_items.list(run.id, eval_id=made.id)
    assert (items.data, items.has_more) == ([], False)
    report = await evals.gateway.http().get(failed.report_url)
    assert (report.status_code, report.json()["error"]["code"]) == (409, "failed_precondition")


async def test_records_that_are_none_are_no_500(evals: Evals) -> None:
    made = await evals.define(EXACT)
    run = await evals.start(made.id)
    evals.finish(run.id, [record(0, {}, "4", {"exact": 1.0}), {"row": 1, "status": "maybe"}])
    broken = await evals.client.evals.runs.retrieve(run.id, eval_id=made.id)
    assert (broken.status, broken.error.code) == ("failed", "bad_records")
    assert "line 2 is no record of graders" in broken.error.message
    assert (await evals.client.evals.runs.output_items.list(run.id, eval_id=made.id)).data == []


@pytest.mark.parametrize("form", ["/cancel", ""])
async def test_cancel_by_both_forms(evals: Evals, form: str) -> None:
    made = await evals.define(EXACT)
    run = await evals.start(made.id)
    if form:
        seen = await evals.client.evals.runs.cancel(run.id, eval_id=made.id)
        strictly(run_cancel_response.RunCancelResponse, seen)
        assert seen.status == "canceled"
    else:
        answer = await evals.gateway.http().post(f"/v1/evals/{made.id}/runs/{run.id}")
        assert (answer.status_code, answer.json()["status"]) == (200, "canceled")
    again = await evals.gateway.http().post(f"/v1/evals/{made.id}/runs/{run.id}{form}")
    assert again.status_code == 409
    assert again.headers["x-should-retry"] == "false"


async def test_a_running_run_stops_in_its_time(evals: Evals) -> None:
    made = await evals.define(EXACT)
    run = await evals.start(made.id)
    evals.evaluator.job(run.id).state = job_pb2.JOB_STATE_RUNNING
    assert (await evals.client.evals.runs.cancel(run.id, eval_id=made.id)).status == "in_progress"
    evals.evaluator.job(run.id).state = job_pb2.JOB_STATE_CANCELLED
    assert (await evals.client.evals.runs.retrieve(run.id, eval_id=made.id)).status == "canceled"


async def test_runs_are_listed_in_pages_and_by_status(evals: Evals) -> None:
    made, other = await evals.define(EXACT), await evals.define(CLOSE)
    runs = [await evals.start(made.id, name=str(n)) for n in range(5)]
    await evals.start(other.id)
    for run in (runs[1], runs[4]):
        evals.finish(run.id, [record(0, {}, "4", {"exact": 1.0})])
    listing = evals.client.evals.runs
    found = [run async for run in listing.list(made.id, limit=2)]
    assert [run.name for run in found] == ["0", "1", "2", "3", "4"]
    strictly(run_list_response.RunListResponse, found[0])
    assert [r.name async for r in listing.list(made.id, limit=2, order="desc")] == ["4", "3", "2", "1", "0"]
    assert [r.name async for r in listing.list(made.id, limit=1, status="completed")] == ["1", "4"]
    assert [r.name async for r in listing.list(made.id, limit=2, status="queued")] == ["0", "2", "3"]


async def test_what_is_under_way_is_not_deleted(evals: Evals) -> None:
    made = await evals.define(EXACT)
    run = await evals.start(made.id)
    dataset = evals.evaluator.job(run.id).spec.dataset.removeprefix("artifacts/")
    for call in (evals.client.evals.runs.delete(run.id, eval_id=made.id), evals.client.evals.delete(made.id)):
        with pytest.raises(openai.ConflictError) as caught:
            await call
        assert caught.value.code == "eval_run_active"
    evals.finish(run.id, [record(0, {}, "4", {"exact": 1.0})])
    gone = await evals.client.evals.runs.delete(run.id, eval_id=made.id)
    assert (gone.deleted, gone.run_id, gone.object) == (True, run.id, "eval.run.deleted")
    with pytest.raises(NotFound):
        evals.gateway.stores.artifacts.get(dataset, tenant="acme")
    second = await evals.start(made.id)
    await evals.client.evals.runs.cancel(second.id, eval_id=made.id)
    await evals.client.evals.delete(made.id)
    with pytest.raises(openai.NotFoundError) as gone_too:
        await evals.client.evals.runs.retrieve(second.id, eval_id=made.id)
    assert gone_too.value.code == "eval_run_not_found"
    left = evals.gateway.stores.objects
    assert not [key for prefix in ("evals/", "eval-runs/", "eval-results/") for key in left.list(prefix)]


async def test_retries_make_one_thing(evals: Evals) -> None:
    client = evals.gateway.openai(max_retries=2)
    made = await evals.define(EXACT)
    evals.evaluator.failures["CreateEvaluationJob"] = [Unavailable("starting", retry_after_seconds=0.01)]
    run = await client.evals.runs.create(made.id, data_source=completions())
    assert len({call.request.request_id for call in evals.jobs_made}) == 1
    assert len({call.request.evaluation_job.spec.dataset for call in evals.jobs_made}) == 1
    assert list(evals.evaluator.jobs) == [run.id.removeprefix("evalrun_")]
    first = await evals.start(made.id)
    repeated = await evals.start(made.id, extra_headers={"x-stainless-retry-count": "1"})
    assert (first.id == repeated.id, first.id == run.id) == (True, False)
    key = {"Idempotency-Key": "mine"}
    twice = [(await evals.start(made.id, extra_headers=key)).id for _ in range(2)]
    assert twice[0] == twice[1] != first.id
    with pytest.raises(openai.ConflictError) as caught:
        await evals.start(
            made.id,
            extra_headers=key,
            data_source=completions(source={"type": "file_content", "content": ROWS[:1]}),
        )
    assert caught.value.code == "request_id_taken"
    evals_made = [(await evals.define(EXACT, extra_headers=key)).id for _ in range(2)]
    assert evals_made[0] == evals_made[1]
    with pytest.raises(openai.ConflictError):
        await evals.define(CLOSE, extra_headers=key)
    fresh = [await evals.define(CLOSE), await evals.define(CLOSE)]
    assert fresh[0].id != fresh[1].id
    assert (await evals.define(CLOSE, extra_headers={"x-stainless-retry-count": "2"})).id == fresh[1].id


def grader(base: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {key: value for key, value in {**base, **changes}.items() if value is not None}


WRONG_GRADERS: list[Any] = [
    (grader(EXACT, type="python"), "testing_criteria[0].type", "no sandbox"),
    (grader(EXACT, type="string_chek"), "testing_criteria[0].type", "Did you mean `string_check`?"),
    (grader(EXACT, type=None), "testing_criteria[0].type", "is required"),
    (grader(EXACT, reference=None), "testing_criteria[0].reference", "is required"),
    (grader(EXACT, name=None), "testing_criteria[0].name", "is required"),
    (grader(EXACT, operation="equals"), "testing_criteria[0].operation", "eq, ne, like, ilike"),
    (grader(EXACT, operation="ilik"), "testing_criteria[0].operation", "Did you mean `ilike`?"),
    (grader(EXACT, input=["a"]), "testing_criteria[0].input", "must be text"),
    (grader(EXACT, pass_treshold=1), "testing_criteria[0].pass_treshold", "is not a field of string_check"),
    (grader(EXACT, reference="{{item.anser}}"), "testing_criteria[0].reference", "Did you mean `answer`?"),
    (grader(EXACT, reference="{{item.meta.levl}}"), "testing_criteria[0].reference", "Did you mean `level`?"),
    (grader(EXACT, reference="{{item.turns[0].rle}}"), "testing_criteria[0].reference", "Did you mean `role`?"),
    (grader(EXACT, reference="{{answer}}"), "testing_criteria[0].reference", "`item.<field>`"),
    (grader(EXACT, reference="{{item.the answer}}"), "testing_criteria[0].reference", "made of letters"),
    (grader(CLOSE, evaluation_metric="cosine"), "testing_criteria[0].evaluation_metric", "embedding model"),
    (grader(CLOSE, evaluation_metric="rouge_9"), "testing_criteria[0].evaluation_metric", "Did you mean `rouge_"),
    (grader(CLOSE, pass_threshold=None), "testing_criteria[0].pass_threshold", "is required"),
    (grader(CLOSE, pass_threshold="half"), "testing_criteria[0].pass_threshold", "must be a number"),
    (grader(LABEL, labels="polite"), "testing_criteria[0].labels", "must be a list of strings"),
    (grader(LABEL, passing_labels=["polit"]), "testing_criteria[0].passing_labels", "Did you mean `polite`?"),
    (grader(LABEL, input="x"), "testing_criteria[0].input", "must be a list of messages"),
    (grader(LABEL, input=[{"role": "usr", "content": "x"}]), "testing_criteria[0].input[0].role", "`user`?"),
    (
        grader(LABEL, input=[{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]),
        "testing_criteria[0].input[0].content[0].type",
        "prompts of evals are text",
    ),
    (grader(SCORE, range=[5, 1]), "testing_criteria[0].range", "the smaller first"),
    (grader(SCORE, sampling_params={"top_p": 0.5}), "testing_criteria[0].sampling_params.top_p", "not offered"),
    (grader(SCORE, model=7), "testing_criteria[0].model", "must be a string"),
    (grader(MULTI, calculate_output="a + c"), "testing_criteria[0].calculate_output", "there are: a, b"),
    (grader(MULTI, calculate_output="a +"), "testing_criteria[0].calculate_output", "is no formula"),
    (grader(MULTI, calculate_output="sum(a, b)"), "testing_criteria[0].calculate_output", "no function"),
    (grader(MULTI, calculate_output="a.__class__"), "testing_criteria[0].calculate_output", "may hold"),
    (grader(MULTI, graders=[EXACT]), "testing_criteria[0].graders", "by name"),
    (
        grader(MULTI, graders={"a": EXACT, "b": grader(CLOSE, evaluation_metric="x")}),
        "testing_criteria[0].graders.b.evaluation_metric",
        "is not one of",
    ),
    (grader(MULTI, graders={"a": EXACT, "b": MULTI}), "testing_criteria[0].graders.b.type", "is not known"),
]


async def test_graders_that_cannot_be_are_refused(evals: Evals) -> None:
    for criterion, param, says in WRONG_GRADERS:
        with pytest.raises(openai.BadRequestError) as caught:
            await evals.define(criterion)
        assert caught.value.param == param
        assert says in caught.value.message, param
        expected = "unsupported_grader" if criterion.get("type") == "python" else "invalid_argument"
        assert caught.value.code == expected
    assert [e async for e in evals.client.evals.list()] == []


WRONG_EVALS: list[Any] = [
    ({"data_source_config": {"type": "logs"}}, "data_source_config.type", "keeps no completions"),
    ({"data_source_config": {"type": "stored_completions"}}, "data_source_config.type", "keeps no completions"),
    ({"data_source_config": {"type": "jsonl"}}, "data_source_config.type", "must be `custom`"),
    ({"data_source_config": {"type": "custom"}}, "data_source_config.item_schema", "JSON schema"),
    (
        {"data_source_config": {**CONFIG, "item_schema": {"type": "array"}}},
        "data_source_config.item_schema",
        "of type object",
    ),
    (
        {"data_source_config": {**CONFIG, "item_schema": {"required": [{}]}}},
        "data_source_config.item_schema.required",
        "list of names",
    ),
    ({"data_source_config": {**CONFIG, "item_shema": {}}}, "data_source_config.item_shema", "`item_schema`?"),
    (
        {"data_source_config": {**CONFIG, "include_sample_schema": False}},
        "testing_criteria[0].input",
        "include_sample_schema",
    ),
    ({"testing_criteria": []}, "testing_criteria", "at least 1"),
    ({"testing_criteria": [EXACT, EXACT]}, "testing_criteria[1].name", "names must differ"),
    ({"metadata": {"k": 1}}, "metadata", "strings"),
    ({"name": "x" * 257}, "name", "256"),
    ({"extra_body": {"nmae": "x"}}, "nmae", "is not a parameter"),
]


async def test_evals_that_cannot_be_are_refused(evals: Evals) -> None:
    for fields, param, says in WRONG_EVALS:
        given = {"data_source_config": CONFIG, "testing_criteria": [EXACT], **fields}
        with pytest.raises(openai.BadRequestError) as caught:
            await evals.client.evals.create(**given)
        assert caught.value.param == param
        assert says in caught.value.message, param


def content(*rows: Any) -> dict[str, Any]:
    return {"source": {"type": "file_content", "content": list(rows)}}


WRONG_RUNS: list[Any] = [
    ({"type": "completion"}, "data_source.type", "Did you mean `completions`?"),
    ({"model": None}, "data_source.model", "is required"),
    ({"input_messages": None}, "data_source.input_messages", "is required"),
    ({"input_message": TEMPLATE}, "data_source.input_message", "Did you mean `input_messages`?"),
    ({"source": {"type": "stored_completions"}}, "data_source.source.type", "keeps no completions"),
    ({"type": "responses", "source": {"type": "responses"}}, "data_source.source.type", "keeps no completions"),
    ({"source": {"type": "file"}}, "data_source.source.type", "`file_id` or `file_content`"),
    ({"source": {"type": "file_id"}}, "data_source.source.id", "id of a file"),
    (content(), "data_source.source.content", "at least one"),
    (content("x"), "data_source.source.content[0]", "must be an object"),
    (content({"itm": {}}), "data_source.source.content[0].itm", "Did you mean `item`?"),
    (content({"item": "x"}), "data_source.source", "row 1 (line 1): has no object `item`"),
    (content(ROWS[0], {"item": {"question": "x"}}), "data_source.source", "row 2 (line 2): item has no `answer`"),
    (content({"item": {"question": "x", "answer": 4}}), "data_source.source", "item.answer is int"),
    (
        {"input_messages": {"type": "template", "template": [{"role": "user", "content": "{{item.qestion}}"}]}},
        "data_source.input_messages.template[0].content",
        "Did you mean `question`?",
    ),
    (
        {"input_messages": {"type": "template", "template": [{"role": "user", "content": "{{sample.x}}"}]}},
        "data_source.input_messages.template[0].content",
        "about answers",
    ),
    (
        {"input_messages": {"type": "item_reference", "item_reference": "turns"}},
        "data_source.input_messages.item_reference",
        "item.messages",
    ),
    (
        {"input_messages": {"type": "item_reference", "item_reference": "item.turns"}},
        "data_source.source",
        "has no item.turns",
    ),
    ({"sampling_params": {"temperature": 3}}, "data_source.sampling_params.temperature", "from 0 to 2"),
    ({"sampling_params": {"seed": 1.5}}, "data_source.sampling_params.seed", "an integer"),
    ({"sampling_params": {"max_tokens": 3}}, "data_source.sampling_params.max_tokens", "`max_completion_tokens`?"),
    (
        {"sampling_params": {"response_format": {"type": "json_object"}}},
        "data_source.sampling_params.response_format",
        "is not offered",
    ),
    ({"sampling_params": {"tools": [{}]}}, "data_source.sampling_params.tools", "is not offered"),
]


async def test_runs_that_cannot_be_are_refused(evals: Evals) -> None:
    made = await evals.define(EXACT)
    for changes, param, says in WRONG_RUNS:
        with pytest.raises(openai.BadRequestError) as caught:
            await evals.start(made.id, data_source=completions(**changes))
        assert caught.value.param == param
        assert says in caught.value.message, param
    assert evals.jobs_made == []
    assert evals.gateway.stores.artifacts.list(tenant="acme").artifacts == []


async def test_what_is_not_there_is_named(evals: Evals) -> None:
    made = await evals.define({**LABEL, "model": "quen-tiny"})
    with pytest.raises(openai.NotFoundError) as caught:
        await evals.start(made.id)
    assert (caught.value.param, caught.value.code) == ("testing_criteria[0].model", "model_not_found")
    assert "Did you mean `qwen-tiny`" in caught.value.message
    with pytest.raises(openai.NotFoundError) as caught:
        await evals.start(made.id, data_source=completions(model="smollm3"))
    assert (caught.value.param, caught.value.code) == ("data_source.model", "model_not_found")
    fine = await evals.define(EXACT)
    with pytest.raises(openai.NotFoundError) as caught:
        await evals.start(fine.id, data_source=completions(source={"type": "file_id", "id": "file-nope"}))
    assert (caught.value.param, caught.value.code) == ("data_source.source.id", "file_not_found")
    for purpose, name, says in (("batch", "r.jsonl", "purpose `evals`"), ("evals", "r.csv", "JSON lines")):
        file = await evals.client.files.create(file=(name, b"{}"), purpose=purpose)
        with pytest.raises(openai.BadRequestError) as refused:
            await evals.start(fine.id, data_source=completions(source={"type": "file_id", "id": file.id}))
        assert refused.value.param == "data_source.source.id"
        assert says in refused.value.message
    with pytest.raises(openai.BadRequestError) as refused:
        await evals.start(fine.id, extra_body={"martlet": {"max_row": 3}})
    assert (refused.value.param, refused.value.code) == ("martlet.max_row", "unknown_parameter")
    generated = await evals.define({**EXACT, "input": "{{sample.output_txt}}"})
    with pytest.raises(openai.BadRequestError) as refused:
        await evals.start(generated.id)
    assert "Did you mean `output_text`?" in refused.value.message


REFUSED_BY_EVALUATOR = [
    ("spec.targets.0.model", "data_source.model"),
    ("spec.dataset", "data_source.source"),
    ("spec.sampling.max_tokens", "data_source.sampling_params.max_completion_tokens"),
    ("spec.suites.0.options.testing_criteria.0.graders.a.model", "testing_criteria[0].graders.a.model"),
    ("spec.suites.0.options.input_messages.1.content", "data_source.input_messages.template[1].content"),
    ("spec.concurrency", "martlet.concurrency"),
]


async def test_what_the_evaluator_refuses_is_named_as_it_was_given(evals: Evals) -> None:
    made = await evals.define(EXACT)
    for field, param in REFUSED_BY_EVALUATOR:
        violations = [FieldViolation(field, "is wrong")]
        evals.evaluator.failures["CreateEvaluationJob"] = [InvalidArgument(f"{field}: is wrong", violations=violations)]
        with pytest.raises(openai.BadRequestError) as caught:
            await evals.start(made.id)
        assert caught.value.param == param
        assert f"{param}: is wrong" in caught.value.message
    evals.evaluator.failures["CreateEvaluationJob"] = [
        NotFound("spec.targets.0.model: none", reason="MODEL_NOT_FOUND", metadata={"param": "spec.targets.0.model"})
    ]
    with pytest.raises(openai.NotFoundError) as missing:
        await evals.start(made.id)
    assert (missing.value.param, missing.value.code) == ("data_source.model", "model_not_found")
    assert evals.gateway.stores.artifacts.list(tenant="acme").artifacts == []  # nothing stays of the rows


BROKEN_BODIES = [
    b"{",
    b"[]",
    b'{"name": "\\ud800"}',
    b'{"name": NaN}',
    b'{"metadata": ' + b"[" * 200 + b"]" * 200 + b"}",
    b"1" * 40,
]


async def test_bodies_that_are_none_are_refused(evals: Evals) -> None:
    made = await evals.define(EXACT)
    http = evals.gateway.http()
    paths = ("/v1/evals", f"/v1/evals/{made.id}", f"/v1/evals/{made.id}/runs")
    for path, body in itertools.product(paths, BROKEN_BODIES):
        answer = await http.post(path, content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["message"]


PATHS_TO_NOTHING = [
    "/v1/evals/eval_nope",
    "/v1/evals/../secrets",
    "/v1/evals/eval_A%2Fb",
    "/v1/evals/{eval}/runs/evalrun_nope",
    "/v1/evals/{eval}/runs/{run}/output_items/outputitem_1",
    "/v1/evals/{eval}/runs/{run}/output_items/outputitem_{job}_99",
    "/v1/evals/{eval}/runs/{run}/output_items/outputitem_{job}_-1",
    "/v1/evals/{eval}/runs/{run}/output_items?after=outputitem_x",
    "/v1/evals/{eval}/runs?after=evalrun_A",
    "/v1/evals?after=x",
]


async def test_ids_of_nothing_are_404(evals: Evals) -> None:
    made = await evals.define(EXACT)
    run = await evals.start(made.id)
    evals.finish(run.id, [record(0, {}, "4", {"exact": 1.0})])
    for path in PATHS_TO_NOTHING:
        url = path.format(eval=made.id, run=run.id, job=run.id.removeprefix("evalrun_"))
        answer = await evals.gateway.http().get(url)
        assert answer.status_code == 404, answer.text


async def test_queries_are_checked(evals: Evals) -> None:
    for query in ("limit=0", "limit=101", "order=up", "order_by=name"):
        answer = await evals.gateway.http().get(f"/v1/evals?{query}")
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, query.split("=")[0])


async def test_an_evaluator_that_is_away_is_a_503(evals: Evals) -> None:
    made = await evals.define(EXACT)
    evals.evaluator.failures["CreateEvaluationJob"] = [Unavailable("starting")]
    with pytest.raises(openai.InternalServerError) as caught:
        await evals.start(made.id)
    assert caught.value.status_code == 503


async def test_without_an_evaluator_it_says_so(evals: Evals) -> None:
    made = await evals.define(EXACT)
    evals.gateway.server.context.stages.evaluator._channel = None
    for call in (evals.define(EXACT), evals.start(made.id)):
        with pytest.raises(openai.InternalServerError) as caught:
            await call
        assert (caught.value.status_code, caught.value.code) == (501, "stage_not_deployed")
        assert "MARTLET_EVALUATOR_ADDRESS" in caught.value.message


async def test_the_example_of_the_docs_runs(evals: Evals, capsys: Any, monkeypatch: Any) -> None:
    page = Path(__file__).parents[3] / "docs" / "evals.md"
    code = re.search(r"```python\n(.*?)```", page.read_text(), re.S)
    assert code
    monkeypatch.setenv("OPENAI_BASE_URL", f"{evals.gateway.url}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", evals.gateway.key)
    item = {"headline": "Stocks fall", "topic": "Business"}
    records = [record(0, item, "Business", {"exact": 1.0}), record(1, item, "Sports", {"exact": 0.0})]
    evals.evaluator.at_once = (evals.gateway.stores.artifacts, records)
    await asyncio.to_thread(exec, compile(code[1], str(page), "exec"), {})
    printed = capsys.readouterr().out
    assert "1 of 2" in printed
    assert "Sports" in printed
