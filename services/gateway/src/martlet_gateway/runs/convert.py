"""Runs as the messages of ``martlet.gateway.v1``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from google.protobuf import json_format
from martlet.common.v1 import job_pb2
from martlet.gateway.v1 import run_pb2
from martlet_core.errors import NotFound
from martlet_core.ids import ID_PATTERN
from martlet_core.job_proto import error_to_proto, state_to_proto, time_to_proto
from martlet_core.jobs import Job, JobState

from martlet_gateway import proto_json
from martlet_gateway.runs.definition import StepDefinition
from martlet_gateway.runs.records import definition_of
from martlet_gateway.runs.status import StepState, StepStatus

PREFIX = "runs/"


@dataclass(frozen=True)
class RunView:
    """A run as clients see it.

    Attributes:
        run: the run's own job.
        leg: its newest leg; the run's own job while it wasn't resumed.
        legs: how many there are besides the first.
        steps: by id, in the definition's order.
    """

    run: Job
    leg: Job
    legs: int
    steps: Mapping[str, StepStatus]

    @property
    def state(self) -> JobState:
        """Where the run is."""
        return self.leg.state


def bare_id(name: str) -> str:
    """``runs/<id>`` or ``<id>`` -> id. NotFound for what can't be one."""
    bare = name.removeprefix(PREFIX)
    if not ID_PATTERN.fullmatch(bare):
        raise no_such_run(name)
    return bare


def no_such_run(name: str) -> NotFound:
    """The error for runs that aren't there."""
    return NotFound(
        f"There is no run {name.removeprefix(PREFIX):.100}.", reason="RUN_NOT_FOUND", metadata={"param": "id"}
    )


def run_to_proto(view: RunView) -> run_pb2.Run:
    """A run as a message."""
    run, leg = view.run, view.leg
    message = run_pb2.Run(
        name=f"{PREFIX}{run.id}",
        display_name=run.display_name,
        state=state_to_proto(leg.state),
        error=error_to_proto(leg.error) if leg.state in (JobState.FAILED, JobState.CANCELLED) else None,
        create_time=time_to_proto(run.create_time),
        start_time=time_to_proto(run.start_time),
        end_time=time_to_proto(leg.end_time),
        update_time=time_to_proto(leg.update_time),
        labels=dict(run.labels),
        resume_count=view.legs,
    )
    message.spec.source = run.spec["source"]
    message.spec.inputs.update(run.spec.get("inputs") or {})
    if run.spec.get("reuse") is not None:
        message.spec.reuse = run.spec["reuse"]
    for step in definition_of(run).steps:
        message.steps.append(_step_to_proto(step, view.steps.get(step.id, StepStatus())))
    return message


def _step_to_proto(step: StepDefinition, status: StepStatus) -> run_pb2.RunStep:
    message = run_pb2.RunStep(
        id=step.id,
        kind=step.kind,
        state=cast("run_pb2.RunStepState", run_pb2.RunStepState.Value(f"RUN_STEP_STATE_{status.state.value}")),
        needs=step.needs,
        job=status.job,
        attempt=status.attempt,
        reused=status.reused,
        start_time=time_to_proto(status.start_time),
        end_time=time_to_proto(status.end_time),
        outputs={name: value for name, value in status.outputs.items() if value},
        metrics=status.metrics,
        error=error_to_proto(status.error) if status.state in (StepState.FAILED, StepState.CANCELLED) else None,
        note=status.note,
        summary=status.summary,
    )
    if status.progress:
        proto_json.fill(message.progress, _progress(status.progress))
    return message


def _progress(values: Mapping[str, Any]) -> dict[str, Any]:
    """Progress as ``proto_json`` wrote it, for ``proto_json.fill``."""
    known = {field.name for field in job_pb2.JobProgress.DESCRIPTOR.fields}
    shown = {name: value for name, value in values.items() if name in known}
    return shown | ({"eta": values["eta_seconds"]} if values.get("eta_seconds") else {})


def inputs_of(spec: run_pb2.RunSpec) -> dict[str, Any]:
    """The inputs of a request."""
    return json_format.MessageToDict(spec.inputs)
