"""A gateway that was started just now: replicas that lost their lease while it was away come back before it gives up."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from martlet_core.artifacts.types import PublishedModel
from martlet_gateway.testing.replica import scripted
from martlet_inference.testing import wait_until

MESSAGES: Any = [{"role": "user", "content": "one two"}]


@pytest.fixture
async def settings(settings: Any) -> Any:
    """A gateway that waits for replicas longer than any test."""
    return settings.model_copy(update={"replica_settle_seconds": 600.0, "placement_timeout_seconds": 60.0})


async def test_a_replica_that_comes_back_after_the_start_is_found(gateway: Any) -> None:
    gateway.stores.models.publish(PublishedModel("merged-1", "whole", "acme", "a1"))
    body = {"model": "merged-1", "messages": MESSAGES}
    asked = asyncio.create_task(gateway.http().post("/v1/chat/completions", json=body))
    await wait_until(lambda: gateway.server.context.metrics.active._value.get() == 1)
    async with scripted(gateway, "a", accepts_placement=True) as a:
        assert (await asked).json() == {"from": "a"}
        assert a.loads == ["merged-1"]


async def test_nobody_is_waited_for_longer_than_the_client_waits(gateway: Any) -> None:
    gateway.stores.models.publish(PublishedModel("merged-1", "whole", "acme", "a1"))
    headers = {"x-stainless-read-timeout": "1.2"}
    body = {"model": "merged-1", "messages": MESSAGES}
    answer = await gateway.http().post("/v1/chat/completions", json=body, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_not_loaded")
