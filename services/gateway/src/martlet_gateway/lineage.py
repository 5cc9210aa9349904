"""Where a model or an artifact comes from: the jobs that made it, what they were given, down to data sets and base models.

Read from what is kept anyway: manifests (hashes, parents, the code that made them), records of jobs (specification,
metrics) and published names. Nothing is written for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from martlet_core.artifacts.types import Artifact
from martlet_core.errors import MartletError, NotFound
from martlet_core.job_archive import final_key, job_from_json
from martlet_core.jobs import Job, JobState
from martlet_core.model_rules import ARTIFACT_PREFIX, PUBLISHED_PREFIX, parse_hub_id
from martlet_core.provenance import MADE_BY
from martlet_core.stores import Stores

from martlet_gateway.aliases import AliasStore
from martlet_gateway.runs.steps.base import RUN_LABEL, STEP_LABEL

_DEEPEST = 20
_EVALUATIONS = 200
_FILE_PREFIX = "file-"
_BASE_FIELDS = ("base_model", "base_model_name")
#: Keys of a job's result that are no metrics, however numeric.
_RESULT_METRICS = "metrics"


@dataclass
class Node:
    """A thing and what it was made from.

    Attributes:
        name: as users call it: a model's name, ``artifacts/<id>``.
        kind: kind of artifact, or ``base`` for a base model that is none.
        role: what it was to the thing above (``training_dataset``, ``adapter``); empty at the top.
        facts: artifact, sha256, size_bytes, create_time, revision, made_by, metadata.
        job: the job that made it: name, kind, spec, metrics, times, run and step; None for uploads.
        parents: what it was made from.
        note: why there is nothing below it, where that isn't plain.
    """

    name: str
    kind: str
    role: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    job: dict[str, Any] | None = None
    parents: list[Node] = field(default_factory=list)
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "name": self.name,
            "kind": self.kind,
            "role": self.role,
            **self.facts,
            "job": self.job,
            "note": self.note,
            "parents": [parent.to_dict() for parent in self.parents],
        }

    def walk(self) -> Iterator[Node]:
        """It and everything below."""
        yield self
        for parent in self.parents:
            yield from parent.walk()


class Lineage:
    """Looks lineages up for a tenant. Its methods block."""

    def __init__(self, stores: Stores, aliases: AliasStore) -> None:
        self._stores = stores
        self._aliases = aliases

    def of(self, name: str, tenant: str) -> Node:
        """The lineage of a model, an alias, ``artifacts/<id>`` or ``file-<id>``. NotFound if the tenant has none such."""
        alias = self._aliases.target(tenant, name)
        node = self._node(alias or name, tenant, "", {})
        if node is None:
            raise NotFound(
                f"There is no model, alias or artifact {name[:200]!r} of yours.",
                reason="LINEAGE_NOT_FOUND",
                metadata={"param": "name"},
            )
        if alias:
            node.facts["alias"] = name
        return node

    def evaluations(self, name: str, tenant: str) -> list[dict[str, Any]]:
        """Metrics that finished evaluations found for a model, newest first: job, dataset, and value by metric."""
        page = self._stores.jobs.list(
            stage="evaluator", tenant=tenant, states=[JobState.SUCCEEDED], page_size=_EVALUATIONS
        )
        found = []
        for job in page.jobs:
            for target in job.result.get("targets", []):
                if target.get("model") == name:
                    found.append(
                        {
                            "job": f"evaluationJobs/{job.id}",
                            "dataset": job.spec.get("dataset") or "",
                            "rows": job.result.get("rows_used"),
                            "metrics": target.get("metrics", {}),
                        }
                    )
        return found

    def _node(self, name: str, tenant: str, role: str, seen: dict[str, str]) -> Node | None:
        """The node of a name; None if the tenant has nothing of that name and it can't be a base model."""
        if name.startswith(_FILE_PREFIX):
            name = ARTIFACT_PREFIX + name.removeprefix(_FILE_PREFIX)
        try:
            if name.startswith(ARTIFACT_PREFIX):
                artifact = self._stores.artifacts.get(name.removeprefix(ARTIFACT_PREFIX), tenant=tenant)
                return self._of_artifact(name, artifact, tenant, role, seen)
            model = self._stores.models.get(name, tenant=tenant)
        except NotFound:
            if name.startswith((ARTIFACT_PREFIX, PUBLISHED_PREFIX)):
                return Node(name, "unknown", role, note="it was deleted") if role else None
            return _base(name, role) if role or parse_hub_id(name) else None
        if not model.artifact_id:
            return _base(name, role)
        artifact = self._stores.artifacts.get(model.artifact_id)
        return self._of_artifact(name, artifact, tenant, role, seen)

    def _of_artifact(self, name: str, artifact: Artifact, tenant: str, role: str, seen: dict[str, str]) -> Node:
        metadata = dict(artifact.metadata)
        node = Node(name, artifact.kind, role, _facts(artifact, metadata))
        if artifact.id in seen:
            node.note = f"as above ({seen[artifact.id]})"
            return node
        if len(seen) >= _DEEPEST * 5:
            node.note = "cut off here: too deep"
            return node
        seen[artifact.id] = name
        job = self._job(artifact.source_job)
        if job is not None:
            node.job = _job_facts(job)
        elif artifact.source_job:
            node.note = f"the record of job {artifact.source_job} isn't there"
        for parent_role, parent in self._inputs(artifact, job):
            below = self._node(parent, tenant, parent_role, seen)
            if below is not None:
                node.parents.append(below)
        return node

    def _inputs(self, artifact: Artifact, job: Job | None) -> list[tuple[str, str]]:
        """What an artifact was made from, by role: as the job's specification names it, and whatever else it was given."""
        named = list(_named(job.spec)) if job is not None else []
        models = {n: self._artifact_id(n) for _, n in named}
        known = set(models.values())
        named += [("input", ARTIFACT_PREFIX + parent) for parent in artifact.parents if parent not in known]
        base = str(artifact.metadata.get("base_model") or "")
        roles = {role for role, _ in named}
        if base and not base.startswith(ARTIFACT_PREFIX) and not roles & {"base_model", "model", "adapter"}:
            named.append(("base_model", base))
        return named

    def _artifact_id(self, name: str) -> str:
        if name.startswith(ARTIFACT_PREFIX):
            return name.removeprefix(ARTIFACT_PREFIX)
        try:
            return self._stores.models.get(name).artifact_id
        except MartletError:
            return ""

    def _job(self, job_id: str) -> Job | None:
        if not job_id:
            return None
        try:
            return job_from_json(self._stores.objects.get(final_key(job_id)))
        except NotFound:
            pass
        try:
            return self._stores.jobs.get(job_id)
        except NotFound:
            return None


def _named(spec: Any, role: str = "") -> Iterator[tuple[str, str]]:
    """Models and artifacts that a specification names, with the fields that name them."""
    if isinstance(spec, Mapping):
        for key, value in spec.items():
            yield from _named(value, str(key))
    elif isinstance(spec, list):
        for value in spec:
            yield from _named(value, role)
    elif (
        isinstance(spec, str)
        and spec
        and (spec.startswith((ARTIFACT_PREFIX, PUBLISHED_PREFIX)) or role in ("base_model", "model"))
    ):
        yield role, spec


def _facts(artifact: Artifact, metadata: dict[str, Any]) -> dict[str, Any]:
    return {
        "artifact": ARTIFACT_PREFIX + artifact.id,
        "sha256": artifact.sha256,
        "files": [{"path": f.path, "sha256": f.sha256, "size_bytes": f.size_bytes} for f in artifact.files[:100]],
        "size_bytes": artifact.size_bytes,
        "create_time": artifact.create_time,
        "made_by": metadata.pop(MADE_BY, {}),
        "metadata": metadata,
    }


def _base(name: str, role: str) -> Node:
    hub = parse_hub_id(name)
    facts = {"repository": hub.repository, "revision": hub.revision} if hub else {}
    return Node(name, "base", role, facts)


def _job_facts(job: Job) -> dict[str, Any]:
    run, step = job.labels.get(RUN_LABEL, ""), job.labels.get(STEP_LABEL, "")
    return {
        "id": job.id,
        "kind": job.kind,
        "stage": job.stage,
        "attempt": job.attempt,
        "spec": dict(job.spec),
        "resolved": dict(job.result.get("resolved_config") or {}),
        "metrics": _metrics(job),
        "seconds": round(job.end_time - job.start_time, 1) if job.end_time and job.start_time else None,
        "run": f"runs/{run}" if run else "",
        "step": step,
    }


def _metrics(job: Job) -> dict[str, float]:
    given = job.result.get(_RESULT_METRICS)
    numbers = given if isinstance(given, Mapping) else job.result
    return {
        name: value for name, value in numbers.items() if isinstance(value, int | float) and not isinstance(value, bool)
    }
