"""A replica and its GPUs: the engine starts when they are leased, and ends when they are lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from martlet_core.errors import FailedPrecondition, Unavailable
from martlet_core.gpu_devices import Gpu, GpuMachine
from martlet_core.gpus import GpuLease, GpuWish
from martlet_core.testing.gpu_leases import MemoryGpuLeases
from martlet_inference import convert
from martlet_inference.dataplane import DataPlane
from martlet_inference.engines.base import EngineState, WholeModel
from martlet_inference.gpu_gate import GpuGate
from martlet_inference.models import ModelPool
from martlet_inference.replica import build_engine
from martlet_inference.settings import InferenceSettings
from martlet_inference.testing import BASE, MemorySource, RecordingEngine, wait_until

MACHINE = GpuMachine("gpu1", "m", (Gpu(0, "uuid-0"), Gpu(1, "uuid-1")), 2)
LEASE_SECONDS = 0.3


class Leases(MemoryGpuLeases):
    """GPU leases of a store that is away while ``down`` is set."""

    down = False

    def take(self, *args: Any) -> Any:
        self._answer()
        return super().take(*args)

    def renew(self, *args: Any) -> None:
        self._answer()
        super().renew(*args)

    def _answer(self) -> None:
        if self.down:
            raise Unavailable("the job store is away")


class Kit:
    """A pool on an echo engine that needs a GPU."""

    def __init__(self) -> None:
        self.leases = Leases()
        self.engine = RecordingEngine()
        self.pool = ModelPool(self.engine, MemorySource())
        self.plane = DataPlane(self.engine, self.pool, max_requests=4)
        self.environ: dict[str, str] = {}
        self.lost = 0
        self.gate = self.pool.whole.gpus = self.make_gate()

    def make_gate(self, *, count: int = 1, machine: GpuMachine = MACHINE) -> GpuGate:
        return GpuGate(
            self.leases,
            machine,
            count=count,
            share=1.0,
            lease_seconds=LEASE_SECONDS,
            label=lambda: "inference replica r1",
            environ=self.environ,
            poll_seconds=0.01,
        )

    def start(self) -> None:
        self.gate.start(on_change=lambda: None, on_lost=self._on_lost)

    def _on_lost(self) -> None:
        self.lost += 1

    def hold(self, holder: str, *gpus: str) -> None:
        wish = GpuWish(holder, f"training job {holder}", gpus, len(gpus))
        assert isinstance(self.leases.take(wish, 600.0), GpuLease)

    async def refusal(self) -> str:
        with pytest.raises(Unavailable) as caught:
            self.pool.whole.check_ready()
        assert caught.value.reason == "ENGINE_NOT_READY"
        return caught.value.message


@pytest.fixture
async def kit() -> AsyncIterator[Kit]:
    kit = Kit()
    yield kit
    await kit.gate.stop()


async def test_the_engine_starts_on_the_gpu_that_is_free(kit: Kit) -> None:
    kit.hold("x", "uuid-0")
    kit.start()
    await kit.pool.whole.load(BASE)
    assert kit.engine.state is EngineState.READY
    assert kit.environ["CUDA_VISIBLE_DEVICES"] == "1"
    assert [lease.label for lease in kit.leases.leases()] == ["training job x", "inference replica r1"]
    await kit.gate.stop()
    assert [lease.label for lease in kit.leases.leases()] == ["training job x"]


async def test_it_waits_and_says_for_what(kit: Kit) -> None:
    kit.hold("x", "uuid-0", "uuid-1")
    kit.start()
    task = asyncio.create_task(kit.pool.whole.load(BASE))
    await wait_until(lambda: "held by" in kit.gate.reason)
    reason = (
        "waiting for a GPU: GPU 0 of gpu1 is held by training job x (1); GPU 1 of gpu1 is held by training job x (1)"
    )
    assert await kit.refusal() == f"This replica is {reason}; try again."
    replica = await convert.replica(kit.plane, name="", address="", accepts_placement=True, home_models=[])
    assert not replica.ready
    assert replica.models[0].state_reason == reason
    assert kit.engine.log == []
    kit.leases.release("x")
    await task
    assert kit.engine.log == ["start base-1"]
    assert kit.gate.reason == ""


async def test_an_outage_of_the_store_is_outlived(kit: Kit) -> None:
    kit.start()
    await kit.pool.whole.load(BASE)
    kit.leases.down = True
    await wait_until(lambda: not kit.leases.leases())  # it lapsed, and nobody can take the GPU
    kit.leases.down = False
    await wait_until(lambda: kit.leases.leases())
    assert kit.lost == 0
    assert kit.engine.state is EngineState.READY


async def test_lost_gpus_end_the_engine_until_there_are_others(kit: Kit) -> None:
    kit.start()
    await kit.pool.whole.load(BASE)
    kit.leases.give_to(GpuWish("x", "training job x", ("uuid-0", "uuid-1"), 2), 600.0)
    await wait_until(lambda: kit.lost)
    restart = asyncio.create_task(kit.pool.whole.restart())
    await wait_until(lambda: kit.engine.state is EngineState.STOPPED)
    assert "waiting for a GPU" in await kit.refusal()
    kit.leases.release("x")
    await restart
    assert kit.engine.state is EngineState.READY
    assert kit.engine.log == ["start base-1", "start base-1"]


async def test_stopping_while_it_waits_leaves_the_line(kit: Kit) -> None:
    kit.hold("x", "uuid-0", "uuid-1")
    kit.start()
    await wait_until(lambda: kit.leases.tickets())
    await kit.gate.stop()
    assert kit.leases.tickets() == []


async def test_more_gpus_than_there_are_can_never_be_had(kit: Kit) -> None:
    with pytest.raises(FailedPrecondition, match="MARTLET_GPU_COUNT is 3, but this replica may use 2 GPUs of gpu1"):
        kit.make_gate(count=3)


@pytest.mark.parametrize(
    ("values", "seen", "share"),
    [({}, 1, 0.35), ({}, 2, 0.9), ({"gpu_share": 0.5}, 2, 0.5), ({"gpu_share": 0.95}, 1, 0.9)],
)
def test_vllm_takes_what_was_leased(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, float], seen: int, share: float, tmp_path: Path
) -> None:
    monkeypatch.setattr("martlet_inference.replica.installed_vllm", lambda: ("0.32.0", "cuda"))
    settings = InferenceSettings(**values, gpu_count=2)  # type: ignore[arg-type]
    engine: Any = build_engine(settings, GpuMachine("gpu1", "m", MACHINE.gpus, seen))
    args = engine._program.command(WholeModel("m", tmp_path), tmp_path / "s")
    assert args[args.index("--gpu-memory-utilization") + 1] == f"{share:g}"
    assert args[args.index("--tensor-parallel-size") + 1] == "2"
