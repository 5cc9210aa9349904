"""Chores of a deployment: now and then, by one of its processes at a time, what nobody needs any more is removed."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

from martlet_core.artifacts.s3 import S3ObjectStore
from martlet_core.artifacts.store import ContentAddressedStore
from martlet_core.backoff import GaveUp
from martlet_core.errors import MartletError
from martlet_core.ids import new_id
from martlet_core.jobs import JobStore
from martlet_core.leftovers import sweep_attempts
from martlet_core.stores import Stores

log = logging.getLogger(__name__)

_LONGEST_PAUSE_SECONDS = 600.0
_LOOKS_A_PERIOD = 10


@dataclass(frozen=True)
class Chore:
    """Something to be done now and then.

    Attributes:
        name: unique in the deployment; all processes that may do it call it so.
        run: does it. May take minutes; is given a ``give_up`` to look at meanwhile, and then raises GaveUp.
    """

    name: str
    run: Callable[[Callable[[], bool]], None]


class Housekeeper:
    """Does chores from a thread, each once a period in the whole deployment.

    Any number of processes may have one. A chore's turn is a named lease as long as the period, taken under a name of
    its own each time and not given back: so one process gets the turn, and the lease says when that was. A turn that
    fails is given back and taken up at the next look, by whoever comes first.

    Args:
        jobs: keeps the leases.
        chores: done one after another.
        period_seconds: between two turns of a chore.
    """

    def __init__(self, jobs: JobStore, chores: Sequence[Chore], period_seconds: float) -> None:
        self._jobs = jobs
        self._chores = chores
        self._period_seconds = period_seconds
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="housekeeping", daemon=True)

    def start(self) -> None:
        """Begin to look what is due; the first time after a while, so that starting isn't slowed down."""
        self._thread.start()

    def stop(self) -> None:
        """Give up what is under way, and end; fine also when it was never started."""
        self._stopped.set()
        if self._thread.ident is not None:
            self._thread.join()

    def run_due(self) -> list[str]:
        """Do what is due; returns the names of the chores that were done. Nothing that fails is raised."""
        return [chore.name for chore in self._chores if not self._stopped.is_set() and self._do(chore)]

    def _run(self) -> None:
        pause_seconds = min(self._period_seconds / _LOOKS_A_PERIOD, _LONGEST_PAUSE_SECONDS)
        while not self._stopped.wait(pause_seconds):
            self.run_due()

    def _do(self, chore: Chore) -> bool:
        lease, turn = f"housekeeping:{chore.name}", new_id()
        try:
            if not self._jobs.acquire_lease(lease, turn, self._period_seconds):
                return False
            chore.run(self._stopped.is_set)
            return True
        except GaveUp:
            log.info("The chore %s was left for another time.", chore.name)
        except MartletError as error:
            log.warning("The chore %s failed: %s", chore.name, error)
        except Exception:
            log.exception("The chore %s failed.", chore.name)
        self._give_back(lease, turn)
        return False

    def _give_back(self, lease: str, turn: str) -> None:
        try:
            self._jobs.release_lease(lease, turn)
        except MartletError as error:
            log.info("The turn of %s was left to lapse: %s", lease, error)


def store_chores(stores: Stores, stages: Sequence[str]) -> list[Chore]:
    """What the stores of a deployment need; ``stages`` are those whose jobs may use artifacts."""
    return [
        Chore("objects", lambda give_up: _sweep_objects(stores, give_up)),
        Chore("attempts", lambda give_up: _sweep_attempts(stores, stages, give_up)),
    ]


def _sweep_objects(stores: Stores, give_up: Callable[[], bool]) -> None:
    """Remove what killed uploads and deletions left in the object store."""
    report = cast(ContentAddressedStore, stores.artifacts).sweep(give_up=give_up)
    aborted = stores.objects.abort_stale_uploads() if isinstance(stores.objects, S3ObjectStore) else 0
    log.info(
        "swept the object store",
        extra={
            "refs": report.refs,
            "blobs": report.blobs,
            "index_entries": report.index_entries,
            "locks": report.locks,
            "multipart_uploads": aborted,
        },
    )


def _sweep_attempts(stores: Stores, stages: Sequence[str], give_up: Callable[[], bool]) -> None:
    removed = sweep_attempts(stores, stages, give_up=give_up)
    log.info("swept the artifacts of attempts", extra={"artifacts": removed})
