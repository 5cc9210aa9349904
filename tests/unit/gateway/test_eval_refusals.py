"""What evals and their runs refuse, and how they say it."""

from __future__ import annotations

import itertools
from typing import Any

import openai
import pytest
from martlet_core.errors import FieldViolation, InvalidArgument, NotFound, Unavailable
from martlet_gateway.testing.evals import (
    CLOSE,
    CONFIG,
    EXACT,
    LABEL,
    MULTI,
    ROWS,
    SCORE,
    TEMPLATE,
    Evals,
    completions,
)
from martlet_gateway.testing.evaluator import record


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
