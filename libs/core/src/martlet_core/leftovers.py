"""Artifacts that attempts at jobs left behind: stored whole by a worker that was killed before anything named them.

An attempt's artifact bears the job's and the attempt's number in its id. It counts as left behind when its job has been
over for long and neither the job's result and checkpoints, nor a published model, nor another artifact, nor the spec of
a job that isn't over names it. What a running job may yet publish, and everything users brought, is never looked at.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence

from martlet_core.artifacts.collector import every_key
from martlet_core.artifacts.layout import parse_index_key
from martlet_core.artifacts.types import Artifact
from martlet_core.backoff import never, stop_if
from martlet_core.errors import FailedPrecondition, NotFound
from martlet_core.ids import job_id_of_attempt
from martlet_core.job_archive import specs_in_use
from martlet_core.stores import Stores

_PAGE = 1000


def sweep_attempts(
    stores: Stores,
    stages: Sequence[str],
    older_than_seconds: float = 24 * 3600.0,
    *,
    give_up: Callable[[], bool] = never,
    clock: Callable[[], float] = time.time,
) -> int:
    """Delete what attempts left behind; returns how many artifacts.

    Args:
        stores: where everything is kept.
        stages: the stages whose jobs may use artifacts.
        older_than_seconds: the artifact is older, and its job has been over for longer.
        give_up: looked at between artifacts.
        clock: seconds since the epoch.

    Raises:
        Unavailable: a store doesn't answer, or the job store is being rebuilt.
        GaveUp: ``give_up()`` became true.
    """
    before = clock() - older_than_seconds
    named: dict[str, str] = {}
    removed = 0
    for artifact in _unnamed_by_their_job(stores, before, give_up):
        if artifact.tenant not in named:
            named[artifact.tenant] = _named_elsewhere(stores, stages, artifact.tenant)
        if artifact.id not in named[artifact.tenant]:
            stores.artifacts.delete(artifact.id)
            removed += 1
    return removed


def _unnamed_by_their_job(stores: Stores, before: float, give_up: Callable[[], bool]) -> Iterator[Artifact]:
    """Artifacts of attempts at jobs that ended before a time, which those jobs don't name; older than that too."""
    for key in every_key(stores.objects, "tenants/", give_up):
        artifact_id, _ = parse_index_key(key)
        job_id = job_id_of_attempt(artifact_id)
        if job_id is None:
            continue
        try:
            job = stores.jobs.get(job_id)
            if not job.state.is_final or job.end_time > before:
                continue
            if artifact_id in json.dumps([dict(job.result), list(job.checkpoints)]):
                continue
            artifact = stores.artifacts.get(artifact_id)
        except (NotFound, FailedPrecondition):
            continue  # no job: nobody can say; no artifact: it is being made, or deleted; or its manifest is damaged
        if artifact.source_job == job_id and artifact.create_time <= before:
            stop_if(give_up, "sweeping artifacts")
            yield artifact


def _named_elsewhere(stores: Stores, stages: Sequence[str], tenant: str) -> str:
    """Everything beside the jobs that made them that may name a tenant's artifacts, in one text."""
    names = [model.artifact_id for model in stores.models.list(tenant=tenant)]
    token = ""
    while True:
        page = stores.artifacts.list(tenant=tenant, page_size=_PAGE, page_token=token)
        names += [parent for artifact in page.artifacts for parent in artifact.parents]
        token = page.next_page_token
        if not token:
            break
    return "\n".join([*names, specs_in_use(stores.jobs, stages)])
