"""A running job's checkpoints: uploaded in the background, committed under the fencing token, pruned, found again on
resume.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from martlet_core.artifacts.types import ArtifactStore, ModelRegistry, PublishedModel
from martlet_core.backoff import GaveUp, retry_unavailable
from martlet_core.errors import LeaseLost, MartletError, NotFound, Unavailable
from martlet_core.ids import checkpoint_artifact_id
from martlet_core.jobs import Claim, Job, JobStore
from martlet_core.outbox import Outbox
from martlet_core.publishing import publish_model, unpublish_model

logger = logging.getLogger(__name__)

#: The newest ones that are kept beside the best.
KEPT_NEWEST = 2

Entry = Mapping[str, Any]


def split_kept(entries: Sequence[Entry]) -> tuple[list[Entry], list[Entry]]:
    """Split checkpoints (oldest first) into those to keep, the last two and the newest that was best, and the rest."""
    kept = list(entries[-KEPT_NEWEST:])
    best = next((entry for entry in reversed(entries) if entry.get("is_best")), None)
    if best is not None and best not in kept:
        kept.insert(0, best)
    return kept, [entry for entry in entries if entry not in kept]


def restore_newest(
    job: Job, artifacts: ArtifactStore, directory: Path, *, outbox: Outbox, give_up: Callable[[], bool]
) -> tuple[Entry | None, list[Entry]]:
    """Download the newest checkpoint that verifies.

    Returns:
        The checkpoint (None if there is none that can be read) and the newer ones that could not be read.
    """
    unreadable: list[Entry] = []
    for entry in reversed(job.checkpoints):
        try:
            retry_unavailable(
                f"Downloading the checkpoint of step {entry['step']}",
                lambda entry=entry: artifacts.download(entry["artifact_id"], directory, give_up=give_up),
                give_up=give_up,
            )
            return entry, unreadable
        except (GaveUp, Unavailable):
            raise
        except MartletError as error:
            outbox.log(
                f"The checkpoint of step {entry['step']} can't be used, trying the one before: {error.message}",
                level="warn",
            )
            unreadable.append(entry)
            shutil.rmtree(directory, ignore_errors=True)
    return None, unreadable


@dataclass(frozen=True)
class _Pending:
    path: Path
    step: int
    metrics: Mapping[str, float]
    is_best: bool


class CheckpointKeeper:
    """Uploads one attempt's checkpoints from a thread and keeps the job's list of them.

    Order of every commit: files and manifest of the artifact, then the job's record (refused to a zombie), then the
        model name. Of every
    removal: record, name, artifact. So nothing that is listed is ever missing.

    Args:
        jobs, artifacts, models: the stores.
        claim: the hold on the job.
        kept: the job's checkpoints that are good.
        outbox: where the job speaks.
        model_of: the model to publish for a checkpoint, or None.
        on_lost: called when the store refuses the claim's token.
    """

    def __init__(
        self,
        jobs: JobStore,
        artifacts: ArtifactStore,
        models: ModelRegistry,
        claim: Claim,
        *,
        kept: Sequence[Entry],
        outbox: Outbox,
        model_of: Callable[[Job, Entry], PublishedModel | None],
        on_lost: Callable[[], None],
    ) -> None:
        self._jobs = jobs
        self._artifacts = artifacts
        self._models = models
        self._claim = claim
        self._entries = list(kept)
        self._outbox = outbox
        self._model_of = model_of
        self._on_lost = on_lost
        self._pending: list[_Pending] = []
        self._busy = False
        self._stopped = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=f"checkpoints-{claim.job.id}", daemon=True)

    @property
    def last_step(self) -> int:
        """Step of the newest committed checkpoint; 0 without any."""
        return int(self._entries[-1]["step"]) if self._entries else 0

    def start(self) -> None:
        """Begin to upload what is submitted."""
        self._thread.start()

    def submit(self, path: Path, step: int, metrics: Mapping[str, float], is_best: bool) -> None:
        """Queue a finished directory. When uploads can't keep up, those in between are passed over: the newest and the
        best go first.
        """
        with self._changed:
            passed_over = [p for p in self._pending if not p.is_best or is_best]
            self._pending = [p for p in self._pending if p not in passed_over]
            self._pending.append(_Pending(path, step, dict(metrics), is_best))
            self._changed.notify_all()
        for pending in passed_over:
            self._outbox.log(
                f"The checkpoint of step {pending.step} was passed over: a newer one came before its upload began."
            )
            shutil.rmtree(pending.path, ignore_errors=True)

    def drain(self, *, give_up: Callable[[], bool], poll_seconds: float = 0.1) -> bool:
        """Wait until all that was submitted is committed; False if ``give_up`` became true first."""
        while not give_up():
            with self._changed:
                if self._changed.wait_for(lambda: not self._pending and not self._busy, poll_seconds):
                    return True
        return False

    def stop(self) -> None:
        """Begin no further upload; one that is under way ends by itself or is refused."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def discard(self, entries: Sequence[Entry]) -> None:
        """Delete checkpoints that are no longer on record: name first, then artifact."""
        for entry in entries:
            try:
                model = self._model_of(self._claim.job, entry)
                if model is not None:
                    unpublish_model(self._models, model)
                self._artifacts.delete(entry["artifact_id"])
            except NotFound:
                continue  # that is what was wanted
            except MartletError as error:
                logger.warning("The old checkpoint %s could not be deleted: %s", entry["artifact_id"], error)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopped or bool(self._pending))
                if self._stopped:
                    return
                pending = self._pending.pop(0)
                self._busy = True
            try:
                self._commit(pending)
            except GaveUp:
                return
            except (LeaseLost, NotFound):
                self._on_lost()
                return
            except MartletError as error:
                self._outbox.log(
                    f"The checkpoint of step {pending.step} could not be stored: {error.message}", level="warn"
                )
            except Exception:
                logger.exception("The checkpoint of step %s could not be stored.", pending.step)
                self._outbox.log(f"The checkpoint of step {pending.step} could not be stored.", level="warn")
            finally:
                with self._changed:
                    self._busy = False
                    self._changed.notify_all()

    def _commit(self, pending: _Pending) -> None:
        artifact_id = checkpoint_artifact_id(self._claim.job.id, self._claim.token, pending.step)
        known = next((entry for entry in self._entries if entry["artifact_id"] == artifact_id), None)
        if known is None:
            self._commit_new(pending, artifact_id)
        elif (
            pending.is_best and not known["is_best"]
        ):  # handed over twice, as a stop right after a periodic checkpoint does
            better = {**known, "is_best": True, "metrics": {**known["metrics"], **pending.metrics}}
            self._record([better if entry is known else entry for entry in self._entries])
        shutil.rmtree(pending.path, ignore_errors=True)

    def _commit_new(self, pending: _Pending, artifact_id: str) -> None:
        job, token = self._claim.job, self._claim.token
        metadata = {
            "step": pending.step,
            "attempt": token,
            "metrics": dict(pending.metrics),
            "is_best": pending.is_best,
        }
        artifact = self._retry(
            f"Uploading the checkpoint of step {pending.step}",
            lambda: self._artifacts.put_directory(
                pending.path,
                kind="checkpoint",
                tenant=job.tenant,
                artifact_id=artifact_id,
                display_name=f"{job.kind} {job.id}, step {pending.step}",
                metadata=metadata,
                source_job=job.id,
            ),
        )
        entry: Entry = {
            "artifact_id": artifact.id,
            "step": pending.step,
            "create_time": artifact.create_time or time.time(),
            "metrics": dict(pending.metrics),
            "is_best": pending.is_best,
        }
        replaced = [old for old in self._entries if old["step"] == pending.step]
        kept, dropped = split_kept([old for old in self._entries if old not in replaced] + [entry])
        try:
            self._record(kept)
        except (LeaseLost, NotFound):
            self.discard([entry])
            raise
        model = self._model_of(job, entry)
        if model is not None:
            self._retry("Publishing a checkpoint", lambda: publish_model(self._models, model))
        self._outbox.event(
            "checkpoint",
            f"Checkpoint at step {pending.step}",
            data={"step": pending.step, "artifact_id": artifact.id},
        )
        self.discard([*dropped, *replaced])

    def _record(self, entries: list[Entry]) -> None:
        job, token = self._claim.job, self._claim.token
        self._retry("Recording a checkpoint", lambda: self._jobs.update(job.id, token, checkpoints=entries))
        self._entries = entries

    def _retry(self, what: str, call: Callable[[], Any]) -> Any:
        return retry_unavailable(what, call, give_up=lambda: self._stopped)
