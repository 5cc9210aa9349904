"""Tries a finished job's model before the job is committed, where its handler does that."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable

from martlet_core.artifacts.types import ModelRegistry, PublishedModel
from martlet_core.backoff import GaveUp, retry_unavailable
from martlet_core.job_handler import FinishedJob, JobHandler, TriesItsModel
from martlet_core.jobs import Job
from martlet_core.outbox import Outbox
from martlet_core.publishing import publish_model

logger = logging.getLogger(__name__)

PHASE = "trying the served model"


class ModelTrial:
    """One attempt's trial. Whatever comes of it, the work is finished.

    Args:
        models: where the model is published.
        handler: of the job.
        job: the job.
        outbox: told the phase, and what went wrong.
        give_up: ends the trial; once it was true, it stays so.

    Attributes:
        published: the model that was published early, so that it can be withdrawn.
    """

    def __init__(
        self, models: ModelRegistry, handler: JobHandler, job: Job, outbox: Outbox, give_up: Callable[[], bool]
    ) -> None:
        self._models = models
        self._handler = handler
        self._job = job
        self._outbox = outbox
        self._give_up = give_up
        self._ended = False
        self.published: PublishedModel | None = None

    def run(self, finished: FinishedJob) -> FinishedJob:
        """Publish the model and let the handler try it; returns what to commit."""
        if not isinstance(self._handler, TriesItsModel):
            return finished
        self._outbox.progress(phase=PHASE)
        try:
            if finished.model is not None:
                self._publish(finished.model)
            return self._handler.try_out(self._job, finished, self._must_end)
        except Exception as error:
            logger.exception("The model of job %s could not be tried.", self._job.id)
            self._outbox.log(f"The model was not tried: {type(error).__name__}: {error}", level="warn")
            return finished

    def _publish(self, model: PublishedModel) -> None:
        """Publish; where the store doesn't answer until ``give_up``, the handler hears of that by itself."""
        self.published = model  # also of a write whose answer is lost
        with contextlib.suppress(GaveUp):
            retry_unavailable(
                "Publishing the model", lambda: publish_model(self._models, model), give_up=self._must_end
            )

    def _must_end(self) -> bool:
        self._ended = self._ended or self._give_up()
        return self._ended
