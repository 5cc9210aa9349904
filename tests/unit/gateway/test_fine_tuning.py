"""Fine-tuning jobs, with the stock client and a trainer that keeps jobs in a dict."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from martlet.common.v1 import job_pb2
from martlet.trainer.v1 import training_job_pb2
from martlet_core.errors import FieldViolation, InvalidArgument, Unavailable
from martlet_core.rpc.status import to_status


@pytest.fixture
async def client(gateway: Any) -> openai.AsyncOpenAI:
    return gateway.openai()


async def test_create_says_everything_to_the_trainer(gateway: Any, client: Any, tools: Any) -> None:
    train, valid = await gateway.upload(), await gateway.upload(5)
    job = await client.fine_tuning.jobs.create(
        model=tools.base,
        training_file=train,
        validation_file=valid,
        suffix="demo.1",
        seed=7,
        metadata={"team": "x"},
        method={
            "type": "supervised",
            "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": 64, "learning_rate_multiplier": "auto"}},
        },
        extra_body={
            "martlet": {
                "lora_rank": 16,
                "tuner": {"kind": "qlora", "target_modules": ["q_proj"]},
                "data": {"on_bad_rows": "skip", "packing": True},
                "resources": {"priority": 9, "device": "cpu"},
                "max_length": 512,
                "display_name": "Mine",
            }
        },
    )
    call = gateway.trainer.calls[-1]
    assert (call.method, call.tenant) == ("CreateTrainingJob", "acme")
    made, spec = call.request.training_job, call.request.training_job.spec
    assert spec == training_job_pb2.TrainingSpec(
        base_model=tools.base,
        training_dataset=train.replace("file-", "artifacts/"),
        validation_dataset=valid.replace("file-", "artifacts/"),
        recipe="sft",
        suffix="demo.1",
        seed=7,
        tuner=training_job_pb2.TunerConfig(kind="qlora", lora_rank=16, target_modules=["q_proj"]),
        hyperparameters=training_job_pb2.Hyperparameters(
            epoch_count=2, per_device_batch_size=8, gradient_accumulation_steps=8
        ),
        data=training_job_pb2.DataConfig(on_bad_rows=training_job_pb2.ON_BAD_ROWS_SKIP, packing=True, max_length=512),
        resources=training_job_pb2.ResourceConfig(priority=9, device=training_job_pb2.DEVICE_CPU),
    )
    assert made.display_name == "Mine"
    assert dict(made.labels) == {"team": "x"}
    assert call.request.request_id
    assert job.status == "queued"


async def test_fields_that_openai_requires_are_never_null(gateway: Any, client: Any, tools: Any) -> None:
    file_id = await gateway.upload()
    job = await client.fine_tuning.jobs.create(model=tools.base, training_file=file_id)
    required = ("id", "created_at", "object", "model", "status", "organization_id", "result_files", "seed")
    assert all(getattr(job, name) is not None for name in (*required, "training_file", "hyperparameters"))
    assert job.object == "fine_tuning.job"
    assert job.organization_id == "acme"
    assert job.method
    assert job.method.supervised
    assert job.method.supervised.hyperparameters
    assert job.method.supervised.hyperparameters.n_epochs == "auto"
    assert job.error is None
    assert job.martlet["queue_position"] == 1
    assert job.martlet["state"] == "QUEUED"


async def test_finished_job(gateway: Any, client: Any, tools: Any) -> None:
    made = await client.fine_tuning.jobs.create(
        model=tools.base, training_file=await gateway.upload(), hyperparameters={"n_epochs": 3}
    )
    done = gateway.trainer.finish(
        made.id,
        fine_tuned_model="ft:x:acme::12345678",
        model_artifact="artifacts/m1",
        metrics_artifact="artifacts/c1",
        trained_tokens=12345,
        device="NVIDIA H200 x 2",
    )
    done.result.resolved_config.update({"hyperparameters": {"per_device_batch_size": 4, "epoch_count": 3.0}})
    job = await client.fine_tuning.jobs.retrieve(made.id)
    assert job.status == "succeeded"
    assert job.fine_tuned_model == "ft:x:acme::12345678"
    assert job.result_files == ["file-c1"]
    assert job.trained_tokens == 12345
    assert job.finished_at
    assert job.hyperparameters.n_epochs == 3
    assert job.hyperparameters.batch_size == 4
    assert job.martlet["model_artifact"] == "artifacts/m1"
    assert job.martlet["device"] == "NVIDIA H200 x 2"


async def test_running_job_says_when_it_ends(gateway: Any, client: Any, tools: Any) -> None:
    made = await client.fine_tuning.jobs.create(model=tools.base, training_file=await gateway.upload())
    job = gateway.trainer.jobs[made.id.removeprefix("ftjob-")]
    job.state = job_pb2.JOB_STATE_RUNNING
    job.progress.MergeFrom(job_pb2.JobProgress(step=5, total_steps=10, fraction=0.5))
    job.progress.eta.FromSeconds(60)
    job.progress.metrics["tokens_per_second"] = 812.5
    job.progress.metrics["loss"] = float("nan")
    seen = await client.fine_tuning.jobs.retrieve(made.id)
    assert seen.status == "running"
    assert seen.estimated_finish == job.update_time.seconds + 60
    assert seen.martlet["progress"]["step"] == 5
    assert seen.martlet["progress"]["metrics"]["loss"] is None
    assert seen.martlet["tokens_per_second"] == 812.5
    assert seen.martlet["eta_seconds"] == 60


async def test_failed_job_says_why(gateway: Any, client: Any, tools: Any) -> None:
    made = await client.fine_tuning.jobs.create(model=tools.base, training_file=await gateway.upload())
    job = gateway.trainer.jobs[made.id.removeprefix("ftjob-")]
    job.state = job_pb2.JOB_STATE_FAILED
    error = InvalidArgument(
        "spec.training_dataset: row 3: no assistant turn",
        reason="INVALID_TRAINING_FILE",
        violations=[FieldViolation("spec.training_dataset", "row 3: no assistant turn")],
    )
    job.error.CopyFrom(to_status(error))
    seen = await client.fine_tuning.jobs.retrieve(made.id)
    assert seen.error
    assert (seen.error.code, seen.error.param) == ("invalid_training_file", "training_file")
    assert seen.error.message == "training_file: row 3: no assistant turn"


async def test_cancel_pause_resume(gateway: Any, client: Any, tools: Any) -> None:
    made = await client.fine_tuning.jobs.create(model=tools.base, training_file=await gateway.upload())
    assert (await client.fine_tuning.jobs.pause(made.id)).status == "paused"
    assert (await client.fine_tuning.jobs.resume(made.id)).status == "queued"
    assert (await client.fine_tuning.jobs.cancel(made.id)).status == "cancelled"


async def test_listing_pages_and_filters(gateway: Any, client: Any, tools: Any) -> None:
    file_id = await gateway.upload()
    made = []
    for index in range(5):
        metadata = {"team": "a"} if index % 2 else None
        job = await client.fine_tuning.jobs.create(model=tools.base, training_file=file_id, metadata=metadata)
        made.append(job.id)
    assert [job.id async for job in client.fine_tuning.jobs.list(limit=2)] == made[::-1]
    assert [job.id async for job in client.fine_tuning.jobs.list(metadata={"team": "a"})] == [made[3], made[1]]
    assert [job.id async for job in client.fine_tuning.jobs.list(extra_query={"metadata": "null"})] == [
        made[4],
        made[2],
        made[0],
    ]
    other = gateway.openai(gateway.other_key)
    assert [job.id async for job in other.fine_tuning.jobs.list()] == []


async def test_events_are_newest_first_and_page(gateway: Any, client: Any, tools: Any) -> None:
    made = await client.fine_tuning.jobs.create(model=tools.base, training_file=await gateway.upload())
    gateway.trainer.say(
        made.id,
        job_pb2.JobEvent(
            message="QUEUED",
            state_change=job_pb2.StateChange(to_state=job_pb2.JOB_STATE_QUEUED, reason="CREATED"),
        ),
        *(
            job_pb2.JobEvent(
                message=f"step {i}",
                metrics=job_pb2.MetricsReport(step=i, values={"loss": 2.0 / i, "token_accuracy": 0.5}),
            )
            for i in range(1, 5)
        ),
        job_pb2.JobEvent(message="careful", level=job_pb2.EVENT_LEVEL_WARN, log_line=job_pb2.LogLine(source="stderr")),
    )
    events = [event async for event in client.fine_tuning.jobs.list_events(made.id, limit=2)]
    assert [event.message for event in events] == ["careful", "step 4", "step 3", "step 2", "step 1", "QUEUED"]
    assert len({event.id for event in events}) == 6
    assert (events[0].level, events[0].type) == ("warn", "message")
    assert events[1].type == "metrics"
    assert events[1].data == {
        "step": 4,
        "loss": 0.5,
        "token_accuracy": 0.5,
        "train_loss": 0.5,
        "train_mean_token_accuracy": 0.5,
    }


async def test_a_page_of_events_reads_no_more_than_it_gives(gateway: Any, client: Any, tools: Any) -> None:
    made = await client.fine_tuning.jobs.create(model=tools.base, training_file=await gateway.upload())
    gateway.trainer.say(made.id, *(job_pb2.JobEvent(message=f"m{i}") for i in range(50)))
    gateway.trainer.calls.clear()
    first = await client.fine_tuning.jobs.list_events(made.id, limit=10)
    second = await client.fine_tuning.jobs.list_events(made.id, limit=10, after=first.data[-1].id)
    assert [event.message for event in [*first.data, *second.data]] == [f"m{i}" for i in range(49, 29, -1)]
    assert first.has_more
    requests = [call.request for call in gateway.trainer.calls]
    assert [(request.page_size, request.newest_first) for request in requests] == [(11, True), (11, True)]


@pytest.mark.parametrize(("said", "more"), [(999, False), (1000, False), (1001, True)])
async def test_largest_page_of_events_knows_whether_there_are_more(
    gateway: Any, client: Any, tools: Any, said: int, more: bool
) -> None:
    made = await client.fine_tuning.jobs.create(model=tools.base, training_file=await gateway.upload())
    gateway.trainer.say(made.id, *(job_pb2.JobEvent(message=f"m{i}") for i in range(said)))
    page = await client.fine_tuning.jobs.list_events(made.id, limit=1000)
    assert (len(page.data), page.has_more) == (min(said, 1000), more)
    assert page.data[0].message == f"m{said - 1}"


async def test_event_of_another_job_is_no_place_to_go_on_from(gateway: Any, client: Any, tools: Any) -> None:
    file_id = await gateway.upload()
    mine, other = [await client.fine_tuning.jobs.create(model=tools.base, training_file=file_id) for _ in range(2)]
    gateway.trainer.say(other.id, job_pb2.JobEvent(message="other"))
    (event,) = (await client.fine_tuning.jobs.list_events(other.id)).data
    with pytest.raises(openai.BadRequestError, match="not the id of an event of this job"):
        await client.fine_tuning.jobs.list_events(mine.id, after=event.id)


async def test_events_stream_and_go_on_behind_an_id(gateway: Any, client: Any, tools: Any) -> None:
    made = await client.fine_tuning.jobs.create(model=tools.base, training_file=await gateway.upload())
    gateway.trainer.say(made.id, *(job_pb2.JobEvent(message=f"m{i}") for i in range(3)))
    http = gateway.http()
    url = f"/v1/fine_tuning/jobs/{made.id}/events"
    answer = await http.get(url, params={"stream": "true"})
    assert answer.headers["content-type"].startswith("text/event-stream")
    blocks = answer.text.strip().split("\n\n")
    assert blocks[-1] == "data: [DONE]"
    events = [json.loads(block.split("data: ", 1)[1]) for block in blocks[:-1]]
    assert [event["message"] for event in events] == ["m0", "m1", "m2"]
    again = await http.get(url, params={"stream": "true"}, headers={"last-event-id": events[1]["id"]})
    assert "m2" in again.text
    assert "m1" not in again.text


async def test_checkpoints(gateway: Any, client: Any, tools: Any) -> None:
    made = await client.fine_tuning.jobs.create(model=tools.base, training_file=await gateway.upload())
    gateway.trainer.checkpoints[made.id.removeprefix("ftjob-")] = [
        training_job_pb2.TrainingCheckpoint(
            artifact=f"artifacts/c{step}",
            step=step,
            metrics={"valid_loss": 1.5},
            fine_tuned_model=f"ft:x:ckpt-step-{step}",
        )
        for step in (30, 20, 10)
    ]
    found = [c async for c in client.fine_tuning.jobs.checkpoints.list(made.id, limit=2)]
    assert [c.step_number for c in found] == [30, 20, 10]
    assert found[0].fine_tuned_model_checkpoint == "ft:x:ckpt-step-30"
    assert found[0].fine_tuning_job_id == made.id
    assert found[0].metrics.valid_loss == 1.5


async def test_retry_of_the_stock_client_makes_one_job(gateway: Any, tools: Any) -> None:
    """The trainer makes the job, its answer is lost: the client's second try must find that job."""
    client = gateway.openai(max_retries=2)
    file_id = await gateway.upload()
    gateway.trainer.failures["CreateTrainingJob"] = [Unavailable("gone for a moment")]
    job = await client.fine_tuning.jobs.create(model=tools.base, training_file=file_id)
    creates = [call for call in gateway.trainer.calls if call.method == "CreateTrainingJob"]
    assert len(creates) == 2
    assert creates[0].request.request_id == creates[1].request.request_id
    again = await client.fine_tuning.jobs.create(model=tools.base, training_file=file_id)
    assert again.id != job.id, "a second deliberate create is a second job"


async def test_idempotency_key_makes_one_job(gateway: Any, client: Any, tools: Any) -> None:
    file_id = await gateway.upload()
    headers = {"Idempotency-Key": "mine-1"}
    made = [
        (await client.fine_tuning.jobs.create(model=tools.base, training_file=file_id, extra_headers=headers)).id
        for _ in range(2)
    ]
    assert made[0] == made[1]


WANDB = {"type": "wandb", "wandb": {"project": "birds", "name": "first", "tags": ["a"]}}


async def test_integrations_become_trackers_and_are_answered(gateway: Any, client: Any, tools: Any) -> None:
    job = await client.fine_tuning.jobs.create(
        model=tools.base,
        training_file=await gateway.upload(),
        integrations=[WANDB],
        extra_body={"martlet": {"trackers": [{"kind": "tensorboard"}]}},
    )
    wandb, tensorboard = gateway.trainer.calls[-1].request.training_job.spec.trackers
    assert (wandb.kind, wandb.project, wandb.run_name, wandb.entity, list(wandb.tags)) == (
        "wandb",
        "birds",
        "first",
        "",
        ["a"],
    )
    assert (tensorboard.kind, tensorboard.project) == ("tensorboard", "")
    [integration] = (await client.fine_tuning.jobs.retrieve(job.id)).integrations
    assert integration.model_dump() == {**WANDB, "wandb": {**WANDB["wandb"], "entity": None}}


async def test_dpo_goes_to_the_recipe_of_that_name(gateway: Any, client: Any, tools: Any) -> None:
    job = await client.fine_tuning.jobs.create(
        model=tools.base,
        training_file=await gateway.upload(),
        method={"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2, "n_epochs": 1}}},
    )
    spec = gateway.trainer.calls[-1].request.training_job.spec
    assert (spec.recipe, dict(spec.recipe_options)) == ("dpo", {"beta": 0.2})
    assert job.hyperparameters.model_dump(exclude_none=True) == {}
    assert job.method
    assert job.method.type == "dpo"
    assert job.method.dpo.hyperparameters.beta == 0.2


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"method": {"type": "reinforcement"}}, "method.reinforcement.grader"),
        ({"method": {"type": "supervised", "dpo": {}}}, "method.dpo"),
        ({"integrations": [{"type": "mlflow", "wandb": {"project": "p"}}]}, "integrations[0].type"),
        ({"integrations": [{"type": "wandb", "wandb": {"name": "p"}}]}, "integrations[0].wandb.project"),
        ({"extra_body": {"martlet": {"trackers": [{"name": "p"}]}}}, "martlet.trackers[0].name"),
        ({"suffix": "no spaces"}, "suffix"),
        ({"seed": -1}, "seed"),
        ({"metadata": {"k" * 65: "v"}}, "metadata"),
        ({"hyperparameters": {"batch_size": 0}}, "hyperparameters.batch_size"),
        ({"hyperparameters": {"learning_rate_multiplier": 0}}, "hyperparameters.learning_rate_multiplier"),
        ({"extra_body": {"martlet": {"base_model": "x"}}}, "martlet.base_model"),
        ({"extra_body": {"martlet": {"data": {"on_bad_rows": "ignore"}}}}, "martlet.data.on_bad_rows"),
        ({"extra_body": {"martlet": {"lora_rank": 8, "tuner": {"lora_rank": 4}}}}, "martlet.tuner.lora_rank"),
        (
            {"hyperparameters": {"n_epochs": 2}, "extra_body": {"martlet": {"epoch_count": 3}}},
            "martlet.hyperparameters.epoch_count",
        ),
    ],
)
async def test_fields_that_cannot_be_are_refused(
    gateway: Any, client: Any, tools: Any, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.fine_tuning.jobs.create(model=tools.base, training_file=await gateway.upload(), **fields)
    assert caught.value.param == param
    assert not [call for call in gateway.trainer.calls if call.method == "CreateTrainingJob"]


async def test_trainer_that_is_away_is_a_503(gateway: Any, client: Any) -> None:
    gateway.trainer.failures["ListTrainingJobs"] = [Unavailable("starting")] * 10
    with pytest.raises(openai.InternalServerError) as caught:
        await client.fine_tuning.jobs.list()
    assert caught.value.status_code == 503


@pytest.mark.parametrize(
    ("refused", "fields", "param"),
    [
        ("spec.recipe", {"method": {"type": "dpo"}}, "method.type"),
        ("spec.recipe", {"extra_body": {"martlet": {"recipe": "grpo"}}}, "martlet.recipe"),
        ("spec.hyperparameters.epoch_count", {"hyperparameters": {"n_epochs": 3}}, "hyperparameters.n_epochs"),
        (
            "spec.hyperparameters.per_device_batch_size",
            {"method": {"type": "supervised", "supervised": {"hyperparameters": {"batch_size": 3}}}},
            "method.supervised.hyperparameters.batch_size",
        ),
        (
            "spec.hyperparameters.epoch_count",
            {"extra_body": {"martlet": {"epoch_count": 3}}},
            "martlet.hyperparameters.epoch_count",
        ),
        ("spec.suffix", {"suffix": "x"}, "suffix"),
        ("spec.trackers.0.kind", {"integrations": [WANDB]}, "integrations[0].type"),
        ("spec.trackers.0.run_name", {"integrations": [WANDB]}, "integrations[0].wandb.name"),
        (
            "spec.trackers.1.project",
            {"integrations": [WANDB], "extra_body": {"martlet": {"trackers": [{"kind": "mlflow"}]}}},
            "martlet.trackers[0].project",
        ),
    ],
)
async def test_what_the_trainer_refuses_is_named_as_it_was_given(
    gateway: Any, client: Any, tools: Any, refused: str, fields: dict[str, Any], param: str
) -> None:
    gateway.trainer.failures["CreateTrainingJob"] = [InvalidArgument.field(refused, "is not what it should be")]
    with pytest.raises(openai.BadRequestError) as caught:
        await client.fine_tuning.jobs.create(model=tools.base, training_file=await gateway.upload(), **fields)
    assert caught.value.param == param
    assert f"{param}: is not what it should be" in caught.value.message
