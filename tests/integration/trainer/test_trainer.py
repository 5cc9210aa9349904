"""Training jobs through the real trainer, from ``Create`` to an adapter that anyone can open."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from martlet.common.v1 import job_pb2
from martlet.trainer.v1 import (
    merge_job_pb2,
    merge_service_pb2,
    training_job_pb2,
    training_service_pb2,
)
from martlet_core.artifacts.layout import ref_key
from martlet_core.errors import MartletError
from martlet_core.model_rules import check_plain_lora
from martlet_core.rpc.client import call_metadata, error_from_rpc
from martlet_core.testing.conformance import TRAINER_RULES, TrainerTarget, assert_rule

Trainer = Any  # the fixture's class; conftest modules can't be imported
TENANT = "acme"


def losses(events: list[job_pb2.JobEvent]) -> dict[int, float]:
    """Training loss by step; a step that was said twice must have been the same."""
    found: dict[int, float] = {}
    for event in events:
        if event.WhichOneof("detail") == "metrics" and "loss" in event.metrics.values:
            step, loss = event.metrics.step, event.metrics.values["loss"]
            assert found.setdefault(step, loss) == pytest.approx(loss, rel=1e-5), f"step {step} has two losses"
    return found


def refusal(call: Callable[[], Any]) -> MartletError:
    """The error that a call ends with."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return error_from_rpc(caught.value)


CHECKPOINTS = training_job_pb2.CheckpointConfig(interval_steps=20)
#: So many that a fast machine is not through before it is told to pause.
STEPS = 240


class Finished:
    """An unbroken training, to look at and to compare with."""

    def __init__(self, trainer: Trainer, rows: str) -> None:
        self.dataset = trainer.upload(rows)
        self.spec = self.same(trainer)
        self.created = trainer.create(self.spec)
        self.events = trainer.watch(self.created.name)
        self.job = trainer.get(self.created.name)
        assert self.job.state == job_pb2.JOB_STATE_SUCCEEDED, f"{self.job.error}{trainer.logs()}"

    def same(self, trainer: Trainer) -> training_job_pb2.TrainingSpec:
        """The spec that gives the same losses again."""
        spec = trainer.spec(self.dataset, steps=STEPS, suffix="trees", checkpoints=CHECKPOINTS)
        spec.data.validation_split = 0.2
        return spec


@pytest.fixture(scope="module")
def finished(trainer: Trainer, rows: str) -> Finished:
    """Trained once for all tests of this module."""
    return Finished(trainer, rows)


def test_training_ends_with_a_full_report(trainer: Trainer, finished: Finished) -> None:
    assert finished.created.spec == finished.spec
    assert finished.events[-1].state_change.to_state == job_pb2.JOB_STATE_SUCCEEDED
    assert sorted(losses(finished.events)) == list(range(1, STEPS + 1))
    result = finished.job.result
    assert result.fine_tuned_model == f"ft:tiny-llama:{TENANT}:trees:{finished.job.name[-8:]}"
    assert (result.training_data.rows_read, result.training_data.rows_refused) == (60, 0)
    assert result.trained_tokens > 0
    assert result.train_seconds > 0
    assert result.resolved_config["tuner"]["lora_alpha"] == 8.0
    assert finished.job.progress.fraction == 1.0


def test_adapter_is_published_and_opens_in_peft(
    trainer: Trainer, finished: Finished, opens_in_peft: Callable[[Path], float]
) -> None:
    result = finished.job.result
    model = trainer.stores.models.get(result.fine_tuned_model, tenant=TENANT)
    assert (model.kind, model.base_model, model.lora_rank) == ("adapter", trainer.base_model, 4)
    assert f"artifacts/{model.artifact_id}" == result.model_artifact
    assert opens_in_peft(trainer.download(result.model_artifact)) > 0.1


def test_metrics_are_a_table_with_a_row_a_step(trainer: Trainer, finished: Finished) -> None:
    (table,) = trainer.download(finished.job.result.metrics_artifact).iterdir()
    with table.open() as file:
        steps = [int(row["step"]) for row in csv.DictReader(file)]
    assert steps == list(range(1, STEPS + 1))


def test_checkpoints_are_named_and_can_be_loaded(
    trainer: Trainer, finished: Finished, opens_in_peft: Callable[[Path], float]
) -> None:
    request = training_service_pb2.ListTrainingCheckpointsRequest(name=finished.job.name)
    kept = trainer.call(trainer.training.ListTrainingCheckpoints, request).checkpoints
    assert 1 <= len(kept) <= 3
    assert [entry.step for entry in kept] == sorted((entry.step for entry in kept), reverse=True)
    newest = kept[0]
    assert newest.fine_tuned_model == f"{finished.job.result.fine_tuned_model}:ckpt-step-{newest.step}"
    model = trainer.stores.models.get(newest.fine_tuned_model, tenant=TENANT)
    assert f"artifacts/{model.artifact_id}" == newest.artifact
    assert opens_in_peft(trainer.download(newest.artifact)) > 0


def test_watch_goes_on_from_a_cursor(trainer: Trainer, finished: Finished) -> None:
    events = finished.events
    middle = len(events) // 2
    assert trainer.watch(finished.job.name, after=events[middle].cursor) == events[middle + 1 :]
    assert trainer.watch(finished.job.name, after=events[-1].cursor) == []


def test_same_request_id_makes_one_job(trainer: Trainer, finished: Finished) -> None:
    spec = trainer.spec(finished.dataset, steps=100_000)
    first = trainer.create(spec, request_id="once")
    again = trainer.create(spec, request_id="once")
    request = training_service_pb2.CancelTrainingJobRequest(name=first.name)
    trainer.call(trainer.training.CancelTrainingJob, request)
    assert first.name == again.name
    error = refusal(lambda: trainer.create(trainer.spec(finished.dataset, steps=2), request_id="once"))
    assert error.code == "ALREADY_EXISTS"
    trainer.watch(first.name)


def test_validate_only_creates_nothing(trainer: Trainer, rows: str) -> None:
    job = trainer.create(trainer.spec(trainer.upload(rows)), validate_only=True)
    assert refusal(lambda: trainer.get(job.name)).code == "NOT_FOUND"


def test_pause_and_resume_give_the_unbroken_loss_curve(trainer: Trainer, finished: Finished) -> None:
    job = trainer.create(finished.same(trainer))
    trainer.wait_until(lambda: trainer.get(job.name).progress.step >= 3, "some steps")
    trainer.call(trainer.training.PauseTrainingJob, training_service_pb2.PauseTrainingJobRequest(name=job.name))
    resting = (job_pb2.JOB_STATE_PAUSED, job_pb2.JOB_STATE_SUCCEEDED)
    trainer.wait_until(lambda: trainer.get(job.name).state in resting, "the pause")
    assert trainer.get(job.name).state == job_pb2.JOB_STATE_PAUSED, "the job was over before it could be paused"
    trainer.call(trainer.training.ResumeTrainingJob, training_service_pb2.ResumeTrainingJobRequest(name=job.name))
    broken = losses(trainer.watch(job.name))
    assert trainer.get(job.name).attempt == 2
    assert broken == pytest.approx(losses(finished.events), rel=1e-5)


@pytest.mark.parametrize("victim", ["recipe", "worker"])
def test_sigkill_gives_the_unbroken_loss_curve(trainer: Trainer, finished: Finished, victim: str) -> None:
    job = trainer.create(finished.same(trainer))
    request = training_service_pb2.ListTrainingCheckpointsRequest(name=job.name)
    trainer.wait_until(
        lambda: trainer.call(trainer.training.ListTrainingCheckpoints, request).checkpoints, "a checkpoint"
    )
    if victim == "recipe":
        for pid in trainer.recipes(trainer.worker):
            os.kill(pid, signal.SIGKILL)
    else:
        trainer.worker.kill()
        trainer.worker = trainer.start_worker()
    broken = losses(trainer.watch(job.name))
    done = trainer.get(job.name)
    assert done.state == job_pb2.JOB_STATE_SUCCEEDED, done.error
    assert done.attempt == 2, "the job was over before the kill"
    assert broken == pytest.approx(losses(finished.events), rel=1e-5)


def test_training_goes_on_from_a_fine_tuned_model(trainer: Trainer, finished: Finished) -> None:
    end = list(losses(finished.events).values())[-1]
    name = finished.job.result.fine_tuned_model
    second = trainer.create(trainer.spec(finished.dataset, steps=2, base_model=name))
    begin = losses(trainer.watch(second.name))[1]
    done = trainer.get(second.name)
    assert done.state == job_pb2.JOB_STATE_SUCCEEDED, done.error
    start = losses(finished.events)[1]
    assert abs(begin - end) < abs(begin - start), "it began anew, not where the first one ended"
    model = trainer.stores.models.get(done.result.fine_tuned_model, tenant=TENANT)
    assert (model.base_model, model.lora_rank) == (trainer.base_model, 4)


def test_merge_is_published_as_a_whole_model(trainer: Trainer, finished: Finished) -> None:
    adapter = finished.job.result.fine_tuned_model
    job = merge_job_pb2.MergeJob(spec=merge_job_pb2.MergeSpec(adapter=adapter, suffix="whole"))
    created = trainer.call(trainer.merging.CreateMergeJob, merge_service_pb2.CreateMergeJobRequest(merge_job=job))
    stream = trainer.merging.WatchMergeJob(
        merge_service_pb2.WatchMergeJobRequest(name=created.name), timeout=200, metadata=call_metadata(tenant=TENANT)
    )
    assert list(stream)[-1].state_change.to_state == job_pb2.JOB_STATE_SUCCEEDED, trainer.logs()
    done = trainer.call(trainer.merging.GetMergeJob, merge_service_pb2.GetMergeJobRequest(name=created.name))
    assert done.result.top1_agreement > 0.9
    assert done.result.merged_model.startswith(f"ft:tiny-llama:{TENANT}:whole:")
    model = trainer.stores.models.get(done.result.merged_model, tenant=TENANT)
    assert model.kind == "whole"
    assert (trainer.download(done.result.model_artifact) / "config.json").is_file()


ASKED = {"role": "user", "content": "Which tree is it?"}
GOOD, BAD = ({"role": "assistant", "content": text} for text in ("An oak.", "A goose."))
OTHER_RECIPES: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "dpo": ([{"messages": [ASKED, GOOD], "rejected_response": "A goose."}] * 8, {"beta": 0.2}),
    "kto": ([{"messages": [ASKED, GOOD], "label": True}, {"messages": [ASKED, BAD], "label": False}] * 4, {}),
    "grpo": (
        [{"messages": [ASKED], "solution": "oak"}] * 8,
        {"rewards": [{"name": "length", "target": 3}], "num_generations": 2, "max_completion_length": 4},
    ),
    "pretrain": ([{"text": "Oaks, elms and limes are trees."}] * 8, {}),
    "distill": ([{"messages": [ASKED]}] * 8, {"lmbda": 1, "max_completion_length": 4}),
}


@pytest.mark.parametrize("recipe", OTHER_RECIPES)
def test_every_kind_of_recipe_is_a_job_like_the_others(trainer: Trainer, recipe: str) -> None:
    """Its rows are judged at submission, it ends, its metrics are its own, its adapter is published."""
    rows, options = OTHER_RECIPES[recipe]
    dataset = trainer.upload("".join(json.dumps(row) + "\n" for row in rows))
    if recipe != "pretrain":  # which takes turns as well
        refused = refusal(lambda: trainer.create(trainer.spec(dataset, recipe="sft" if recipe != "kto" else "dpo")))
        assert refused.reason == "BAD_ROWS"
    spec = trainer.spec(dataset, steps=2, recipe=recipe)
    spec.recipe_options.update(options | ({"teacher_model": trainer.base_model} if recipe == "distill" else {}))
    job = trainer.create(spec)
    trainer.watch(job.name)
    done = trainer.get(job.name)
    assert done.state == job_pb2.JOB_STATE_SUCCEEDED, f"{done.error}{trainer.logs()}"
    own = {"dpo": "train_reward_margin", "kto": "train_kl", "grpo": "train_reward_length", "pretrain": "train_loss"}
    own["distill"] = "train_on_policy"
    assert own[recipe] in done.result.metrics
    assert done.result.training_data.rows_used == 8
    assert trainer.stores.models.get(done.result.fine_tuned_model, tenant=TENANT).kind == "adapter"


def test_a_classifier_and_what_it_is_merged_into_say_what_they_are_for(trainer: Trainer) -> None:
    rows = [{"text": tree, "label": label} for tree, label in (("An oak.", "tree"), ("A goose.", "bird"))] * 4
    dataset = trainer.upload("".join(json.dumps(row) + "\n" for row in rows))
    spec = trainer.spec(dataset, steps=2, recipe="sequence_classification")
    spec.recipe_options.update({"labels": ["bird", "tree"], "num_labels": 2})
    job = trainer.create(spec)
    trainer.watch(job.name)
    done = trainer.get(job.name)
    assert done.state == job_pb2.JOB_STATE_SUCCEEDED, f"{done.error}{trainer.logs()}"
    assert "train_accuracy" in done.result.metrics
    refused = refusal(lambda: trainer.create(trainer.spec(dataset, base_model=done.result.fine_tuned_model)))
    assert refused.reason == "BASE_HAS_OTHER_HEAD"
    merge = merge_job_pb2.MergeJob(spec=merge_job_pb2.MergeSpec(adapter=done.result.fine_tuned_model))
    created = trainer.call(trainer.merging.CreateMergeJob, merge_service_pb2.CreateMergeJobRequest(merge_job=merge))
    stream = trainer.merging.WatchMergeJob(
        merge_service_pb2.WatchMergeJobRequest(name=created.name), timeout=200, metadata=call_metadata(tenant=TENANT)
    )
    assert list(stream)[-1].state_change.to_state == job_pb2.JOB_STATE_SUCCEEDED, trainer.logs()
    merged = trainer.call(trainer.merging.GetMergeJob, merge_service_pb2.GetMergeJobRequest(name=created.name)).result
    for name in (done.result.fine_tuned_model, merged.merged_model):
        assert trainer.stores.models.get(name, tenant=TENANT).metadata["task"] == "sequence_classification"
    config = json.loads((trainer.download(merged.model_artifact) / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert config["id2label"] == {"0": "bird", "1": "tree"}


def test_an_adapter_of_another_kind_is_known_as_one_that_must_be_merged(trainer: Trainer, finished: Finished) -> None:
    spec = trainer.spec(finished.dataset, steps=2)
    spec.tuner.Clear()
    spec.tuner.kind = "loha"
    spec.tuner.options.update({"r": 4})
    job = trainer.create(spec)
    trainer.watch(job.name)
    result = trainer.get(job.name).result
    model = trainer.stores.models.get(result.fine_tuned_model, tenant=TENANT)
    assert (model.kind, model.lora_rank, model.metadata["tuner"]) == ("adapter", 0, "loha")
    with pytest.raises(MartletError, match=r"matrices of another kind \(loha\)"):
        check_plain_lora(model, model.metadata)
    merge = merge_job_pb2.MergeJob(spec=merge_job_pb2.MergeSpec(adapter=result.fine_tuned_model))
    created = trainer.call(trainer.merging.CreateMergeJob, merge_service_pb2.CreateMergeJobRequest(merge_job=merge))
    list(
        trainer.merging.WatchMergeJob(
            merge_service_pb2.WatchMergeJobRequest(name=created.name),
            timeout=200,
            metadata=call_metadata(tenant=TENANT),
        )
    )
    done = trainer.call(trainer.merging.GetMergeJob, merge_service_pb2.GetMergeJobRequest(name=created.name))
    assert done.state == job_pb2.JOB_STATE_SUCCEEDED, f"{done.error}"


@pytest.mark.parametrize("name", ["job_succeeds", "merge_job_succeeds"])
async def test_rules_of_the_contract_that_need_a_worker(trainer: Trainer, finished: Finished, name: str) -> None:
    (rule,) = [rule for rule in TRAINER_RULES if rule.name == name]
    async with grpc.aio.insecure_channel(trainer.address) as channel:
        target = TrainerTarget(
            channel,
            metadata=(("x-martlet-tenant", TENANT),),
            model=trainer.base_model,
            dataset=finished.dataset,
            adapter=finished.job.result.fine_tuned_model,
            run_seconds=200.0,
        )
        await assert_rule(rule, target)


def test_cancel_of_a_running_job(trainer: Trainer, rows: str) -> None:
    job = trainer.create(trainer.spec(trainer.upload(rows), steps=100_000))
    trainer.wait_until(lambda: trainer.get(job.name).progress.step >= 1, "a step")
    request = training_service_pb2.CancelTrainingJobRequest(name=job.name)
    trainer.call(trainer.training.CancelTrainingJob, request)
    trainer.wait_until(lambda: trainer.get(job.name).state == job_pb2.JOB_STATE_CANCELLED, "the end")
    error = refusal(lambda: trainer.call(trainer.training.CancelTrainingJob, request))
    assert error.code == "FAILED_PRECONDITION"
    assert "CANCELLED" in error.message


@pytest.mark.parametrize(
    ("change", "code", "texts"),
    [
        ({"base_model": "smollm2-135m-instruc"}, "NOT_FOUND", ["smollm2-135m-instruct"]),
        ({"base_model": "ft:tiny-llama:acme:nothing:12345678"}, "NOT_FOUND", ["spec.base_model"]),
        ({"base_model": "file:///etc"}, "PERMISSION_DENIED", ["MARTLET_MODEL_ROOTS"]),
        ({"training_dataset": "artifacts/0123456789abcdefghjk"}, "NOT_FOUND", ["spec.training_dataset"]),
        ({"training_dataset": ""}, "INVALID_ARGUMENT", ["spec.training_dataset"]),
        ({"recipe": "stf"}, "INVALID_ARGUMENT", ["spec.recipe"]),
        (
            {"hyperparameters": training_job_pb2.Hyperparameters(learning_rate=-1.0)},
            "INVALID_ARGUMENT",
            ["spec.hyperparameters.learning_rate", "-1"],
        ),
        ({"tuner": training_job_pb2.TunerConfig(lora_rank=0)}, "INVALID_ARGUMENT", ["spec.tuner.lora_rank"]),
        ({"suffix": "with space"}, "INVALID_ARGUMENT", ["spec.suffix"]),
    ],
)
def test_bad_requests_are_refused_at_once(
    trainer: Trainer, rows: str, change: dict[str, Any], code: str, texts: list[str]
) -> None:
    spec = trainer.spec(**{"dataset": trainer.upload(rows), **change})
    error = refusal(lambda: trainer.create(spec))
    assert error.code == code
    for text in texts:
        assert text in error.message


@pytest.mark.parametrize(
    ("text", "texts"),
    [
        ("", ["empty"]),
        ("\n".join(['{"prompt": "a", "completion": "b"}'] * 811 + ["not json"]), ["line 812"]),
        ('{"messages": [{"role": "user", "content": "hi"}]}\n', ["line 1", "assistant"]),
    ],
    ids=["empty", "not-json", "no-assistant-turn"],
)
def test_bad_data_sets_are_refused_with_line_and_remedy(trainer: Trainer, text: str, texts: list[str]) -> None:
    error = refusal(lambda: trainer.create(trainer.spec(trainer.upload(text))))
    assert error.code == "INVALID_ARGUMENT"
    assert error.violations[0].field == "spec.training_dataset"
    for part in texts:
        assert part in error.message


def test_data_set_and_job_of_another_tenant_are_not_found(trainer: Trainer, rows: str) -> None:
    theirs = trainer.upload(rows, tenant="evil")
    assert refusal(lambda: trainer.create(trainer.spec(theirs))).code == "NOT_FOUND"
    job = trainer.create(trainer.spec(theirs), tenant="evil")
    assert refusal(lambda: trainer.get(job.name)).code == "NOT_FOUND"
    request = training_service_pb2.CancelTrainingJobRequest(name=job.name)
    assert refusal(lambda: trainer.call(trainer.training.CancelTrainingJob, request)).code == "NOT_FOUND"
    trainer.call(trainer.training.CancelTrainingJob, request, tenant="evil")


def test_base_models_are_listed(trainer: Trainer) -> None:
    request = training_service_pb2.ListBaseModelsRequest(page_size=1)
    models = trainer.call(trainer.training.ListBaseModels, request).base_models
    assert [model.name for model in models] == ["smollm2-135m-instruct"]
    assert models[0].parameter_count > 1e8


def test_serve_sweeps_the_object_store(trainer: Trainer) -> None:
    dead = ref_key("0" * 64, "dead")
    trainer.stores.objects.put(dead, json.dumps({"time": 0}).encode())
    trainer.wait_until(lambda: trainer.stores.objects.size(dead) is None, "the sweep")


def test_idle_worker_is_small(trainer: Trainer) -> None:
    trainer.wait_until(lambda: not trainer.recipes(trainer.worker), "the worker to be idle")
    assert trainer.worker.poll() is None
    kilobytes = subprocess.run(
        ["ps", "-o", "rss=", "-p", str(trainer.worker.pid)], check=True, capture_output=True, text=True
    ).stdout
    assert int(kilobytes) < 120 * 1024
