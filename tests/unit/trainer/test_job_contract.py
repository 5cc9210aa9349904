"""Jobs between the contract and the record, and their names."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf.wrappers_pb2 import StringValue
from martlet.trainer.v1 import training_job_pb2, training_service_pb2
from martlet_core.errors import InvalidArgument
from martlet_core.job_resource import spec_to_dict
from martlet_core.job_service import JobService
from martlet_core.jobs import Job, JobState
from martlet_core.model_rules import published_name
from martlet_core.testing.bell import MemoryBell
from martlet_trainer import convert
from martlet_trainer.config import parse_training_config
from martlet_trainer.naming import TRAINING, checkpoint_model_name
from martlet_trainer.testing_jobs import BASE
from martlet_trainer.testing_jobs import JobKit as Kit


@pytest.fixture
def kit(tmp_path: Path) -> Kit:
    return Kit(tmp_path)


@pytest.mark.parametrize(
    ("base_model", "short"),
    [
        ("smollm2-135m-instruct", "smollm2-135m-instruct"),
        ("org/model@0123abc", "model"),
        ("file:///models/llama/", "llama"),
        ("artifacts/0123", "0123"),
        ("ft:llama:acme:x:12345678", "llama"),
    ],
)
def test_fine_tuned_names(base_model: str, short: str) -> None:
    assert published_name(base_model, "acme", None, "0123456789abcdefghjk") == f"ft:{short}:acme::cdefghjk"


def test_spec_survives_the_record_as_it_was_asked(kit: Kit) -> None:
    spec = training_job_pb2.TrainingSpec(
        base_model=BASE,
        training_dataset=kit.dataset,
        hyperparameters=training_job_pb2.Hyperparameters(max_steps=12345678901, learning_rate=2e-4, weight_decay=0.0),
        data=training_job_pb2.DataConfig(on_bad_rows=training_job_pb2.ON_BAD_ROWS_SKIP, packing=False),
        seed=0,
    )
    spec.recipe_options.update({})
    request = training_service_pb2.CreateTrainingJobRequest(training_job=training_job_pb2.TrainingJob(spec=spec))
    config = parse_training_config(spec_to_dict(spec))
    new = convert.new_training_job(request, config, "trainer")
    draft = JobService("trainer", kit.stores, MemoryBell()).draft("acme", new)
    shown = convert.TRAINING_JOBS.to_proto(draft)
    assert shown.spec == spec
    assert shown.spec.hyperparameters.HasField("weight_decay"), "a zero that was asked for became unset"
    assert (config.data.on_bad_rows, config.hyperparameters.max_steps, config.seed) == ("skip", 12345678901, 0)


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (StringValue(value="a lot").SerializeToString(), "epoch_count (field 1) is of another type"),
        (b"\xf8\x07\x01", "field 127 isn't known"),
    ],
)
def test_fields_that_protobuf_would_ignore_are_refused(sent: bytes, told: str) -> None:
    numbers = training_job_pb2.Hyperparameters.FromString(sent)
    with pytest.raises(InvalidArgument) as caught:
        spec_to_dict(training_job_pb2.TrainingSpec(base_model=BASE, hyperparameters=numbers))
    assert caught.value.violations[0].field == "spec.hyperparameters"
    assert told in caught.value.message


def test_priority_and_attempts_reach_the_job(kit: Kit) -> None:
    resources = training_job_pb2.ResourceConfig(priority=8, max_attempts=2)
    spec = training_job_pb2.TrainingSpec(base_model=BASE, training_dataset=kit.dataset, resources=resources)
    request = training_service_pb2.CreateTrainingJobRequest(training_job=training_job_pb2.TrainingJob(spec=spec))
    new = convert.new_training_job(request, parse_training_config(spec_to_dict(spec)), "trainer")
    draft = JobService("trainer", kit.stores, MemoryBell()).draft("acme", new)
    assert (draft.priority, draft.max_attempts) == (8, 2)


def test_job_as_the_contract_shows_it(kit: Kit) -> None:
    job = Job(
        "0123456789abcdefghjk",
        "trainer",
        TRAINING,
        "acme",
        {"base_model": BASE, "training_dataset": kit.dataset},
        "trainer",
        state=JobState.FAILED,
        attempt=2,
        create_time=1.5,
        end_time=2.5,
        progress={"step": 5, "total_steps": 10, "metrics": {"loss": 1.5}, "eta_seconds": 3.0, "phase": "training"},
        result={
            "training_data": {"rows_read": 3, "issues": [{"line": 1, "field": "", "message": "m", "refused": True}]}
        },
        error={"code": "INVALID_ARGUMENT", "message": "no", "reason": "BAD_ROWS", "metadata": {}, "violations": []},
    )
    shown = convert.TRAINING_JOBS.to_proto(job)
    assert shown.name == "trainingJobs/0123456789abcdefghjk"
    assert shown.error.message == "no"
    assert shown.progress.fraction == 0.5
    assert shown.progress.phase == ""
    assert not shown.progress.HasField("eta")
    assert not shown.HasField("start_time")
    assert shown.end_time.ToMicroseconds() == 2_500_000
    assert shown.result.training_data.issues[0].line == 1


@pytest.mark.parametrize("name", ["", "trainingJobs/", "mergeJobs/0123", "trainingJobs/../x", "trainingJobs/0123/x"])
def test_malformed_job_names(name: str) -> None:
    with pytest.raises(InvalidArgument, match="trainingJobs/<id>"):
        convert.TRAINING_JOBS.job_id(name)


def test_checkpoint_name_of_a_published_base() -> None:
    spec = {"base_model": "ft:llama:acme:x:12345678", "training_dataset": "artifacts/0123"}
    job = Job("0123456789abcdefghjk", "trainer", TRAINING, "acme", spec, "trainer")
    assert checkpoint_model_name(job, 3) == "ft:llama:acme::cdefghjk:ckpt-step-3"
