"""Submitting runs: what is refused, what is only checked, whose they are; the same over gRPC."""

from __future__ import annotations

from typing import Any

import grpc.aio
import pytest
from martlet.gateway.v1 import run_pb2, run_service_pb2, run_service_pb2_grpc

CHAIN = """\
name: chain
steps:
  train:
    kind: train
    with: {base_model: smollm2-135m-instruct, training_dataset: artifacts/d1}
  merge:
    kind: merge
    with: {adapter: "${train.adapter}"}
  nf4:
    kind: quantize
    with: {model: "${merge.model}", method: bnb-nf4}
  int8:
    kind: quantize
    with: {model: "${merge.model}", method: w8a8-int8}
  eval:
    kind: evaluate
    with:
      targets:
        - {name: base, model: smollm2-135m-instruct}
        - {name: small, model: "${nf4.model}"}
      dataset: artifacts/d2
      suites: [{suite: exact_match}]
  gate:
    kind: gate
    with:
      require: [eval.small.accuracy >= eval.base.accuracy - 0.02, int8.perplexity_ratio <= 1.05]
  deploy:
    kind: deploy
    needs: [gate]
    with: {alias: headlines, model: "${nf4.model}"}
"""
PAIR = """\
name: pair
steps:
  train:
    kind: train
    with: {base_model: smollm2-135m-instruct, training_dataset: artifacts/d1}
  merge:
    kind: merge
    with: {adapter: "${train.adapter}"}
"""


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        (("smollm2-135m-instruct, t", "smollm3, t"), "steps.train.with.base_model", "line 5, column 24: "),
        ((": artifacts/d1", ': "${inputs.data}"'), "steps.train.with.training_dataset", "no input `data`"),
        (("kind: merge", "kind: mergee"), "steps.merge.kind", "Did you mean `merge`?"),
        (
            ("small.accuracy", "small.accuray"),
            "steps.gate.with.require[0]",
            "Did you mean `small.exact_match.accuracy`?",
        ),
        (
            ("alias: headlines", "alias: smollm2-135m-instruct"),
            "steps.deploy.with.alias",
            "is the name of a base model",
        ),
    ],
)
async def test_what_can_be_known_is_refused_at_submission(
    runs: Any, change: tuple[str, str], field: str, words: str
) -> None:
    answer = await runs.gateway.http().post("/v1/martlet/runs", json={"source": CHAIN.replace(*change)})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == (field, "invalid_run")
    assert words in error["message"]


async def test_metrics_of_which_only_the_form_is_known_are_let_through(runs: Any) -> None:
    suites = {"latency": ["ttft_ms.cN"], "lm_eval": ["<task>.<metric>"]}
    runs.stages.suites = {"exact_match": ["accuracy"], **suites}
    http, url = runs.gateway.http(), "/v1/martlet/runs?validate_only=true"
    for suite, metric, status in (
        ("latency", "ttft_ms.c8", 200),
        ("latency", "ttft_s.c8", 400),
        ("exact_match", "failed_rows", 200),
        ("lm_eval", "gsm8k.exact", 200),
    ):
        text = CHAIN.replace("suite: exact_match", f"suite: {suite}").replace(
            "eval.small.accuracy >= eval.base.accuracy - 0.02", f"eval.small.{metric} >= 0"
        )
        answer = await http.post(url, json={"source": text})
        assert answer.status_code == status, (suite, metric, answer.text)


async def test_a_model_that_is_not_there_is_not_deployed(runs: Any) -> None:
    await runs.start()
    run = await runs.submit("name: x\nsteps:\n  deploy: {kind: deploy, with: {alias: news, model: smollm3}}\n")
    failed = await runs.until(run, state="FAILED")
    assert failed["error"]["reason"] == "MODEL_NOT_FOUND"
    assert (await runs.gateway.http().get("/v1/martlet/aliases/news")).status_code == 404
    good = await runs.submit(
        "name: x\nsteps:\n  deploy: {kind: deploy, with: {alias: news, model: smollm2-135m-instruct}}\n"
    )
    await runs.until(good, state="SUCCEEDED")


async def test_validate_only_makes_nothing_and_yaml_is_a_body(runs: Any) -> None:
    http = runs.gateway.http()
    headers = {"content-type": "application/yaml"}
    checked = await http.post("/v1/martlet/runs?validate_only=true", content=PAIR, headers=headers)
    assert checked.status_code == 200
    assert (await http.get("/v1/martlet/runs")).json()["data"] == []
    made = (await http.post("/v1/martlet/runs", content=PAIR, headers=headers)).json()
    assert [run["id"] for run in (await http.get("/v1/martlet/runs")).json()["data"]] == [made["id"]]
    assert made["steps"][1]["needs"] == ["train"]
    definition = {"name": "x", "steps": {"a": {"kind": "merge", "with": {"adapter": "ft:x"}}}}
    assert (await http.post("/v1/martlet/runs", json={"definition": definition})).json()["display_name"] == "x"
    wrong = await http.post("/v1/martlet/runs", json={"sorce": PAIR})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "sorce")
    bare = await http.post("/v1/martlet/runs", content=PAIR)
    assert "application/yaml" in bare.json()["error"]["message"]


async def test_runs_are_their_tenants_and_repeated_posts_make_one(runs: Any) -> None:
    run = await runs.submit(PAIR, request_id="once")
    assert (await runs.submit(PAIR, request_id="once"))["id"] == run["id"]
    other = runs.gateway.http(runs.gateway.other_key)
    assert (await other.get(f"/v1/martlet/runs/{run['id']}")).status_code == 404
    assert (await other.get("/v1/martlet/runs")).json()["data"] == []
    for verb in ("cancel", "pause", "resume"):
        assert (await other.post(f"/v1/martlet/runs/{run['id']}/{verb}")).status_code == 404


async def test_runs_over_grpc(runs: Any) -> None:
    stub = run_service_pb2_grpc.RunServiceStub(runs.gateway.channel())
    metadata = runs.gateway.metadata()
    run = run_pb2.Run(spec=run_pb2.RunSpec(source=PAIR))
    made = await stub.CreateRun(run_service_pb2.CreateRunRequest(run=run), metadata=metadata)
    await runs.start()
    await runs.until_job("train")
    got = await stub.GetRun(run_service_pb2.GetRunRequest(name=made.name), metadata=metadata)
    assert [step.id for step in got.steps] == ["train", "merge"]
    await stub.CancelRun(run_service_pb2.CancelRunRequest(name=made.name), metadata=metadata)
    events = [
        event.message
        async for event in stub.WatchRun(run_service_pb2.WatchRunRequest(name=made.name), metadata=metadata)
    ]
    assert "CANCELLED" in events[-1]
    listed = await stub.ListRuns(run_service_pb2.ListRunsRequest(), metadata=metadata)
    assert [item.name for item in listed.runs] == [made.name]
    page = await stub.ListRunEvents(run_service_pb2.ListRunEventsRequest(name=made.name), metadata=metadata)
    assert [event.message for event in page.events] == events
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.CreateRun(
            run_service_pb2.CreateRunRequest(run=run_pb2.Run(spec=run_pb2.RunSpec(source="name: x"))), metadata=metadata
        )
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
