"""What /metrics says of jobs and replicas: numbers that scale workers and replicas."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest
from martlet_core.errors import Unavailable
from martlet_core.jobs import Job, JobState


def value(text: str, series: str) -> float | None:
    """The value of a series; None where there is none."""
    found = re.search(rf"^{re.escape(series)} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else None


async def scrape(gateway: Any) -> str:
    answer = await gateway.http().get("/metrics")
    assert answer.status_code == 200
    return answer.text


async def test_unfinished_jobs_are_those_that_wait_and_those_that_are_held(gateway: Any) -> None:
    jobs = gateway.stores.jobs
    series = '{queue="trainer",stage="trainer"}'
    assert value(await scrape(gateway), f"martlet_jobs_unfinished{series}") is None
    for number in range(3):
        jobs.create(Job(id=f"j{number}", stage="trainer", kind="training", tenant="acme", queue="trainer", spec={}))
    claim = jobs.claim_next("trainer", "w", 30.0)
    text = await scrape(gateway)
    names = ("queued", "held", "unfinished")
    assert [value(text, f"martlet_jobs_{name}{series}") for name in names] == [2, 1, 3]
    assert value(text, "martlet_gateway_job_store_up") == 1
    jobs.finish(claim.job.id, claim.token, JobState.SUCCEEDED)
    text = await scrape(gateway)
    assert [value(text, f"martlet_jobs_{name}{series}") for name in names] == [2, 0, 2]


async def test_without_the_job_store_there_are_no_numbers_of_jobs(
    gateway: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = gateway.stores.jobs
    jobs.create(Job(id="j", stage="trainer", kind="training", tenant="acme", queue="trainer", spec={}))
    assert "martlet_jobs_queued{" in await scrape(gateway)

    def silent(stage: str) -> None:
        raise Unavailable("The job store doesn't answer.")

    monkeypatch.setattr(jobs, "queue_loads", silent)
    text = await scrape(gateway)
    assert "martlet_jobs_queued{" not in text
    assert value(text, "martlet_gateway_job_store_up") == 0
    assert "martlet_gateway_replicas_known" in text


async def test_requests_on_replicas_are_told_by_their_own_model(gateway: Any, start_replica: Any, tools: Any) -> None:
    series = f'martlet_replica_requests{{model="{tools.base}"}}'
    assert value(await scrape(gateway), series) is None
    await start_replica(rate=20.0)
    assert value(await scrape(gateway), series) == 0
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 400, "stream": True}
    stream = await gateway.openai().chat.completions.create(model=tools.base, **body)
    await anext(aiter(stream))
    assert value(await scrape(gateway), series) == 1
    await stream.close()
    async with asyncio.timeout(20):
        while value(await scrape(gateway), series) != 0:  # noqa: ASYNC110  # it is asked of others
            await asyncio.sleep(0.05)
