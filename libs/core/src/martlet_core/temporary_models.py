"""Models that a running job publishes for a while: its process hands directories over, asks replicas for them, and they go again.

The process has no key to any store, so the supervisor publishes for it: a thread stores the directory as an artifact, publishes a name that
was never used before, and says in a file which name that is. What is published is on record in the object store from before it exists until
it is gone, so that whoever comes next can clear up: the attempt itself at its end, however it ends, else the next attempt, else the reconciler.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from martlet_core.artifacts.types import PublishedModel
from martlet_core.backoff import GaveUp, retry_unavailable
from martlet_core.child_protocol import answer_file
from martlet_core.errors import Internal, MartletError, NotFound, Unimplemented
from martlet_core.ids import temporary_artifact_id
from martlet_core.job_handler import JobHandler, PublishesMeanwhile
from martlet_core.jobs import Claim
from martlet_core.publishing import publish_model, unpublish_model
from martlet_core.stores import Stores

T = TypeVar("T")
logger = logging.getLogger(__name__)

#: The newest ones that stay published: a process that is a step behind may still ask for the one before.
KEPT = 2
_PREFIX = "temporary/"
_CLOSE_SECONDS = 15.0


class TemporaryModels:
    """Those of one attempt.

    Args:
        stores: where they are published.
        handler: says what they are, if it is one that publishes any.
        claim: the hold on the job.
        workdir: the attempt's directory.
        is_lost: whether the hold is lost.
    """

    def __init__(
        self, stores: Stores, handler: JobHandler, claim: Claim, workdir: Path, is_lost: Callable[[], bool]
    ) -> None:
        self._stores = stores
        self._handler = handler
        self._claim = claim
        self._workdir = workdir
        self._is_lost = is_lost
        self._closed = threading.Event()
        self._handed_over: queue.SimpleQueue[tuple[Path, int] | None] = queue.SimpleQueue()
        self._published: list[PublishedModel] = []
        self._thread = threading.Thread(target=self._run, name=f"temporary-models-{claim.job.id}", daemon=True)

    def submit(self, path: Path, number: int) -> None:
        """Publish a directory of the job's process; returns at once. Called from one thread."""
        if self._thread.ident is None:
            self._thread.start()
        self._handed_over.put((path, number))

    def close(self) -> None:
        """Publish no more and take back what is published; what can't be taken back now is left to others. Never raises."""
        self._closed.set()
        if self._thread.ident is None:
            return
        self._handed_over.put(None)
        self._thread.join(_CLOSE_SECONDS)
        deadline = time.monotonic() + _CLOSE_SECONDS
        try:
            for model in self._published:
                retry_unavailable(
                    "Taking a temporary model back",
                    lambda model=model: self._withdraw(model),
                    give_up=lambda: time.monotonic() > deadline,
                )
        except (MartletError, GaveUp) as error:
            logger.warning("Temporary models of job %s are left to the reconciler: %s", self._claim.job.id, error)

    def _run(self) -> None:
        while (handed_over := self._handed_over.get()) is not None and not self._closed.is_set():
            path, number = handed_over
            try:
                self._answer(number, {"model": self._publish(path, number)})
            except GaveUp:
                return
            except MartletError as error:
                self._answer(number, {"error": error.to_dict()})
            except Exception as error:
                logger.exception("A temporary model could not be published.")
                text = f"A temporary model could not be published: {type(error).__name__}: {error}"
                self._answer(number, {"error": Internal(text, reason="WORKER_FAILED").to_dict()})

    def _publish(self, path: Path, number: int) -> str:
        job, handler = self._claim.job, self._handler
        if not isinstance(handler, PublishesMeanwhile):
            raise Unimplemented(f"Jobs of kind {job.kind} publish no temporary models.")
        artifact_id = temporary_artifact_id(job.id, self._claim.token, number)
        model = self._retry("Describing a temporary model", lambda: handler.temporary_model(job, number, artifact_id))
        if not self._published and job.attempt > 1:
            self._retry("Clearing up after the attempt before", lambda: withdraw_temporary(self._stores, job.id))
        self._published.append(model)
        note = json.dumps({"name": model.name, "tenant": model.tenant, "artifact_id": artifact_id}).encode()
        self._retry("Noting a temporary model", lambda: self._stores.objects.put(_note_key(job.id, artifact_id), note))
        self._retry("Storing a temporary model", lambda: self._store(path, number, model))
        self._retry("Publishing a temporary model", lambda: publish_model(self._stores.models, model))
        while len(self._published) > KEPT:
            oldest = self._published[0]
            self._retry("Taking a temporary model back", lambda model=oldest: self._withdraw(model))
            self._published.remove(oldest)
        return model.name

    def _store(self, path: Path, number: int, model: PublishedModel) -> None:
        job = self._claim.job
        self._stores.artifacts.put_directory(
            path,
            kind="adapter",
            tenant=job.tenant,
            artifact_id=model.artifact_id,
            display_name=f"{job.kind} {job.id}, for the answers from step {number} on",
            metadata={"base_model": model.base_model, "lora_rank": model.lora_rank, "temporary": True},
            source_job=job.id,
        )

    def _withdraw(self, model: PublishedModel) -> None:
        _forget(self._stores, self._claim.job.id, model)

    def _retry(self, what: str, call: Callable[[], T]) -> T:
        return retry_unavailable(what, call, give_up=lambda: self._closed.is_set() or self._is_lost())

    def _answer(self, number: int, values: Mapping[str, Any]) -> None:
        path = answer_file(self._workdir, number)
        path.parent.mkdir(parents=True, exist_ok=True)
        written = path.with_suffix(".tmp")
        written.write_text(json.dumps(values))
        os.replace(written, path)


def withdraw_temporary(stores: Stores, job_id: str) -> None:
    """Take back what attempts at a job left published. Unavailable if a store doesn't answer."""
    for key in stores.objects.list(_note_key(job_id, "")):
        with suppress(NotFound):
            _forget(stores, job_id, PublishedModel(kind="adapter", **json.loads(stores.objects.get(key))))


def _forget(stores: Stores, job_id: str, model: PublishedModel) -> None:
    unpublish_model(stores.models, model)
    with suppress(NotFound):
        stores.artifacts.delete(model.artifact_id)
    stores.objects.delete(_note_key(job_id, model.artifact_id))


def _note_key(job_id: str, artifact_id: str) -> str:
    return f"{_PREFIX}{job_id}/{artifact_id}"
