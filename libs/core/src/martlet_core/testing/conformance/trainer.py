"""The rules of ``martlet.trainer.v1``: TrainingService, and MergeService, which a trainer may leave out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from martlet.common.v1 import job_pb2
from martlet.trainer.v1 import merge_job_pb2, merge_service_pb2, training_service_pb2
from martlet.trainer.v1 import merge_service_pb2_grpc as merge_grpc
from martlet.trainer.v1 import training_job_pb2 as pb
from martlet.trainer.v1 import training_service_pb2_grpc as training_grpc

from martlet_core.testing.conformance.checks import check_list, require
from martlet_core.testing.conformance.job_rules import rules_of_jobs
from martlet_core.testing.conformance.jobs import JobKind, Jobs, JobTarget
from martlet_core.testing.conformance.rules import Rule, Skipped, option

#: Long enough that no job of a rule comes to its end by itself.
_STEPS = 100_000


@dataclass(frozen=True)
class TrainerTarget(JobTarget):
    """A trainer.

    Attributes:
        model: a base model it knows.
        dataset: ``artifacts/{id}`` of rows it can train on.
        adapter: an adapter it can merge, a fine-tuned model's name or ``artifacts/{id}``.
    """

    model: str = option("smollm2-135m-instruct", "a base model that the trainer knows")
    dataset: str = option("", "artifacts/{id} of rows that it can train on")
    adapter: str = option("", "an adapter that it can merge: a fine-tuned model's name or artifacts/{id}")


# Training


def _training_spec(target: TrainerTarget) -> dict[str, Any]:
    return {
        "base_model": target.model,
        "training_dataset": target.dataset,
        "hyperparameters": pb.Hyperparameters(max_steps=_STEPS, per_device_batch_size=1),
        "tuner": pb.TunerConfig(kind="lora", lora_rank=4),
        "suffix": "conf-1",
    }


def _check_trained(target: TrainerTarget, job: pb.TrainingJob, events: Sequence[job_pb2.JobEvent]) -> None:
    result = job.result
    require(result.fine_tuned_model, "result.fine_tuned_model is empty")
    require(result.model_artifact.startswith("artifacts/"), f"model_artifact is {result.model_artifact!r}")
    require(result.training_data.rows_used > 0, "result.training_data.rows_used is 0")
    require(job.progress.step == 1, f"progress.step is {job.progress.step}")
    steps = [event.metrics.step for event in events if event.WhichOneof("detail") == "metrics"]
    require(1 in steps, f"there are metrics of the steps {steps}, not of step 1")


TRAINING = JobKind(
    noun="TrainingJob",
    service="TrainingService",
    service_messages=training_service_pb2,
    stub=training_grpc.TrainingServiceStub,
    job=pb.TrainingJob,
    spec=pb.TrainingSpec,
    sound_spec=_training_spec,
    inputs={"training_dataset": "--dataset"},
    another={"seed": 12345},
    bad_fields=(
        ("base_model", {"base_model": ""}),
        ("training_dataset", {"training_dataset": ""}),
        ("training_dataset", {"training_dataset": "not a resource name"}),
        ("recipe", {"recipe": "no-such-recipe"}),
        ("suffix", {"suffix": "no spaces / slashes"}),
        ("seed", {"seed": -1}),
        ("kind", {"tuner": pb.TunerConfig(kind="no-such-tuner")}),
        ("lora_dropout", {"tuner": pb.TunerConfig(lora_dropout=1.5)}),
        ("learning_rate", {"hyperparameters": pb.Hyperparameters(learning_rate=-1e-4)}),
        ("epoch_count", {"hyperparameters": pb.Hyperparameters(epoch_count=0)}),
        ("max_steps", {"hyperparameters": pb.Hyperparameters(max_steps=0)}),
        ("per_device_batch_size", {"hyperparameters": pb.Hyperparameters(per_device_batch_size=0)}),
        ("learning_rate_schedule", {"hyperparameters": pb.Hyperparameters(learning_rate_schedule="zigzag")}),
        ("warmup_ratio", {"hyperparameters": pb.Hyperparameters(warmup_ratio=2.0)}),
        ("max_length", {"data": pb.DataConfig(max_length=1)}),
        ("validation_split", {"data": pb.DataConfig(validation_split=0.9)}),
        ("priority", {"resources": pb.ResourceConfig(priority=10)}),
        ("max_attempts", {"resources": pb.ResourceConfig(max_attempts=0)}),
        ("interval_steps", {"checkpoints": pb.CheckpointConfig(interval_steps=0)}),
        ("lora_rank", {"tuner": pb.TunerConfig(lora_rank=0)}),
    ),
    unknown_inputs=(
        ("base_model", {"base_model": "no-such-model-anywhere"}),
        ("training_dataset", {"training_dataset": "artifacts/nosuchartifact0000"}),
    ),
    result_field="fine_tuned_model",
    short={"hyperparameters": pb.Hyperparameters(max_steps=1, per_device_batch_size=1)},
    success="A sound training of one step ends SUCCEEDED with a model to use, its artifact, a data report, metrics and, "
    "among its events, the metrics of the step.",
    check_success=_check_trained,
)


async def base_models_are_listed(jobs: Jobs) -> None:
    """ListBaseModels gives models with names of their own, in pages."""

    async def page(size: int, token: str) -> tuple[Sequence[str], str]:
        request = training_service_pb2.ListBaseModelsRequest(page_size=size, page_token=token)
        stub: Any = training_grpc.TrainingServiceStub(jobs.target.channel)
        answer = await stub.ListBaseModels(request, **jobs.target.call_options)
        return [model.name for model in answer.base_models], answer.next_page_token

    await check_list("ListBaseModels", page)


async def new_job_has_no_checkpoints(jobs: Jobs) -> None:
    """ListTrainingCheckpoints of a job that was never run is empty."""
    job = await jobs.cancelled()
    if job.attempt:
        raise Skipped("a worker had begun with the job")
    answer = await jobs.calls_about(job.name)["ListTrainingCheckpoints"]()
    require(not answer.checkpoints and not answer.next_page_token, f"it has {len(answer.checkpoints)} checkpoints")


# Merging


def _check_merged(target: TrainerTarget, job: merge_job_pb2.MergeJob, events: Sequence[job_pb2.JobEvent]) -> None:
    result = job.result
    require(result.merged_model, "result.merged_model is empty")
    require(result.model_artifact.startswith("artifacts/"), f"model_artifact is {result.model_artifact!r}")
    require(result.positions > 0, "result.positions is 0")
    require(0 <= result.top1_agreement <= 1, f"top1_agreement is {result.top1_agreement}")
    worst, mean = result.max_logprob_difference, result.mean_logprob_difference
    require(0 <= mean <= worst, f"the mean difference is {mean}, the largest {worst}")


MERGING = JobKind(
    noun="MergeJob",
    service="MergeService",
    service_messages=merge_service_pb2,
    stub=merge_grpc.MergeServiceStub,
    job=merge_job_pb2.MergeJob,
    spec=merge_job_pb2.MergeSpec,
    sound_spec=lambda target: {"adapter": target.adapter, "suffix": "conf-1"},
    inputs={"adapter": "--adapter"},
    another={"suffix": "another"},
    bad_fields=(
        ("adapter", {"adapter": ""}),
        ("suffix", {"suffix": "no spaces / slashes"}),
        ("max_logprob_difference", {"max_logprob_difference": 0.0}),
        ("precision", {"precision": "float7"}),
    ),
    unknown_inputs=(
        ("adapter", {"adapter": "ft:no-such:adapter:anywhere"}),
        ("artifact", {"adapter": "artifacts/nosuchartifact0000"}),
    ),
    result_field="merged_model",
    success="A sound merge ends SUCCEEDED with a model to use, its artifact, and how far its answers are from the unmerged "
    "model's.",
    check_success=_check_merged,
    optional=True,
    prefix="merge_",
)

#: All rules, in the order they are tried.
MERGE_RULES: tuple[Rule, ...] = rules_of_jobs(MERGING)
TRAINER_RULES: tuple[Rule, ...] = (
    *rules_of_jobs(TRAINING, base_models_are_listed, new_job_has_no_checkpoints),
    *MERGE_RULES,
)
