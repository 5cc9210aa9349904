"""Streams of job events for many watchers at once, with no thread or connection held by any of them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator

from martlet_core.errors import MartletError, Unavailable
from martlet_core.job_archive import EventLog
from martlet_core.jobs import JobEvent, JobState, JobStore

logger = logging.getLogger(__name__)

_PAGE = 500
#: Rest between two rounds; a watcher hears of an event half of it late, on average.
_POLL_SECONDS = 0.1
_OUTAGE_SECONDS = 1.0

#: A job and the cursor of the last event seen: watchers of the same place share one topic.
_Place = tuple[str, str]


class _Topic:
    def __init__(self) -> None:
        self.watchers = 0
        self.has_news = asyncio.Event()


class EventFeed:
    """Watches any number of jobs from one task: one short read a round, however many jobs and watchers there are.

    Belongs to the event loop that watches.
    """

    def __init__(self, store: JobStore, log: EventLog) -> None:
        self._store = store
        self._log = log
        self._topics: dict[_Place, _Topic] = {}
        self._poller: asyncio.Task[None] | None = None

    async def watch(self, job_id: str, *, after: str = "") -> AsyncGenerator[JobEvent]:
        """Events behind a cursor as they come; ends after the event of the final state, or at once when that was seen.

        Raises:
            NotFound: there is no such job (any more).
            Unavailable: the store doesn't answer; watch again from the last cursor.
        """
        cursor = after
        while True:
            job = await asyncio.to_thread(self._store.get, job_id)
            while True:
                events = await asyncio.to_thread(self._log.page, job, cursor, _PAGE)
                for event in events:
                    cursor = event.cursor
                    yield event
                    if _is_final(event):
                        return
                if len(events) < _PAGE:
                    break
            if job.state.is_final:
                return
            await self._wait_for_news((job_id, cursor))

    async def _wait_for_news(self, place: _Place) -> None:
        topic = self._topics.setdefault(place, _Topic())
        topic.watchers += 1
        if self._poller is None or self._poller.done():
            self._poller = asyncio.create_task(self._poll(), name="event-feed")
        try:
            await topic.has_news.wait()
        finally:
            topic.watchers -= 1
            if topic.watchers == 0 and self._topics.get(place) is topic:
                del self._topics[place]

    async def _poll(self) -> None:
        while self._topics:
            try:
                with_news = await asyncio.to_thread(self._store.with_news, list(self._topics))
            except Unavailable as error:
                logger.warning("Watched jobs can't be looked at: %s", error)
                await asyncio.sleep(_OUTAGE_SECONDS)
                continue
            except MartletError:
                with_news = list(self._topics)  # the watchers find out what is wrong by reading themselves
            for place in with_news:
                topic = self._topics.pop(place, None)
                if topic is not None:
                    topic.has_news.set()
            await asyncio.sleep(_POLL_SECONDS)


def _is_final(event: JobEvent) -> bool:
    return event.type == "state" and JobState(event.data["to"]).is_final
