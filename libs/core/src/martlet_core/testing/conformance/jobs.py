"""A kind of job: what the rules of jobs have to know of it, and how it is asked for.

All contracts name what they offer by one pattern (``CreateTrainingJob``, ``CreateTrainingJobRequest``, ``training_job``,
``trainingJobs/{id}``), so that a kind's noun and its service's descriptor say nearly everything.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import ModuleType
from typing import Any

import grpc
from martlet.common.v1 import job_pb2

from martlet_core.rpc.context import TENANT_KEY
from martlet_core.testing.conformance.checks import eventually, read_all, require
from martlet_core.testing.conformance.failures import RpcFailure
from martlet_core.testing.conformance.rules import Skipped, Target, Untried, option

WAITING_OR_AT_WORK = (job_pb2.JOB_STATE_QUEUED, job_pb2.JOB_STATE_RUNNING)
BEGINNING = (job_pb2.JOB_STATE_VALIDATING, *WAITING_OR_AT_WORK)
FINAL_STATES = (job_pb2.JOB_STATE_SUCCEEDED, job_pb2.JOB_STATE_FAILED, job_pb2.JOB_STATE_CANCELLED)
_REQUEST_FIELDS = ("request_id", "validate_only")
_JOB_FIELDS = ("display_name", "labels")

#: Changes of a sound job, by the name of a field of the request, the job or its spec.
Changes = Mapping[str, Any]


@dataclass(frozen=True)
class JobTarget(Target):
    """A service of jobs. Whether workers take the jobs makes no difference: no job is let run to its end unless
    ``run_seconds`` is set.

    Attributes:
        other_tenant: another tenant's name for ``x-martlet-tenant``; empty leaves the rules about tenants untried.
        run_seconds: seconds that a small job may take to its end; 0 leaves the rules about results untried.
    """

    other_tenant: str = option("", "another tenant's name, for the rules about tenants")
    run_seconds: float = option(0.0, "seconds that a small job may take to its end, for the rules about results")

    def as_other_tenant(self) -> JobTarget:
        """The same service, called by the other tenant; Untried if none was named."""
        if not self.other_tenant:
            raise Untried("name another tenant: --other-tenant")
        kept = tuple(pair for pair in self.metadata if pair[0] != TENANT_KEY)
        return replace(self, metadata=(*kept, (TENANT_KEY, self.other_tenant)))


@dataclass(frozen=True, kw_only=True)
class JobKind:
    """What the rules of jobs have to know of one kind.

    Attributes:
        noun: as the methods name it, ``TrainingJob``.
        service: name of the service, without its package.
        service_messages: the generated module of the service's messages.
        stub: the generated class of its stubs.
        job: class of the job.
        spec: class of its spec.
        sound_spec: fields of a spec that can be created, of a target.
        inputs: fields of the spec that the caller has to name -> the option that names them.
        another: changes that make another sound spec.
        bad_fields: a field that must be named, and the changes that make it wrong.
        unknown_inputs: what doesn't exist, and the changes that ask for it.
        result_field: a text of the result that is empty unless the job succeeded.
        short: changes that make a job end by itself before long.
        success: what must hold for a small job that was let run, as one sentence.
        check_success: checks the job and its events behind SUCCEEDED.
        optional: the service may be left out: UNIMPLEMENTED skips its rules.
        prefix: of its rules' names.
    """

    noun: str
    service: str
    service_messages: ModuleType
    stub: Any
    job: Any
    spec: Any
    sound_spec: Callable[[Any], dict[str, Any]]
    another: Changes
    bad_fields: Sequence[tuple[str, Changes]]
    unknown_inputs: Sequence[tuple[str, Changes]]
    result_field: str
    success: str
    check_success: Callable[[Any, Any, Sequence[job_pb2.JobEvent]], None]
    inputs: Mapping[str, str] = field(default_factory=dict)
    short: Changes = field(default_factory=dict)
    optional: bool = False
    prefix: str = ""

    @property
    def descriptor(self) -> Any:
        """Descriptor of the service."""
        return self.service_messages.DESCRIPTOR.services_by_name[self.service]

    @property
    def field(self) -> str:
        """The job's field in messages: ``training_job``."""
        return re.sub(r"(?<!^)(?=[A-Z])", "_", self.noun).lower()

    @property
    def collection(self) -> str:
        """First part of the job's name: ``trainingJobs``."""
        return self.noun[0].lower() + self.noun[1:] + "s"

    def offers(self, verb: str, suffix: str = "") -> bool:
        """Whether the contract has the method."""
        return f"{verb}{self.noun}{suffix}" in self.descriptor.methods_by_name


@dataclass(frozen=True)
class Jobs:
    """The jobs of one kind at a target: the calls that rules make of them."""

    kind: JobKind
    target: Any

    # Calls

    def call(self, verb: str, suffix: str = "", **fields: Any) -> Any:
        """Call ``<verb><noun><suffix>`` with a request of these fields."""
        method = f"{verb}{self.kind.noun}{suffix}"
        request = getattr(self.kind.service_messages, f"{method}Request")(**fields)
        return getattr(self.kind.stub(self.target.channel), method)(request, **self.target.call_options)

    def request(self, **changes: Any) -> dict[str, Any]:
        """Fields of a request for a sound job; ``changes`` replace fields of the request, the job or its spec. Untried
        where the caller has to name an input and didn't."""
        fields = self.kind.sound_spec(self.target)
        for name, how in self.kind.inputs.items():
            if name not in changes and not fields.get(name):
                raise Untried(f"name what `{name}` may be: {how}")
        request = {name: changes.pop(name) for name in _REQUEST_FIELDS if name in changes}
        job = {name: changes.pop(name) for name in _JOB_FIELDS if name in changes}
        spec = self.kind.spec(**{**fields, **changes})
        return {**request, self.kind.field: self.kind.job(spec=spec, **job)}

    async def create(self, **changes: Any) -> Any:
        """A job that was just created; see ``request``."""
        return await self.call("Create", **self.request(**changes))

    async def ask(self, verb: str, name: str) -> Any:
        """Get, Cancel, Pause or Resume a job."""
        return await self.call(verb, name=name)

    async def watch(self, name: str, after: str = "") -> list[job_pb2.JobEvent]:
        """All that watching says until it ends."""
        return await read_all(self.call("Watch", name=name, after_cursor=after))

    async def page(self, size: int, token: str, **filters: Any) -> tuple[Sequence[str], str]:
        """Names on a page of the list, and the next token."""
        answer = await self.call("List", "s", page_size=size, page_token=token, **filters)
        return [job.name for job in getattr(answer, f"{self.kind.field}s")], answer.next_page_token

    async def event_page(
        self, job: str, size: int, token: str, *, newest_first: bool = False
    ) -> tuple[Sequence[str], str]:
        """Cursors on a page of a job's events, and the next token."""
        fields = {"name": job, "page_size": size, "page_token": token, "newest_first": newest_first}
        answer = await self.call("List", "Events", **fields)
        return [event.cursor for event in answer.events], answer.next_page_token

    def calls_about(self, name: str) -> dict[str, Callable[[], Awaitable[Any]]]:
        """Each method that takes a job's name, ready to be called with this one."""
        calls: dict[str, Callable[[], Awaitable[Any]]] = {}
        noun = self.kind.field.partition("_")[0].title()  # others, such as GetBaseModel, are about something else
        for method in self.kind.descriptor.methods:
            if "name" not in method.input_type.fields_by_name or noun not in method.name:
                continue
            if method.server_streaming:
                calls[method.name] = partial(self.watch, name)
            else:
                calls[method.name] = partial(self._call_method, method, name)
        return calls

    async def _call_method(self, method: Any, name: str) -> Any:
        request = getattr(self.kind.service_messages, method.input_type.name)(name=name)
        return await getattr(self.kind.stub(self.target.channel), method.name)(request, **self.target.call_options)

    # Jobs to look at

    @contextlib.asynccontextmanager
    async def made(self, **changes: Any) -> AsyncIterator[Any]:
        """A job that was just created, and is cancelled behind the block if it hasn't ended."""
        job = await self.create(**changes)
        try:
            yield job
        finally:
            await self.clean_up(job.name)

    async def clean_up(self, *names: str) -> None:
        """Cancel jobs; whether that works is for the rules about cancelling to say."""
        for name in names:
            with contextlib.suppress(grpc.RpcError):
                await self.ask("Cancel", name)

    async def wait_for_state(self, name: str, *states: int) -> Any:
        """The job once it is in one of ``states``; RuleBroken when that takes too long."""

        async def probe() -> Any:
            job = await self.ask("Get", name)
            return job if job.state in states else None

        wanted = " or ".join(state_name(state) for state in states)
        return await eventually(f"{name} {wanted}", probe, seconds=self.target.timeout_seconds)

    async def cancelled(self, **changes: Any) -> Any:
        """A job that was created and cancelled, and has come to rest. Skipped if a worker was quicker."""
        job = await self.create(**changes)
        await self.clean_up(job.name)
        return await self.at_rest(job.name)

    async def at_rest(self, name: str) -> Any:
        """The job, which was cancelled, once it has ended. Skipped if a worker was quicker."""
        ended = await self.wait_for_state(name, *FINAL_STATES)
        require(ended.state != job_pb2.JOB_STATE_FAILED, f"a sound job failed: {ended.error.message}")
        if ended.state == job_pb2.JOB_STATE_SUCCEEDED:
            raise Skipped("a worker had ended the job before it could be cancelled")
        return ended

    async def with_events(self) -> Any:
        """A job that has ended, with events to look at: paused and resumed on its way where its kind can be."""
        if not self.kind.offers("Pause"):
            return await self.cancelled()
        async with self.made() as job:
            await self.wait_for_state(job.name, *WAITING_OR_AT_WORK)
            await self.ask("Pause", job.name)
            await self.wait_for_state(job.name, job_pb2.JOB_STATE_PAUSED)
            await self.ask("Resume", job.name)
        return await self.at_rest(job.name)

    async def require_offered(self) -> None:
        """Skipped if the service is left out here."""
        try:
            await self.page(1, "")
        except grpc.RpcError as error:
            if RpcFailure.of(error).code == "UNIMPLEMENTED":
                raise Skipped(f"{self.kind.service} is not offered here") from None
            raise


def state_name(state: Any) -> str:
    """Name of a state: ``JOB_STATE_QUEUED``."""
    return job_pb2.JobState.Name(state)
