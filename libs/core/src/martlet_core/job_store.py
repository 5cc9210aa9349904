"""The job store on Redis or Valkey.

One hash a job, changed only by Lua scripts (``lua/``) that compare and set by the server's clock; beside it sorted
sets that say who waits, who holds a lease and what was created when, and one stream of events a job. Every method is
one round trip, save for long lists. The server must keep what it is given: append-only file on, ``maxmemory-policy
noeviction``. A single server (or a primary with replicas) is meant, not Redis Cluster: the scripts work out their
keys themselves.

Keys behind the prefix: ``job:<id>`` (hash), ``events:<id>`` (stream), ``queue:<queue>``, ``leases:<stage>``,
``jobs:<stage|*>:<kind|*>:<tenant|*>`` (sorted sets), ``queues:<stage>`` (set), ``requests:<stage>:<tenant>`` (hash),
``lease:<name>`` (string).
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, cast

import redis

from martlet_core import job_codec as codec
from martlet_core import job_rules as rules
from martlet_core.job_store_lua import load_scripts
from martlet_core.jobs import Claim, Job, JobEvent, JobPage, JobState, LeaseSignal, QueueLoad
from martlet_core.redis_calls import DEFAULT_PREFIX, connect, send

_LONGEST_BLOCK_SECONDS = 4.0  # a blocking read stays well below the socket timeout, so that a dead server is noticed
_LIST_BUDGET = 1000  # jobs that one list script looks at: the server serves nobody else meanwhile
_BATCH = 200


class RedisJobStore:
    """``JobStore`` on Redis or Valkey. Thread-safe; make one a process.

    A call that a broken connection interrupts is not sent again, since it may have been carried out: it raises
    Unavailable, and the caller decides. The next call connects anew.
    """

    def __init__(self, client: redis.Redis, *, prefix: str = DEFAULT_PREFIX) -> None:
        """``client`` must decode answers to str; ``from_url`` makes a fitting one."""
        self._client = client
        self._prefix = prefix
        self._scripts = {name: client.register_script(text) for name, text in load_scripts().items()}

    @classmethod
    def from_url(cls, url: str, *, prefix: str = DEFAULT_PREFIX) -> RedisJobStore:
        """A store on the server at ``redis://[user:password@]host:port/db`` (``rediss://``: TLS). Connects later."""
        return cls(connect(url), prefix=prefix)

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    # Creating and reading

    def create(self, job: Job) -> tuple[Job, bool]:
        """See ``JobStore.create``."""
        rules.check_new_job(job)
        event = rules.state_event(None, rules.Move(job.state))
        answer = self._run(
            "create",
            *(job.id, job.stage, job.kind, job.tenant, job.queue, job.priority, job.state.value, job.request_id),
            *(rules.fingerprint(job), event.level, event.message, rules.to_json("event", event.data)),
            *codec.job_to_fields(job, new=True),
        )
        if answer[0] == "request_id_taken":
            raise rules.request_id_taken(job.request_id, answer[1])
        if answer[0] == "job_id_taken":
            raise rules.job_id_taken(job.id)
        return codec.job_from_fields(answer[1]), answer[0] == "ok"

    def restore(self, job: Job) -> bool:
        """See ``JobStore.restore``."""
        rules.check_stored_job(job)
        answer = self._run(
            "restore",
            *(job.id, job.stage, job.kind, job.tenant, job.queue, job.priority, job.state.value, job.request_id),
            *(codec.to_micros(job.create_time), codec.to_micros(job.lease_until)),
            *codec.job_to_fields(job, new=False),
        )
        return answer[0] == "ok"

    def get(self, job_id: str) -> Job:
        """See ``JobStore.get``."""
        fields = send(lambda: self._client.hgetall(f"{self._prefix}job:{job_id}"))
        if not fields:
            raise rules.unknown_job(job_id)
        return codec.job_from_mapping(fields)

    def list(
        self,
        *,
        stage: str | None = None,
        kind: str | None = None,
        tenant: str | None = None,
        states: Sequence[JobState] = (),
        labels: Mapping[str, str] | None = None,
        page_size: int = 20,
        page_token: str = "",
    ) -> JobPage:
        """See ``JobStore.list``."""
        rules.check_page_size(page_size)
        index = f"{stage or '*'}:{kind or '*'}:{':' + tenant if tenant else '*'}"
        label_fields = [text for name, value in (labels or {}).items() for text in (codec.LABEL + name, value)]
        jobs: list[Job] = []
        last, outcome = page_token, "more"
        while outcome == "more":
            room = page_size - len(jobs)
            state_names = [state.value for state in states]
            answer = self._run("list", index, last, room, _LIST_BUDGET, len(states), *state_names, *label_fields)
            if answer[0] == "unknown_token":
                raise rules.unknown_page_token(page_token)
            outcome, last = answer[0], answer[1]
            jobs += [codec.job_from_fields(fields) for fields in answer[2]]
        return JobPage(jobs, jobs[-1].id if outcome == "full" else "")

    def queued(self, stage: str, *, older_than_seconds: float = 0.0) -> Sequence[Job]:
        """See ``JobStore.queued``."""
        queues = cast("set[str]", send(lambda: self._client.smembers(f"{self._prefix}queues:{stage}")))
        jobs: list[Job] = []
        for queue in queues:
            member = ""
            while True:
                answer = self._run("queued", queue, member, _BATCH, codec.to_micros(older_than_seconds))
                jobs += [codec.job_from_fields(fields) for fields in answer[2]]
                member = answer[1]
                if not member:
                    break
        return sorted(jobs, key=lambda job: (-job.priority, job.create_time, job.id))

    def queue_position(self, job_id: str) -> int:
        """See ``JobStore.queue_position``."""
        return self._run_on_job("queue_position", job_id)[1]

    def queue_loads(self, stage: str) -> Sequence[QueueLoad]:
        """See ``JobStore.queue_loads``."""
        return sorted((QueueLoad(*load) for load in self._run("queue_loads", stage)[1]), key=lambda load: load.queue)

    # Requests of users

    def enqueue(self, job_id: str) -> Job:
        """See ``JobStore.enqueue``."""
        return self._request("enqueue", job_id)

    def request_cancel(self, job_id: str) -> Job:
        """See ``JobStore.request_cancel``."""
        return self._request("cancel", job_id)

    def request_pause(self, job_id: str) -> Job:
        """See ``JobStore.request_pause``."""
        return self._request("pause", job_id)

    def request_resume(self, job_id: str) -> Job:
        """See ``JobStore.request_resume``."""
        return self._request("resume", job_id)

    def _request(self, action: str, job_id: str) -> Job:
        answer = self._run("request", job_id, action)
        if answer[0] == "illegal":
            raise rules.illegal_transition(job_id, JobState(answer[1]), action)
        return self._job(job_id, answer)

    # Workers

    def claim(self, job_id: str, owner: str, lease_seconds: float) -> Claim | None:
        """See ``JobStore.claim``."""
        rules.check_lease_seconds(lease_seconds)
        answer = self._run_on_job("claim", job_id, owner, codec.to_micros(lease_seconds))
        return None if answer[0] == "none" else _claim(answer)

    def claim_next(self, queue: str, owner: str, lease_seconds: float) -> Claim | None:
        """See ``JobStore.claim_next``."""
        rules.check_lease_seconds(lease_seconds)
        answer = self._run("claim_next", queue, owner, codec.to_micros(lease_seconds))
        return None if answer[0] == "none" else _claim(answer)

    def first_queued(self, queue: str) -> Job | None:
        """See ``JobStore.first_queued``."""
        answer = self._run("first_queued", queue)
        return None if answer[0] == "none" else codec.job_from_fields(answer[1])

    def note_queued(self, job_id: str, reason: str) -> bool:
        """See ``JobStore.note_queued``."""
        event = rules.queued_event(reason)
        return self._run_on_job("note_queued", job_id, reason, rules.to_json("data", event.data))[1] == 1

    def heartbeat(self, job_id: str, token: int, lease_seconds: float) -> LeaseSignal:
        """See ``JobStore.heartbeat``."""
        rules.check_lease_seconds(lease_seconds)
        answer = self._run_with_token("heartbeat", job_id, token, codec.to_micros(lease_seconds))
        return rules.SIGNALS[JobState(answer[1])]

    def update(
        self,
        job_id: str,
        token: int,
        *,
        progress: Mapping[str, Any] | None = None,
        result: Mapping[str, Any] | None = None,
        checkpoints: Sequence[Mapping[str, Any]] | None = None,
    ) -> Job:
        """See ``JobStore.update``."""
        fields = codec.result_to_fields(result)
        if progress is not None:
            fields += ["progress", rules.to_json("progress", progress)]
        if checkpoints is not None:
            fields += ["checkpoints", rules.to_json("checkpoints", checkpoints)]
        return codec.job_from_fields(self._run_with_token("update", job_id, token, *fields)[1])

    def finish(
        self,
        job_id: str,
        token: int,
        state: JobState,
        *,
        result: Mapping[str, Any] | None = None,
        error: Mapping[str, Any] | None = None,
    ) -> Job:
        """See ``JobStore.finish``."""
        action = rules.finish_action(job_id, state)
        fields = [*codec.result_to_fields(result), "error", codec.error_to_text(error)]
        answer = self._run_with_token(
            "finish", job_id, token, action, "1" if error else "0", rules.error_text(error), *fields
        )
        return codec.job_from_fields(answer[1])

    def reap(self, stage: str) -> Sequence[Job]:
        """See ``JobStore.reap``."""
        error = rules.to_json("error", rules.ATTEMPTS_EXHAUSTED_ERROR)
        jobs: list[Job] = []
        while True:
            batch = self._run("reap", stage, _BATCH, error)[1]
            jobs += [codec.job_from_fields(fields) for fields in batch]
            if len(batch) < _BATCH:
                return jobs

    # Events

    def append_event(self, job_id: str, event: JobEvent) -> JobEvent:
        """See ``JobStore.append_event``."""
        data = rules.to_json("data", event.data)
        answer = self._run_on_job("append_event", job_id, event.type, event.level, event.attempt, event.message, data)
        return codec.stored_event(event, cursor=answer[1], create_time=codec.from_micros(answer[2]))

    def events(
        self, job_id: str, *, after: str = "", limit: int = 100, newest_first: bool = False
    ) -> Sequence[JobEvent]:
        """See ``JobStore.events``."""
        rules.check_cursor(after)
        rules.check_page_size(limit)
        answer = self._run_on_job("events", job_id, after, limit, "1" if newest_first else "0")
        return [codec.event_from_fields(cursor, fields) for cursor, fields in answer[1]]

    def with_news(self, places: Sequence[tuple[str, str]]) -> Sequence[tuple[str, str]]:
        """See ``JobStore.with_news``. One round trip for some hundred places."""
        for _, after in places:
            rules.check_cursor(after)
        found: list[tuple[str, str]] = []
        for start in range(0, len(places), _BATCH):
            batch = places[start : start + _BATCH]
            answer = self._run("with_news", *(text for place in batch for text in place))
            found += [batch[index - 1] for index in answer[1]]
        return found

    def wait_events(self, job_id: str, *, after: str, timeout_seconds: float) -> Sequence[JobEvent]:
        """See ``JobStore.wait_events``. Holds a connection while it waits."""
        deadline = time.monotonic() + timeout_seconds
        events = self.events(job_id, after=after)
        stream = f"{self._prefix}events:{job_id}"
        while not events and (left := deadline - time.monotonic()) > 0:
            block = max(1, math.ceil(min(left, _LONGEST_BLOCK_SECONDS) * 1000))  # 0 would wait for ever
            answer = send(lambda block=block: self._client.xread({stream: after or "0-0"}, count=100, block=block))
            events = [codec.event_from_mapping(cursor, fields) for _, rows in answer or () for cursor, fields in rows]
        return events

    def expire_events(self, job_id: str, after_seconds: float) -> None:
        """See ``JobStore.expire_events``."""
        self.get(job_id)
        send(lambda: self._client.pexpire(f"{self._prefix}events:{job_id}", max(1, int(after_seconds * 1000))))

    # Named leases and health

    def acquire_lease(self, name: str, owner: str, lease_seconds: float) -> bool:
        """See ``JobStore.acquire_lease``."""
        rules.check_lease_seconds(lease_seconds)
        return self._run("lease", name, owner, max(1, int(lease_seconds * 1000)))[1] == 1

    def release_lease(self, name: str, owner: str) -> None:
        """See ``JobStore.release_lease``."""
        self._run("lease", name, owner, 0)

    def ping(self) -> None:
        """See ``JobStore.ping``."""
        send(self._client.ping)

    # Plumbing

    def _run(self, script: str, *args: str | int) -> list[Any]:
        return send(lambda: self._scripts[script](args=(self._prefix, *args)))

    def _run_on_job(self, script: str, job_id: str, *args: str | int) -> list[Any]:
        answer = self._run(script, job_id, *args)
        if answer[0] == "not_found":
            raise rules.unknown_job(job_id)
        return answer

    def _run_with_token(self, script: str, job_id: str, token: int, *args: str | int) -> list[Any]:
        answer = self._run_on_job(script, job_id, token, *args)
        if answer[0] == "lease_lost":
            raise rules.lease_lost(job_id, token, JobState(answer[1]), int(answer[2]))
        return answer

    def _job(self, job_id: str, answer: list[Any]) -> Job:
        if answer[0] == "not_found":
            raise rules.unknown_job(job_id)
        return codec.job_from_fields(answer[1])


def _claim(answer: list[Any]) -> Claim:
    job = codec.job_from_fields(answer[1])
    return Claim(job, job.attempt)
