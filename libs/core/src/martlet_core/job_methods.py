"""What a job service's gRPC methods do when they are the same for every kind of job: a servicer names them and adds its own.

A servicer's method stays one line: validate, convert, call. The tenant is the call's (``martlet_core.rpc.context``).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message
from martlet.common.v1 import job_pb2

from martlet_core.job_proto import event_to_proto, states_from_proto
from martlet_core.job_resource import JobResource
from martlet_core.job_service import JobService, NewJob, check_page_size
from martlet_core.jobs import Job
from martlet_core.rpc.context import call_context

M = TypeVar("M", bound=Message)


class JobMethods(Generic[M]):
    """The methods of one kind of job.

    Args:
        jobs: the stage's jobs.
        resource: the kind.
    """

    def __init__(self, jobs: JobService, resource: JobResource[M]) -> None:
        self._jobs = jobs
        self._resource = resource

    async def create(self, new: NewJob, check: Callable[[str], Awaitable[None]], *, validate_only: bool) -> M:
        """Check everything that needs no GPU, then queue.

        Args:
            new: what was asked for.
            check: raises if the tenant it is given can't have that.
            validate_only: return the job as it would be, and create none.
        """
        tenant = call_context().tenant
        draft = self._jobs.draft(tenant, new)
        await check(tenant)
        if validate_only:
            return self._resource.to_proto(draft)
        return await self.show(await self._jobs.create(tenant, new))

    async def get(self, name: str) -> M:
        """Look one up."""
        return await self.show(await self.job(name))

    async def job(self, name: str) -> Job:
        """The job behind a resource name."""
        return await self._jobs.get(**self.key(name))

    async def page(self, request: Any) -> tuple[list[M], str]:
        """The tenant's jobs, newest first, and the next page's token; ``request`` is a ``List...JobsRequest``."""
        page = await self._jobs.list(
            call_context().tenant,
            kind=self._resource.kind,
            states=states_from_proto(request.states),
            labels=dict(request.labels),
            page_size=request.page_size,
            page_token=request.page_token,
        )
        return [await self.show(job) for job in page.jobs], page.next_page_token

    async def cancel(self, name: str) -> M:
        """Stop for good."""
        return await self.show(await self._jobs.cancel(**self.key(name)))

    async def pause(self, name: str) -> M:
        """Keep what can be kept and give the worker back."""
        return await self.show(await self._jobs.pause(**self.key(name)))

    async def resume(self, name: str) -> M:
        """Queue again."""
        return await self.show(await self._jobs.resume(**self.key(name)))

    async def watch(self, request: Any) -> AsyncIterator[job_pb2.JobEvent]:
        """Stream events to the end; ``request`` is a ``Watch...JobRequest``."""
        async for event in self._jobs.watch(**self.key(request.name), after=request.after_cursor):
            yield event_to_proto(event)

    async def events(self, request: Any) -> job_pb2.ListJobEventsResponse:
        """List past events; ``request`` is a ``List...JobEventsRequest``."""
        events, next_token = await self._jobs.events(
            **self.key(request.name),
            page_size=request.page_size,
            page_token=request.page_token,
            newest_first=request.newest_first,
        )
        return job_pb2.ListJobEventsResponse(
            events=[event_to_proto(event) for event in events], next_page_token=next_token
        )

    async def show(self, job: Job) -> M:
        """The job as the contract shows it, with its place in the queue."""
        return self._resource.to_proto(job, await self._jobs.queue_position(job))

    def key(self, name: str) -> dict[str, str]:
        """Whose job of which kind a resource name means, as arguments of the job service."""
        return {"tenant": call_context().tenant, "job_id": self._resource.job_id(name), "kind": self._resource.kind}


def page_of_names(names: Sequence[str], page_size: int, page_token: str) -> tuple[Sequence[str], str]:
    """A page of sorted names (of base models, methods, suites); a token is the last name seen."""
    size = check_page_size(page_size, default=100)
    rest = [name for name in names if name > page_token]
    return rest[:size], rest[size - 1] if len(rest) > size else ""
