"""What a run did, in the object store: which job is whose step, and how each step ended.

    runs/<run id>/steps/<step>.<attempt>.json

Written when a step has its job and again when it is over. With these, a job store that lost everything leads to no second
job, and a finished step is never asked about again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from martlet_core.artifacts.collector import every_key
from martlet_core.artifacts.types import ObjectStore
from martlet_core.errors import NotFound
from martlet_core.jobs import Job

from martlet_gateway.runs.definition import RunDefinition, definition_from_dict
from martlet_gateway.runs.graph import survey
from martlet_gateway.runs.status import StepState, StepStatus, status_from_dict

#: ``Job.stage`` and queue of runs, and the kinds of their jobs.
STAGE = "runs"
RUN, LEG = "run", "leg"


class StepRecords:
    """The records of all runs. Thread-safe; its methods block."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects

    def keep(self, run: str, step: str, status: StepStatus) -> None:
        """Write a step's record."""
        data = json.dumps(status.to_dict(), separators=(",", ":")).encode()
        self._objects.put(_key(run, step, status.attempt), data, content_type="application/json")

    def known(self, run: str, definition: RunDefinition, attempts: Mapping[str, int]) -> dict[str, StepStatus]:
        """What is written of the steps at these attempts; steps that have none are left out."""
        wanted = {_key(run, step.id, attempts.get(step.id, 1)): step.id for step in definition.steps}
        found: dict[str, StepStatus] = {}
        for key in every_key(self._objects, f"runs/{run}/steps/"):
            if key in wanted:
                try:
                    found[wanted[key]] = status_from_dict(json.loads(self._objects.get(key)))
                except NotFound:
                    continue
        return found


def run_id(job: Job) -> str:
    """The run that a job is, or is a leg of."""
    return job.spec["run"] if job.kind == LEG else job.id


def definition_of(job: Job) -> RunDefinition:
    """What a run or a leg is to do."""
    return definition_from_dict(job.spec["definition"])


def attempts_of(job: Job) -> Mapping[str, int]:
    """The attempt that each step is at; 1 for those that are missing."""
    return job.spec.get("attempts", {})


def picture(statuses: Mapping[str, StepStatus]) -> dict[str, Any]:
    """Steps as a run's record carries them."""
    return {"steps": {step: status.to_dict() for step, status in statuses.items()}}


def pictured(job: Job) -> dict[str, StepStatus]:
    """The steps as a record shows them; empty while no worker has."""
    return {step: status_from_dict(values) for step, values in job.result.get("steps", {}).items()}


def steps_of(job: Job, records: StepRecords) -> Mapping[str, StepStatus]:
    """The steps of a run or a leg, for those who look: from its record, else from what is written. Blocks."""
    definition = definition_of(job)
    shown = pictured(job) or records.known(run_id(job), definition, attempts_of(job))
    statuses = survey(definition, shown).statuses
    if job.state.value != "CANCELLED":
        return statuses
    return {step: status if status.state.is_final else _cancelled(status) for step, status in statuses.items()}


def _cancelled(status: StepStatus) -> StepStatus:
    return status_from_dict({**status.to_dict(), "state": StepState.CANCELLED.value, "note": "the run was cancelled"})


def _key(run: str, step: str, attempt: int) -> str:
    return f"runs/{run}/steps/{step}.{attempt}.json"
