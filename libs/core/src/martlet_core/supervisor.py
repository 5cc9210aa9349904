"""One attempt at one job, from claim to commit.

Prepare, download inputs, find the newest good checkpoint, run the recipe in a process of its own, relay what it says,
upload what it makes, commit the outcome under the fencing token. Whatever goes wrong, the job ends in a state that
someone can go on from.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from martlet_core import child_protocol as protocol
from martlet_core.artifacts.types import PublishedModel
from martlet_core.backoff import GaveUp, retry_unavailable
from martlet_core.checkpoints import CheckpointKeeper, restore_newest
from martlet_core.child_process import ChildExit, ChildProcess
from martlet_core.errors import (
    Aborted,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    LeaseLost,
    MartletError,
    NotFound,
    Unavailable,
    error_from_dict,
)
from martlet_core.job_gpus import GpuHold
from martlet_core.job_handler import FinishedJob, JobHandler
from martlet_core.jobs import Claim, Job, JobState, LeaseSignal
from martlet_core.lease import LeaseKeeper
from martlet_core.messages import MessageRelay
from martlet_core.outbox import Outbox
from martlet_core.outputs import OutputUploader
from martlet_core.preemption import CHECK_SECONDS, Preemption
from martlet_core.publishing import publish_model, unpublish_model
from martlet_core.stop_reason import StopReason
from martlet_core.stores import Stores
from martlet_core.temporary_models import TemporaryModels
from martlet_core.trial import ModelTrial

logger = logging.getLogger(__name__)

#: Errors of a recipe or handler that another attempt may not meet; every other MartletError is the user's to mend.
_WORTH_ANOTHER_ATTEMPT = (Unavailable, DeadlineExceeded, Aborted, Internal)
_FLUSH_SECONDS = 10.0


@dataclass(frozen=True)
class _Outcome:
    """How an attempt ended: ``finished`` or ``error`` says so, neither means stopped on request.

    Attributes:
        finished: what came of the job.
        error: why it failed.
        is_final: whether no other attempt may help.
        evidence: the failed job's result: what the recipe had to show for its failure.
    """

    finished: FinishedJob | None = None
    error: MartletError | None = None
    is_final: bool = False
    evidence: Mapping[str, Any] | None = None


class JobRun:
    """Carries out one claim.

    Args:
        stores: where everything is kept.
        handler: what the job's stage knows about this kind of job.
        claim: the hold on the job.
        workdir: an empty directory for this attempt alone.
        lease_seconds: length of the lease.
        stop_grace_seconds: time between asking the recipe to stop and killing it.
        shutdown: set when the worker must end.
        preempt_after_seconds: see ``Preemption``.
        gpus: the GPUs leased for it, kept until its process is dead; None where no leases are taken.
    """

    def __init__(
        self,
        stores: Stores,
        handler: JobHandler,
        claim: Claim,
        *,
        workdir: Path,
        lease_seconds: float,
        stop_grace_seconds: float,
        shutdown: threading.Event,
        preempt_after_seconds: float = 0.0,
        gpus: GpuHold | None = None,
    ) -> None:
        self._stores = stores
        self._handler = handler
        self._claim = claim
        self._job: Job = claim.job
        self._workdir = workdir
        self._stop_grace_seconds = stop_grace_seconds
        self._shutdown = shutdown
        self._preemption = Preemption(stores.jobs, claim.job, preempt_after_seconds, check_seconds=CHECK_SECONDS)
        self._makes_room = False
        self._gpus = gpus
        self._wake = threading.Event()
        self._child: ChildProcess | None = None
        self._checkpoints: CheckpointKeeper | None = None
        self._outputs = OutputUploader(stores.artifacts, claim, workdir, self._must_stop_uploading)
        self._stop_deadline: float | None = None
        renew = gpus.renew if gpus else None
        self._lease = LeaseKeeper(
            stores.jobs, claim, lease_seconds, on_renewed=self._on_renewed, on_change=self._wake.set, renew_also=renew
        )
        self._outbox = Outbox(stores.jobs, claim, on_lost=self._lease.mark_lost)
        self._temporary = TemporaryModels(stores, handler, claim, workdir, lambda: self._lease.lost)
        self._trial = ModelTrial(
            stores.models, handler, claim.job, self._outbox, lambda: self._must_stop() or self._preemption.is_due()
        )

    def wake(self) -> None:
        """Look at the shutdown flag now."""
        self._wake.set()

    def run(self) -> JobState | None:
        """Do the job; returns the state it was left in, or None when it was lost to another worker."""
        self._lease.start()
        self._outbox.start()
        try:
            outcome = self._attempt()
            self._temporary.close()
            return self._commit(outcome)
        finally:
            self._kill_child()
            if self._checkpoints is not None:
                self._checkpoints.stop()
            self._lease.stop()
            self._outbox.close()

    # The attempt

    def _attempt(self) -> _Outcome:
        try:
            return self._execute()
        except GaveUp:
            return _Outcome()
        except MartletError as error:
            return _Outcome(error=error, is_final=not isinstance(error, _WORTH_ANOTHER_ATTEMPT))
        except Exception as error:
            logger.exception("Attempt %s at job %s failed in the worker.", self._claim.token, self._job.id)
            text = f"The worker failed while it handled the job: {type(error).__name__}: {error}"
            return _Outcome(error=Internal(text, reason="WORKER_FAILED"))

    def _execute(self) -> _Outcome:
        self._outbox.progress(phase="preparing")
        prepared = self._retry("Preparing the job", lambda: self._handler.prepare(self._job))
        self._outputs.parents = sorted(set(prepared.inputs.values()))
        for name, artifact_id in prepared.inputs.items():
            self._outbox.progress(phase="downloading")
            self._download(name, artifact_id)
        self._checkpoints = self._restore()
        self._checkpoints.start()
        record = {"job_id": self._job.id, "attempt": self._claim.token, "kind": self._job.kind}
        (self._workdir / "job.json").write_text(json.dumps({**record, "config": prepared.config}))
        self._outbox.progress(phase="starting")
        exit_, stopped_by_us = self._run_child(self._checkpoints)
        if not self._checkpoints.drain(give_up=self._must_stop_uploading):
            if self._reason() in (StopReason.PAUSE, StopReason.SHUTDOWN, StopReason.PREEMPT):
                self._outbox.log("The last checkpoint could not be stored in time.", level="warn")
            return _Outcome()
        return self._judge(exit_, stopped_by_us)

    def _download(self, name: str, artifact_id: str) -> None:
        try:
            self._retry(
                f"Downloading input {name}",
                lambda: self._stores.artifacts.download(
                    artifact_id, self._workdir / "inputs" / name, give_up=self._must_stop
                ),
            )
        except NotFound as error:
            raise FailedPrecondition(
                f"The input {name} (artifact {artifact_id}) is gone: {error.message}", reason="INPUT_GONE"
            ) from error

    def _restore(self) -> CheckpointKeeper:
        found, unreadable = restore_newest(
            self._job, self._stores.artifacts, self._workdir / "resume", outbox=self._outbox, give_up=self._must_stop
        )
        if found is not None:
            self._outbox.log(f"Resuming from the checkpoint of step {found['step']}.")
        elif self._job.attempt > 1:
            self._outbox.log("No checkpoint to resume from: starting from the beginning.")
        return CheckpointKeeper(
            self._stores.jobs,
            self._stores.artifacts,
            self._stores.models,
            self._claim,
            kept=[entry for entry in self._job.checkpoints if entry not in unreadable],
            outbox=self._outbox,
            model_of=self._handler.checkpoint_model,
            on_lost=self._lease.mark_lost,
        )

    def _run_child(self, checkpoints: CheckpointKeeper) -> tuple[ChildExit, bool]:
        """Run the recipe to its end, or to ours. Returns how it ended and whether it was asked to stop."""
        if self._must_stop():
            raise GaveUp("starting the recipe")
        relay = MessageRelay(self._workdir, self._outbox, checkpoints, self._temporary.submit)
        child = ChildProcess(
            self._handler.entrypoint,
            self._workdir,
            silence_seconds=self._lease.trusted_seconds,
            environ=self._gpus.environ if self._gpus else {},
            on_message=relay.on_message,
            on_log_line=relay.on_log_line,
            on_exit=self._wake.set,
        )
        self._child = child
        kill_at: float | None = None
        while (exit_ := child.exit()) is None:
            self._look_for_preemption()
            reason = self._reason()
            if reason is StopReason.LOST:
                child.kill()
            elif reason is not None and kill_at is None:
                kill_at = self._note_stop()
                self._outbox.progress(phase="stopping")
                child.terminate()
            elif kill_at is not None and time.monotonic() > kill_at:
                self._outbox.log(
                    f"The recipe did not stop within {self._stop_grace_seconds:g} s and was killed; what it did since"
                    f" its last checkpoint (step {checkpoints.last_step}) is lost.",
                    level="warn",
                )
                child.kill()
                child.wait()
            self._wait(kill_at)
        if self._gpus:
            self._gpus.release()  # its process is dead: what follows computes nothing
        return exit_, kill_at is not None

    def _look_for_preemption(self) -> None:
        if not self._makes_room and self._preemption.is_due():
            self._makes_room = True
            self._outbox.log(
                "Making room for a job of higher priority; this one goes on from its checkpoint when a worker is free.",
                level="warn",
            )

    def _wait(self, kill_at: float | None) -> None:
        """Sleep until something happens; at most until the lease or the queue must be looked at again."""
        seconds = self._lease.trusted_seconds / 4
        if self._preemption.is_on:
            seconds = min(seconds, CHECK_SECONDS)
        if kill_at is not None:
            seconds = min(seconds, max(0.01, kill_at - time.monotonic() + 0.01))
        self._wake.wait(seconds)
        self._wake.clear()

    def _judge(self, exit_: ChildExit, stopped_by_us: bool) -> _Outcome:
        final = exit_.final or {}
        kind = final.get("type")
        if kind == protocol.RESULT and exit_.exit_code == protocol.EXIT_OK:
            return _Outcome(finished=self._trial.run(self._upload(final)))
        if kind == protocol.ERROR:
            error = error_from_dict(final["error"])
            if isinstance(error, _WORTH_ANOTHER_ATTEMPT):
                return _Outcome(error=error)
            return _Outcome(error=error, is_final=True, evidence=self._outputs.upload_evidence(final, error) or None)
        if stopped_by_us and (kind == protocol.STOPPED or exit_.exit_code < 0):
            return _Outcome()
        if kind == protocol.CRASH:
            text = f"The recipe failed: {final['exception']}: {final['message']}"
            return _Outcome(error=Internal(text, reason="RECIPE_FAILED", metadata={"traceback": final["traceback"]}))
        text = f"The recipe's process ended without a result ({exit_.describe()})."
        if exit_.stderr_tail:
            text += f" Its last words:\n{exit_.stderr_tail}"
        return _Outcome(error=Internal(text, reason="PROCESS_DIED", metadata={"exit_code": str(exit_.exit_code)}))

    def _upload(self, final: Mapping[str, Any]) -> FinishedJob:
        self._outbox.progress(phase="uploading")
        artifacts = self._outputs.upload(final["outputs"])
        return retry_unavailable(
            "Finishing the job",
            lambda: self._handler.finish(self._job, final["values"], artifacts),
            give_up=self._must_stop_uploading,
        )

    # The commit

    def _commit(self, outcome: _Outcome) -> JobState | None:
        self._flush()
        self._lease.renew()  # the newest word on cancel and pause
        if self._lease.lost:
            if self._trial.published is not None:
                self._withdraw(self._trial.published)
            return None
        state, result, error, model = self._decide(outcome)
        try:
            if model is not None:
                self._hold_on("Publishing the model", lambda: publish_model(self._stores.models, model))
            self._flush()
            job = self._hold_on(
                "Committing the outcome",
                lambda: self._stores.jobs.finish(self._job.id, self._claim.token, state, result=result, error=error),
            )
        except GaveUp:
            # Whether the store took the outcome is not known: whoever looks next sees it in the job's record.
            logger.warning("The outcome %s of job %s could not be committed.", state.value, self._job.id)
            return None
        except (LeaseLost, NotFound):
            logger.warning("The outcome %s of job %s was not taken: the lease is lost.", state.value, self._job.id)
            self._withdraw(model)
            return None
        if not (job.state is JobState.SUCCEEDED or (job.state is JobState.FAILED and result)):
            self._withdraw(model or self._trial.published)
        return job.state

    def _decide(
        self, outcome: _Outcome
    ) -> tuple[JobState, Mapping[str, Any] | None, Mapping[str, Any] | None, PublishedModel | None]:
        reason = self._reason()
        if reason is StopReason.CANCEL:
            return JobState.CANCELLED, None, None, None
        if outcome.finished is not None:
            return JobState.SUCCEEDED, outcome.finished.result, None, outcome.finished.model
        if outcome.error is not None:
            self._outbox.log(outcome.error.message, level="error")
            state = JobState.FAILED if outcome.is_final else JobState.QUEUED
            return state, outcome.evidence, outcome.error.to_dict(), None
        state = JobState.PAUSED if reason is StopReason.PAUSE else JobState.QUEUED
        return state, None, None, None

    def _flush(self) -> None:
        """Let what was said be on record before the state that ends it."""
        self._outbox.flush(_FLUSH_SECONDS, give_up=lambda: self._lease.lost)

    def _withdraw(self, model: PublishedModel | None) -> None:
        """Take back what this attempt published and stored."""
        try:
            if model is not None:
                unpublish_model(self._stores.models, model)
            for artifact in self._outputs.stored:
                self._stores.artifacts.delete(artifact.id)
        except MartletError as error:
            logger.warning(
                "What attempt %s at job %s made could not be deleted: %s", self._claim.token, self._job.id, error
            )

    # Control

    def _reason(self) -> StopReason | None:
        if self._lease.lost:
            return StopReason.LOST
        if self._lease.signal is LeaseSignal.CANCEL:
            return StopReason.CANCEL
        if self._lease.signal is LeaseSignal.PAUSE:
            return StopReason.PAUSE
        if self._shutdown.is_set():
            return StopReason.SHUTDOWN
        return StopReason.PREEMPT if self._makes_room else None

    def _must_stop(self) -> bool:
        return self._reason() is not None

    def _note_stop(self) -> float:
        """Time by which a stop that was asked for must be over; set when it is first noticed."""
        if self._stop_deadline is None:
            self._stop_deadline = time.monotonic() + self._stop_grace_seconds
        return self._stop_deadline

    def _must_stop_uploading(self) -> bool:
        """Finished work is stored even after a pause or a shutdown was asked for, but not for ever."""
        reason = self._reason()
        if reason in (None, StopReason.LOST, StopReason.CANCEL):
            return reason is not None
        return time.monotonic() > self._note_stop()

    def _on_renewed(self) -> None:
        if self._child is not None:
            self._child.renew()

    def _kill_child(self) -> None:
        if self._child is not None and self._child.exit() is None:
            self._child.kill()
            self._child.wait()

    def _retry(self, what: str, call: Callable[[], Any]) -> Any:
        return retry_unavailable(what, call, give_up=self._must_stop)

    def _hold_on(self, what: str, call: Callable[[], Any]) -> Any:
        return retry_unavailable(what, call, give_up=lambda: self._lease.lost)
