"""A replica's parts on the echo engine, with a model source kept in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from martlet.inference.v1 import inference_service_pb2_grpc as service_grpc
from martlet_inference.dataplane import DataPlane
from martlet_inference.models import ModelPool
from martlet_inference.testing import BASE, Clock, MemorySource, RecordingEngine, serving


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def source() -> MemorySource:
    known = MemorySource()
    known.publish(BASE)
    return known


@pytest.fixture
async def engine() -> RecordingEngine:
    return RecordingEngine(max_adapters=2, max_lora_rank=16)


@pytest.fixture
async def pool(engine: RecordingEngine, source: MemorySource, clock: Clock) -> ModelPool:
    """A pool that serves ``base-1``."""
    made = ModelPool(engine, source, clock=clock)
    await made.whole.load(BASE)
    engine.log.clear()
    return made


@pytest.fixture
async def stub(pool: ModelPool, engine: RecordingEngine) -> AsyncIterator[service_grpc.InferenceServiceStub]:
    """The service over a real connection; takes at most four requests at a time."""
    async with serving(DataPlane(engine, pool, max_requests=4)) as channel:
        yield service_grpc.InferenceServiceStub(channel)
