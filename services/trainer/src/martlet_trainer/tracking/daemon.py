"""``python -m martlet_trainer track``: finds trainings that asked for trackers, and follows each to its end.

Any number of these processes may run; a named lease says which one is at work. All it does to a job is read it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time
from collections.abc import Iterator

from martlet_core.alive import touching
from martlet_core.errors import FailedPrecondition, MartletError
from martlet_core.jobs import Job
from martlet_core.stores import Stores, open_stores

from martlet_trainer.naming import TRAINING
from martlet_trainer.settings import TrainerSettings
from martlet_trainer.trackers import TrackerConfig, parse_trackers
from martlet_trainer.tracking.follower import Follower, FollowOptions
from martlet_trainer.tracking.process import TrackerProcess

logger = logging.getLogger(__name__)

_STAGE = "trainer"
_LEASE = f"tracker:{_STAGE}"
_PAGE = 200
#: A tool gets so long for an answer, its libraries' import included.
_ANSWER_SECONDS = 120.0
_LOOK_SECONDS = 2.0
#: Between two looks at all jobs; a look by itself is at the newest page.
_FULL_LOOK_SECONDS = 300.0
_LEASE_SECONDS = 30.0
#: Followers get so long to leave their tools when the process stops.
_STOP_SECONDS = 20.0


class Tracking:
    """The trackers' daemon. Belongs to one event loop.

    Args:
        stores: where jobs and records are.
        settings: the trainer's; ``trackers`` must not be empty.
        options: of the followers.
        answer_seconds: a tool that takes longer to answer is killed and tried again.
    """

    def __init__(
        self,
        stores: Stores,
        settings: TrainerSettings,
        options: FollowOptions | None = None,
        *,
        answer_seconds: float = _ANSWER_SECONDS,
    ) -> None:
        if not settings.offered_trackers:
            raise FailedPrecondition("MARTLET_TRACKERS is empty: set it to what jobs may ask for, such as tensorboard.")
        self._stores = stores
        self._settings = settings
        self._directory = settings.work_dir / "tracking"
        self._directory.mkdir(parents=True, exist_ok=True)
        self._options = options or FollowOptions()
        self._answer_seconds = answer_seconds
        self._owner = f"{socket.gethostname()}-{os.getpid()}"
        self._slots = asyncio.Semaphore(settings.tracker_processes)
        self._followers: dict[tuple[str, str], tuple[Follower, asyncio.Task[None]]] = {}
        self._over: set[tuple[str, str]] = set()
        self._full_look_at = 0.0

    async def run(self, stop: asyncio.Event) -> None:
        """Work until told to stop."""
        try:
            while not stop.is_set():
                try:
                    await self.look()
                except MartletError as error:
                    logger.warning("Tracked jobs can't be looked for: %s", error)
                try:
                    async with asyncio.timeout(_LOOK_SECONDS):
                        await stop.wait()
                except TimeoutError:
                    continue
        finally:
            await self.leave_all()
            try:
                await asyncio.to_thread(self._stores.jobs.release_lease, _LEASE, self._owner)
            except MartletError as error:
                logger.info("The tracker's lease was left to lapse: %s", error)

    async def look(self) -> None:
        """Begin to follow what is new, if this is the process that is at work; else let go of everything."""
        if not await asyncio.to_thread(self._stores.jobs.acquire_lease, _LEASE, self._owner, _LEASE_SECONDS):
            await self.leave_all()
            return
        full = time.monotonic() >= self._full_look_at
        for job in await asyncio.to_thread(lambda: list(self._jobs(full))):
            for tracker in self._wanted(job):
                self._follow(job, tracker)
        if full:
            self._full_look_at = time.monotonic() + _FULL_LOOK_SECONDS

    async def leave_all(self) -> None:
        """Let go of all jobs, soon."""
        following = [*self._followers.values()]
        for follower, _ in following:
            follower.stop()
        if following:
            _, late = await asyncio.wait([task for _, task in following], timeout=_STOP_SECONDS)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        self._full_look_at = 0.0

    def _jobs(self, full: bool) -> Iterator[Job]:
        token = ""
        while True:
            page = self._stores.jobs.list(stage=_STAGE, kind=TRAINING, page_size=_PAGE, page_token=token)
            yield from page.jobs
            token = page.next_page_token
            if not token or not full:
                return

    def _wanted(self, job: Job) -> list[TrackerConfig]:
        if job.state.is_final and time.time() - job.end_time > self._options.give_up_seconds:
            return []
        return [tracker for tracker in parse_trackers(job.spec) if tracker.kind in self._settings.offered_trackers]

    def _follow(self, job: Job, tracker: TrackerConfig) -> None:
        place = (job.id, tracker.kind)
        if place in self._followers or place in self._over:
            return
        directory = str(self._settings.tensorboard_dir)
        follower = Follower(self._stores, job.id, tracker, directory, self._start, self._slots, self._options)
        task = asyncio.create_task(follower.run(), name=f"track-{job.id}-{tracker.kind}")
        self._followers[place] = follower, task
        task.add_done_callback(lambda done: self._ended(place, follower, done))

    def _ended(self, place: tuple[str, str], follower: Follower, task: asyncio.Task[None]) -> None:
        del self._followers[place]
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("Job %s can't be tracked by %s.", *place, exc_info=error)
        if not follower.stopped:
            self._over.add(place)

    async def _start(self, kind: str) -> TrackerProcess:
        return await TrackerProcess.start(kind, self._directory, self._answer_seconds)


def track(settings: TrainerSettings) -> int:
    """Follow jobs until SIGTERM or SIGINT; returns the exit code."""

    async def run() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await Tracking(open_stores(settings), settings).run(stop)

    with touching(settings.alive_file):
        asyncio.run(run())
    return 0
