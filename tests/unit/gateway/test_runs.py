"""Runs from submission to their end: a gateway, a worker and stages over real gRPC; only the stages' work is pretended."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from martlet_core.artifacts.types import PublishedModel
from martlet_core.errors import FailedPrecondition, ResourceExhausted, Unavailable
from martlet_core.testing.job_store import MemoryJobStore

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
MODEL = "ft:smollm2-135m-instruct:acme:nf4:12345678"


def _metrics(base: float, small: float) -> list[dict[str, Any]]:
    return [
        {"name": name, "model": name, "metrics": {"exact_match.accuracy": {"value": value}}}
        for name, value in (("base", base), ("small", small))
    ]


async def _to_the_gate(runs: Any, run: dict[str, Any], small: float, ratio: float = 1.01) -> None:
    await runs.until_job("train")
    await runs.stages.succeed("train", fine_tuned_model="ft:a", model_artifact="artifacts/ad", metrics={"loss": 0.4})
    await runs.until_job("merge")
    await runs.stages.succeed("merge", merged_model="ft:m", model_artifact="artifacts/m", top1_agreement=0.99)
    await runs.until_job("nf4")
    await runs.until_job("int8")
    await runs.stages.succeed("nf4", quantized_model=MODEL, size_ratio=0.3, perplexity_ratio=1.1)
    await runs.stages.succeed("int8", quantized_model="ft:i8", size_ratio=0.6, perplexity_ratio=ratio)
    await runs.until_job("eval")
    await runs.stages.succeed("eval", targets=_metrics(0.8, small), rows_used=10)


async def test_a_run_goes_from_training_to_deployment(runs: Any) -> None:
    runs.gateway.stores.models.publish(PublishedModel(MODEL, "whole", "acme", "a1"))
    await runs.start()
    run = await runs.submit(CHAIN)
    assert (run["state"], run["display_name"], run["spec"]["source"]) == ("QUEUED", "chain", CHAIN)
    await _to_the_gate(runs, run, small=0.79)
    done = await runs.until(run, state="SUCCEEDED")
    assert {step["state"] for step in done["steps"]} == {"SUCCEEDED"}
    assert runs.stages.job_of("merge").spec.adapter == "artifacts/ad"
    assert runs.stages.job_of("nf4").spec.model == "ft:m"
    assert [target.model for target in runs.stages.job_of("eval").spec.targets][1] == MODEL
    assert runs.stages.job_of("train").labels["martlet-run"] == run["id"]
    assert done["step"]["nf4"]["summary"] == "size x0.3, perplexity x1.1"
    assert done["step"]["gate"]["note"].startswith("holds: `eval.small.accuracy")
    assert done["step"]["deploy"]["outputs"] == {"alias": "headlines", "model": MODEL}
    alias = (await runs.gateway.http().get("/v1/martlet/aliases/headlines")).json()
    assert (alias["model"], alias["moves"][0]["run"]) == (MODEL, f"runs/{run['id']}")
    said = [
        e["message"] for e in (await runs.gateway.http().get(f"/v1/martlet/runs/{run['id']}/events")).json()["data"]
    ]
    assert said[-1] == "RUNNING -> SUCCEEDED"
    assert f"train: queued, {runs.stages.job_of('train').name}" in said


async def test_steps_without_dependence_run_side_by_side(runs: Any) -> None:
    await runs.start()
    run = await runs.submit(CHAIN)
    await runs.until_job("train")
    await runs.stages.succeed("train", model_artifact="artifacts/ad")
    await runs.until_job("merge")
    await runs.stages.succeed("merge", merged_model="ft:m")
    for step in ("nf4", "int8"):
        await runs.stages.move(await runs.until_job(step), "claim")
    shown = await runs.until(run, nf4="RUNNING", int8="RUNNING")
    assert (shown["step"]["gate"]["state"], shown["step"]["train"]["state"]) == ("WAITING", "SUCCEEDED")


async def test_a_gate_that_fails_stops_the_deployment_and_says_by_how_much(runs: Any) -> None:
    await runs.start()
    run = await runs.submit(CHAIN)
    await _to_the_gate(runs, run, small=0.7)
    failed = await runs.until(run, state="FAILED")
    assert "fails by 0.08 (0.7 >= 0.78 doesn't hold)" in failed["error"]["message"]
    assert "Not done for want of it: deploy" in failed["error"]["message"]
    assert failed["error"]["reason"] == "GATE_CLOSED"
    assert (failed["step"]["deploy"]["state"], failed["step"]["deploy"]["note"]) == ("SKIPPED", "step gate failed")
    assert (await runs.gateway.http().get("/v1/martlet/aliases/headlines")).status_code == 404


async def test_a_failed_step_is_named_and_resume_goes_on_there(runs: Any) -> None:
    await runs.start()
    run = await runs.submit(PAIR)
    await runs.until_job("train")
    await runs.stages.succeed("train", model_artifact="artifacts/ad")
    await runs.until_job("merge")
    await runs.stages.fail("merge", FailedPrecondition("They differ too much.", reason="MERGE_DIFFERS"))
    failed = await runs.until(run, state="FAILED")
    assert failed["error"]["message"] == "Step merge: They differ too much."
    assert failed["error"]["metadata"]["step"] == "merge"
    assert failed["step"]["merge"]["error"]["reason"] == "MERGE_DIFFERS"

    both = await asyncio.gather(runs.verb(run, "resume"), runs.verb(run, "resume"), return_exceptions=True)
    assert any(isinstance(answer, dict) and answer["resume_count"] == 1 for answer in both)
    await runs.until_job("merge", attempt=1)
    again = await runs.until(run, merge="QUEUED")
    assert (again["state"], again["step"]["merge"]["attempt"], again["step"]["train"]["attempt"]) == ("RUNNING", 2, 1)
    await runs.stages.succeed("merge", merged_model="ft:m", top1_agreement=1.0)
    done = await runs.until(run, state="SUCCEEDED")
    assert len(runs.stages.jobs) == 3, "training was not done again"
    assert (done["step"]["merge"]["attempt"], done["resume_count"], done.get("error")) == (2, 1, None)
    listed = (await runs.gateway.http().get("/v1/martlet/runs", params={"state": "succeeded"})).json()["data"]
    assert [item["id"] for item in listed] == [run["id"]]
    assert (await runs.gateway.http().get("/v1/martlet/runs", params={"state": "failed"})).json()["data"] == []
    refused = await runs.gateway.http().post(f"/v1/martlet/runs/{run['id']}/resume")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "illegal_transition")


async def test_events_of_all_legs_follow_one_another(runs: Any) -> None:
    await runs.start()
    run = await runs.submit(PAIR)
    await runs.until_job("train")
    await runs.stages.fail("train", FailedPrecondition("no"))
    await runs.until(run, state="FAILED")
    await runs.verb(run, "resume")
    await runs.until_job("train", attempt=1)
    url = f"/v1/martlet/runs/{run['id']}"
    await runs.verb(run, "cancel")
    await runs.until(run, state="CANCELLED")
    blocks = (await runs.gateway.http().get(f"{url}/watch")).text.strip().split("\n\n")
    events = [json.loads(block.split("data: ", 1)[1]) for block in blocks[:-1]]
    assert blocks[-1] == "data: [DONE]"
    assert [e["id"].split(".")[0] for e in events] == sorted(e["id"].split(".")[0] for e in events)
    messages = [event["message"] for event in events]
    assert any(m.startswith("RUNNING -> FAILED") for m in messages)
    assert messages[-1].startswith("CANCELLING -> CANCELLED")
    paged: list[str] = []
    after = ""
    while True:
        page = (await runs.gateway.http().get(f"{url}/events", params={"after": after, "limit": 3})).json()
        paged += [event["id"] for event in page["data"]]
        if not page["has_more"]:
            break
        after = paged[-1]
    assert paged == [event["id"] for event in events]


async def test_a_worker_killed_between_create_and_record_makes_no_second_job(runs: Any) -> None:
    keep = runs.gateway.stores.objects.put
    reached = asyncio.Event()
    loop = asyncio.get_running_loop()

    def put(key: str, data: bytes, **options: Any) -> None:
        if "/steps/train." in key and not reached.is_set():
            loop.call_soon_threadsafe(reached.set)
            raise Unavailable("The object store doesn't answer.")
        keep(key, data, **options)

    runs.gateway.stores.objects.put = put
    await runs.start(lease_seconds=0.6)
    run = await runs.submit(PAIR)
    async with asyncio.timeout(10):
        await reached.wait()
    await runs.kill()
    assert len(runs.stages.jobs) == 1
    await runs.start(lease_seconds=0.6)
    reconciler = runs.reconciler()

    async def goes_on() -> bool:
        await asyncio.to_thread(reconciler.run_once)
        return (await runs.show(run))["step"]["train"]["state"] == "QUEUED"

    await runs.eventually(goes_on)
    await runs.stages.succeed("train", model_artifact="artifacts/ad")
    await runs.until_job("merge")
    assert len(runs.stages.jobs) == 2
    assert runs.gateway.stores.jobs.get(run["id"]).attempt == 2


async def test_a_wiped_job_store_loses_nothing_in_mid_run(runs: Any) -> None:
    await runs.start(lease_seconds=1.0)
    run = await runs.submit(PAIR)
    await runs.until_job("train")
    await runs.until(run, train="QUEUED")
    jobs: MemoryJobStore = runs.gateway.stores.jobs
    jobs._records.clear()
    jobs._requests.clear()
    jobs._leases.clear()
    # The trainer lost its jobs as well, and hasn't them back yet.
    lost, runs.stages.jobs = runs.stages.jobs, {}
    runs.stages.by_request_id.clear()
    assert (await runs.gateway.http().get(f"/v1/martlet/runs/{run['id']}")).status_code == 404
    reconciler = runs.reconciler()
    await asyncio.to_thread(reconciler.run_once)
    await runs.until(run, state="RUNNING")

    async def waits() -> bool:
        return "doesn't know its job" in (await runs.show(run))["step"]["train"]["note"]

    await runs.eventually(waits)
    runs.stages.jobs = lost
    await runs.stages.succeed("train", model_artifact="artifacts/ad")
    await runs.until_job("merge")
    await runs.stages.succeed("merge", merged_model="ft:m")
    await runs.until(run, state="SUCCEEDED")
    assert len(runs.stages.jobs) == 2


async def test_cancel_stops_the_jobs_of_running_steps(runs: Any) -> None:
    await runs.start()
    run = await runs.submit(PAIR)
    await runs.stages.move(await runs.until_job("train"), "claim")
    await runs.until(run, train="RUNNING")
    assert (await runs.verb(run, "cancel"))["state"] in ("CANCELLING", "CANCELLED")
    over = await runs.until(run, state="CANCELLED")
    assert (over["step"]["train"]["state"], over["step"]["merge"]["state"]) == ("CANCELLED", "SKIPPED")
    assert runs.stages.job_of("train").state == 9
    refused = await runs.gateway.http().post(f"/v1/martlet/runs/{run['id']}/cancel")
    assert refused.status_code == 409


async def test_cancel_without_a_worker_stops_them_too(runs: Any) -> None:
    await runs.start(lease_seconds=0.6)
    run = await runs.submit(PAIR)
    await runs.stages.move(await runs.until_job("train"), "claim")
    await runs.until(run, train="RUNNING")
    await runs.kill()
    await runs.verb(run, "cancel")
    reconciler = runs.reconciler()

    async def is_over() -> bool:
        await asyncio.to_thread(reconciler.run_once)
        return (await runs.show(run))["state"] == "CANCELLED"

    await runs.eventually(is_over)
    assert runs.stages.job_of("train").state != 9
    await runs.start()

    async def is_cancelled() -> bool:
        return runs.stages.job_of("train").state == 9

    await runs.eventually(is_cancelled)


async def test_pause_and_resume_reach_the_steps(runs: Any) -> None:
    await runs.start()
    run = await runs.submit(PAIR)
    await runs.stages.move(await runs.until_job("train"), "claim")
    await runs.until(run, train="RUNNING")
    await runs.verb(run, "pause")
    paused = await runs.until(run, state="PAUSED")
    assert paused["step"]["train"]["state"] == "PAUSED"
    await runs.verb(run, "resume")
    await runs.until(run, state="RUNNING", train="QUEUED")
    await runs.stages.succeed("train", model_artifact="artifacts/ad")
    await runs.until_job("merge")


async def test_a_worker_told_to_stop_gives_its_runs_back(runs: Any) -> None:
    first = await runs.start()
    run = await runs.submit(PAIR)
    await runs.until_job("train")
    await runs.until(run, state="RUNNING")
    first.stop()
    await runs.until(run, state="QUEUED")
    await runs.stages.succeed("train", model_artifact="artifacts/ad")
    await runs.start()
    await runs.until_job("merge")
    assert runs.gateway.stores.jobs.get(run["id"]).lost_attempts == 0


async def test_a_stage_that_is_away_only_delays_its_step(runs: Any) -> None:
    await runs.start()
    runs.stages.failures["CreateMergeJob"] = [Unavailable("Not now."), ResourceExhausted("Full.")]
    run = await runs.submit(PAIR)
    await runs.until_job("train")
    await runs.stages.succeed("train", model_artifact="artifacts/ad")

    async def says_why() -> bool:
        return bool((await runs.show(run))["step"]["merge"]["note"])

    await runs.eventually(says_why)
    await runs.until_job("merge")
    assert (await runs.until(run, merge="QUEUED"))["step"]["merge"]["note"] == ""


async def test_a_step_whose_job_was_cancelled_by_hand_stops_the_run(runs: Any) -> None:
    await runs.start()
    run = await runs.submit(PAIR)
    await runs.stages.move(await runs.until_job("train"), "cancel")
    failed = await runs.until(run, state="FAILED")
    assert failed["error"]["message"].startswith("Step train: its job was cancelled.")
    assert failed["step"]["merge"]["note"] == "step train was cancelled"


async def test_the_example_goes_the_whole_way(runs: Any) -> None:
    runs.stages.suites = {"classification": ["accuracy", "macro_f1"], "latency": ["ttft_seconds"]}
    small = "ft:smollm2-135m-instruct:acme:nf4:12345678"
    runs.gateway.stores.models.publish(PublishedModel(small, "whole", "acme", "a1"))
    await runs.start()
    text = (Path(__file__).parents[3] / "examples/lifecycle.yaml").read_text()
    run = await runs.submit(text, inputs={"train_data": "artifacts/a", "test_data": "artifacts/b"})
    await runs.until_job("train")
    await runs.stages.succeed("train", fine_tuned_model="ft:t", model_artifact="artifacts/t")
    await runs.until_job("merge")
    await runs.stages.succeed("merge", merged_model="ft:m")
    for step, name in (("nf4", small), ("int8", "ft:int8")):
        spec = (await runs.until_job(step)).spec
        assert (spec.HasField("check_serving"), spec.check_serving) == (True, False)
        await runs.stages.succeed(step, quantized_model=name, size_ratio=0.42)
    await runs.until_job("evaluate")
    targets = [
        {"name": name, "model": name, "metrics": {"classification.accuracy": {"value": value}}}
        for name, value in (("base", 0.5), ("tuned", 0.8), ("merged", 0.8), ("nf4", 0.77), ("int8", 0.79))
    ]
    await runs.stages.succeed("evaluate", targets=targets)
    done = await runs.until(run, state="SUCCEEDED")
    assert done["step"]["deploy"]["summary"] == f"headlines -> {small}"
    assert (
        done["step"]["evaluate"]["summary"]
        == "base accuracy 0.5, tuned accuracy 0.8, merged accuracy 0.8, nf4 accuracy 0.77, int8 accuracy 0.79"
    )


async def test_the_same_work_is_reused_and_other_work_is_not(runs: Any, tmp_path: Path) -> None:
    artifacts, names = runs.gateway.stores.artifacts, []
    for number, text in enumerate(("{}", "{}", "[]")):
        directory = tmp_path / str(number)
        directory.mkdir()
        (directory / "a.jsonl").write_text(text)
        names.append(f"artifacts/{artifacts.put_directory(directory, kind='dataset', tenant='acme').id}")
    made = f"artifacts/{artifacts.put_directory(tmp_path / '0', kind='adapter', tenant='acme').id}"
    one_step = "name: x\nsteps:\n  train:\n    kind: train\n    with: {base_model: smollm2-135m-instruct, training_dataset: DATA}\n"
    await runs.start()
    first = await runs.submit(one_step.replace("DATA", names[0]), reuse=True)
    job = await runs.until_job("train")
    await runs.stages.succeed("train", model_artifact=made, metrics={"train_loss": 0.5})
    await runs.until(first, state="SUCCEEDED")

    again = await runs.until(await runs.submit(one_step.replace("DATA", names[1]), reuse=True), state="SUCCEEDED")
    step = again["step"]["train"]
    assert (step["reused"], step["job"], step["outputs"]["adapter"]) == (True, job.name, made)
    assert (step["metrics"]["train_loss"], step["note"]) == (0.5, f"done by {job.name}")
    for source, reuse in ((one_step.replace("DATA", names[2]), True), (one_step.replace("DATA", names[1]), False)):
        other = await runs.submit(source, reuse=reuse)
        shown = await runs.until(other, train="QUEUED")
        assert shown["step"]["train"]["job"] != job.name
    artifacts.delete(made.removeprefix("artifacts/"))
    gone = await runs.submit(one_step.replace("DATA", names[1]), reuse=True)
    assert (await runs.until(gone, train="QUEUED"))["step"]["train"]["reused"] is False


async def test_an_artifact_that_a_run_needs_is_not_deleted(runs: Any, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{}")
    artifact = runs.gateway.stores.artifacts.put_directory(tmp_path, kind="dataset", tenant="acme")
    run = await runs.submit(PAIR.replace("artifacts/d1", f"artifacts/{artifact.id}"))
    refused = await runs.gateway.http().delete(f"/v1/martlet/artifacts/{artifact.id}")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "artifact_in_use")
    assert f"runs/{run['id']}" in refused.json()["error"]["message"]
