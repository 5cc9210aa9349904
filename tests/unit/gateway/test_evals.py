"""OpenAI's Evals API: definitions, tenants, retries, and the example of the docs, with the stock client."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import openai
import pytest
from martlet_core.errors import Unavailable
from martlet_gateway.testing.evals import (
    CLOSE,
    EXACT,
    LABEL,
    MULTI,
    ROWS,
    SCHEMA,
    SCORE,
    Evals,
    completions,
    strictly,
)
from martlet_gateway.testing.evaluator import record
from openai.types import eval_create_response, eval_list_response, eval_retrieve_response, eval_update_response


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
