"""The kinds of jobs that stages keep, as data: routes, artifact use and runs are written once for all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from google.protobuf.message import Message
from martlet.evaluator.v1 import evaluation_job_pb2, evaluation_service_pb2
from martlet.quantizer.v1 import quantization_job_pb2, quantization_service_pb2
from martlet.trainer.v1 import merge_job_pb2, merge_service_pb2, training_job_pb2, training_service_pb2
from martlet_core.errors import NotFound
from martlet_core.ids import ID_PATTERN

from martlet_gateway.clients import StageClient, Stages


@dataclass(frozen=True)
class JobKind:
    """A kind of job that a stage keeps.

    Attributes:
        path: of its routes.
        stage: which of ``Stages`` keeps it.
        service: name by which the stage's ``StageClient`` knows the service.
        collection: first part of the resource name.
        noun: as in the methods (``CreateTrainingJob``).
        field: of the job in the create request.
        jobs: of the jobs in the list response.
        spec: message of what is asked for.
        prefixes: that ids may carry beside none.
        can_pause: whether it can be paused and resumed, and lists its events.
    """

    path: str
    stage: Literal["trainer", "quantizer", "evaluator"]
    service: str
    collection: str
    noun: str
    field: str
    jobs: str
    spec: type[Message]
    messages: Any
    prefixes: tuple[str, ...]
    can_pause: bool = True

    def request(self, verb: str, plural: bool = False, **fields: Any) -> Any:
        """A request message (``Get`` -> ``GetTrainingJobRequest``)."""
        return getattr(self.messages, f"{verb}{self.noun}{'s' if plural else ''}Request")(**fields)

    def name(self, job_id: str) -> str:
        """Resource name of an id as users write it. NotFound for what can't be one."""
        bare = job_id
        for prefix in self.prefixes:
            bare = bare.removeprefix(prefix)
        if not ID_PATTERN.fullmatch(bare):
            raise self.no_such_job(job_id)
        return f"{self.collection}/{bare}"

    def no_such_job(self, job_id: str) -> NotFound:
        """The error for ids that aren't there."""
        return NotFound(
            f"There is no job {job_id:.100} in /v1/martlet/{self.path}.",
            reason="JOB_NOT_FOUND",
            metadata={"param": "id"},
        )

    def client(self, stages: Stages) -> StageClient:
        """The stage that keeps it."""
        return getattr(stages, self.stage)

    async def call(self, stages: Stages, method: str, request: Message) -> Any:
        """Call a unary method of its service."""
        return await self.client(stages).call(self.service, method, request)


TRAINING = JobKind(
    "jobs",
    "trainer",
    "training",
    "trainingJobs",
    "TrainingJob",
    "training_job",
    "training_jobs",
    training_job_pb2.TrainingSpec,
    training_service_pb2,
    ("trainingJobs/", "ftjob-"),
)
MERGE = JobKind(
    "merge/jobs",
    "trainer",
    "merge",
    "mergeJobs",
    "MergeJob",
    "merge_job",
    "merge_jobs",
    merge_job_pb2.MergeSpec,
    merge_service_pb2,
    ("mergeJobs/",),
    can_pause=False,
)
QUANTIZATION = JobKind(
    "quantization/jobs",
    "quantizer",
    "quantization",
    "quantizationJobs",
    "QuantizationJob",
    "quantization_job",
    "quantization_jobs",
    quantization_job_pb2.QuantizationSpec,
    quantization_service_pb2,
    ("quantizationJobs/",),
)
EVALUATION = JobKind(
    "evaluation/jobs",
    "evaluator",
    "evaluation",
    "evaluationJobs",
    "EvaluationJob",
    "evaluation_job",
    "evaluation_jobs",
    evaluation_job_pb2.EvaluationSpec,
    evaluation_service_pb2,
    ("evaluationJobs/",),
)
JOB_KINDS = (TRAINING, MERGE, QUANTIZATION, EVALUATION)
