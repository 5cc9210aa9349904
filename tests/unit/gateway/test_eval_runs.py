"""Runs of evals and their output items, with the stock client and an evaluator that keeps jobs in a dict."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from google.protobuf import json_format
from martlet.common.v1 import job_pb2
from martlet.evaluator.v1 import evaluation_job_pb2
from martlet_core.errors import FailedPrecondition, NotFound
from martlet_gateway.testing.evals import (
    CLOSE,
    CONFIG,
    EXACT,
    LABEL,
    ROWS,
    TEMPLATE,
    Evals,
    completions,
    strictly,
)
from martlet_gateway.testing.evaluator import REPORT, record
from openai.types.evals import run_cancel_response, run_create_response, run_list_response, run_retrieve_response
from openai.types.evals.runs import output_item_list_response, output_item_retrieve_response


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
    records[1]["results"][1]["sample"] = {**judge, "others": [{**judge, "model": "second"}]}
    records[2]["ungraded"] = [{"name": "close", "type": "multi", "error": "no number", "sample": judge}]
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
        ("qwen-tiny", 2, 10, 12),
        ("second", 1, 5, 6),
    ]
    listing = evals.client.evals.runs.output_items
    found = [item async for item in listing.list(run.id, eval_id=made.id, limit=2)]
    for item in found:
        strictly(output_item_list_response.OutputItemListResponse, item)
    assert [item.status for item in found] == ["pass", "fail", "error"]
    assert [item.datasource_item for item in found] == items
    assert found[1].sample.output[0].content == "3"
    assert found[1].results[1].sample == records[1]["results"][1]["sample"]
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
