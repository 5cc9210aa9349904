"""What a replica holds: loading at first use, eviction, swaps, and who may see what."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from martlet_core.artifacts.types import PublishedModel
from martlet_core.errors import FailedPrecondition, NotFound, ResourceExhausted, Unavailable
from martlet_inference.engines.base import EngineState
from martlet_inference.models import RECHECK_SECONDS, ModelPool
from martlet_inference.testing import BASE, Clock, MemorySource, RecordingEngine, adapter


async def until_swapping(pool: ModelPool) -> None:
    begun = asyncio.Event()
    pool.on_change(lambda: begun.set() if pool.whole.swapping else None)
    async with asyncio.timeout(5):
        await begun.wait()


async def touch(pool: ModelPool, name: str, tenant: str = "default") -> None:
    async with pool.use(name, tenant):
        pass


async def test_an_adapter_is_loaded_at_its_first_use_and_only_then(
    pool: ModelPool, source: MemorySource, engine: RecordingEngine
) -> None:
    source.publish(adapter("ft:1"))
    for _ in range(3):
        async with pool.use("ft:1", "default") as held:
            assert held.active == 1
            assert pool.state(held) is EngineState.READY
    assert engine.log == ["load ft:1"]
    assert source.resolved == ["ft:1"]
    assert pool.active_requests == 0


async def test_requests_that_come_together_share_one_load(
    pool: ModelPool, source: MemorySource, engine: RecordingEngine
) -> None:
    source.publish(adapter("ft:1"))
    engine.gate.clear()
    uses = [asyncio.create_task(touch(pool, "ft:1")) for _ in range(20)]
    await engine.at_gate.wait()
    assert [pool.state(held) for held in pool.held()][1:] == [EngineState.STARTING]
    engine.gate.set()
    await asyncio.gather(*uses)
    assert engine.log == ["load ft:1"]


async def test_a_waiter_that_gives_up_leaves_the_load_to_the_others(
    pool: ModelPool, source: MemorySource, engine: RecordingEngine
) -> None:
    source.publish(adapter("ft:1"))
    engine.gate.clear()
    first, second = (asyncio.create_task(touch(pool, "ft:1")) for _ in range(2))
    await engine.at_gate.wait()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    engine.gate.set()
    await second
    assert engine.log == ["load ft:1"]


async def test_the_adapter_unused_for_longest_makes_room(
    pool: ModelPool, source: MemorySource, engine: RecordingEngine
) -> None:
    source.publish(adapter("ft:1"), adapter("ft:2"), adapter("ft:3"))
    for name in ("ft:1", "ft:2", "ft:1", "ft:3"):
        await touch(pool, name)
    assert engine.log == ["load ft:1", "load ft:2", "unload ft:2", "load ft:3"]
    assert [held.model.name for held in pool.held()] == ["base-1", "ft:1", "ft:3"]


async def test_adapters_in_use_or_pinned_stay(pool: ModelPool, source: MemorySource, engine: RecordingEngine) -> None:
    source.publish(adapter("ft:1"), adapter("ft:2"), adapter("ft:3"))
    await pool.load("ft:1", "default", pin=True, drain_seconds=0)
    async with pool.use("ft:2", "default"):
        with pytest.raises(ResourceExhausted) as caught:
            await touch(pool, "ft:3")
        assert caught.value.reason == "NO_ADAPTER_SLOT"
        assert caught.value.retry_after_seconds
    await touch(pool, "ft:3")
    assert engine.log == ["load ft:1", "load ft:2", "unload ft:2", "load ft:3"]
    pool.pin("ft:1", "default", False)
    await touch(pool, "ft:2")
    assert engine.log[-2:] == ["unload ft:1", "load ft:2"]


async def test_many_adapters_through_few_slots(pool: ModelPool, source: MemorySource, engine: RecordingEngine) -> None:
    names = [f"ft:{i}" for i in range(10)]
    source.publish(*(adapter(name) for name in names))
    semaphore = asyncio.Semaphore(2)  # never more adapters in use than there are slots

    async def use(name: str) -> None:
        async with semaphore, pool.use(name, "default"):
            assert name in engine.adapters

    await asyncio.gather(*(use(name) for name in names * 5))
    assert len(engine.adapters) <= engine.max_adapters


async def test_an_adapter_of_another_tenant_does_not_exist(pool: ModelPool, source: MemorySource) -> None:
    source.publish(adapter("ft:1", tenant="acme"))
    await touch(pool, "ft:1", "acme")
    for tenant in ("default", "other"):
        with pytest.raises(NotFound) as caught:
            await touch(pool, "ft:1", tenant)
        assert caught.value.reason == "MODEL_NOT_FOUND"
        with pytest.raises(NotFound):
            pool.pin("ft:1", tenant, True)
        with pytest.raises(NotFound):
            await pool.unload("ft:1", tenant)


async def test_an_adapter_of_another_base_says_which_is_needed(pool: ModelPool, source: MemorySource) -> None:
    source.publish(adapter("ft:1", base="base-2"))
    with pytest.raises(FailedPrecondition) as caught:
        await touch(pool, "ft:1")
    assert caught.value.reason == "BASE_MODEL_NOT_LOADED"
    assert caught.value.metadata["base_model"] == "base-2"
    assert "'base-2'" in caught.value.message


async def test_a_rank_above_the_maximum_is_refused_before_the_download(
    pool: ModelPool, source: MemorySource, engine: RecordingEngine
) -> None:
    source.publish(adapter("ft:1", rank=32))
    with pytest.raises(FailedPrecondition) as caught:
        await touch(pool, "ft:1")
    assert caught.value.reason == "LORA_RANK_TOO_HIGH"
    assert "MARTLET_MAX_LORA_RANK" in caught.value.message
    assert engine.log == []


async def test_a_whole_model_is_not_loaded_by_a_request(pool: ModelPool, source: MemorySource) -> None:
    source.publish(PublishedModel("merged-1", "whole", artifact_id="a2"))
    with pytest.raises(NotFound) as caught:
        await touch(pool, "merged-1")
    assert caught.value.reason == "MODEL_NOT_LOADED"


async def test_a_name_that_means_another_whole_model_by_now_is_loaded_anew(
    pool: ModelPool, source: MemorySource, engine: RecordingEngine, clock: Clock
) -> None:
    await touch(pool, BASE.name)
    source.publish(replace(BASE, artifact_id="a2"))
    await touch(pool, BASE.name)  # believed for a while
    clock.now += RECHECK_SECONDS
    with pytest.raises(NotFound) as caught:
        await touch(pool, BASE.name)
    assert caught.value.reason == "MODEL_NOT_LOADED"
    held = await pool.load(BASE.name, "default", pin=False, drain_seconds=1)
    assert held.model.artifact_id == "a2"
    assert engine.log == [f"start {BASE.name}"]
    await touch(pool, BASE.name)
    await pool.load(BASE.name, "default", pin=False, drain_seconds=1)
    assert engine.log == [f"start {BASE.name}"], "it is the one that is there"


async def test_a_whole_model_whose_name_was_deleted_stays_while_nothing_takes_its_place(
    pool: ModelPool, source: MemorySource, clock: Clock
) -> None:
    source.models.clear()
    clock.now += RECHECK_SECONDS
    await touch(pool, BASE.name)


async def test_after_a_restart_of_the_engine_adapters_come_back_with_their_next_request(
    pool: ModelPool, source: MemorySource, engine: RecordingEngine
) -> None:
    source.publish(adapter("ft:1"))
    await pool.load("ft:1", "default", pin=True, drain_seconds=0)
    await engine.restart()
    [_, held] = pool.held()
    assert pool.state(held) is EngineState.UNHEALTHY
    assert held.pinned
    await touch(pool, "ft:1")
    assert engine.log == ["load ft:1", "load ft:1"]
    assert pool.state(held) is EngineState.READY


async def test_a_refused_adapter_is_forgotten_and_tried_anew(
    pool: ModelPool, source: MemorySource, engine: RecordingEngine
) -> None:
    source.publish(adapter("ft:1"))
    engine.refused["ft:1"] = FailedPrecondition("bad weights", reason="ADAPTER_REFUSED")
    with pytest.raises(FailedPrecondition, match="bad weights"):
        await touch(pool, "ft:1")
    assert [held.model.name for held in pool.held()] == ["base-1"]
    del engine.refused["ft:1"]
    await touch(pool, "ft:1")


async def test_a_deleted_name_ceases_to_answer_within_the_recheck_interval(
    pool: ModelPool, source: MemorySource, engine: RecordingEngine, clock: Clock
) -> None:
    source.publish(adapter("ft:1"))
    await touch(pool, "ft:1")
    del source.models["ft:1"]
    await touch(pool, "ft:1")
    clock.now += RECHECK_SECONDS
    with pytest.raises(NotFound):
        await touch(pool, "ft:1")
    assert engine.log == ["load ft:1", "unload ft:1"]
    assert len(pool.held()) == 1


async def test_while_the_engine_is_down_requests_are_told_to_try_again(
    pool: ModelPool, source: MemorySource, engine: RecordingEngine
) -> None:
    source.publish(adapter("ft:1"))
    await engine.stop()
    for name in ("base-1", "ft:1"):
        with pytest.raises(Unavailable) as caught:
            await touch(pool, name)
        assert caught.value.reason == "ENGINE_NOT_READY"
        assert caught.value.retry_after_seconds
    with pytest.raises(NotFound):
        await touch(pool, "nonsense")


async def test_a_swap_waits_for_running_requests_and_refuses_new_ones(
    pool: ModelPool, source: MemorySource, engine: RecordingEngine
) -> None:
    source.publish(PublishedModel("base-2", "base", artifact_id="a2"), adapter("ft:1"))
    await touch(pool, "ft:1")
    engine.log.clear()
    async with AsyncExitStack() as running:
        await running.enter_async_context(pool.use("base-1", "default"))
        swap = asyncio.create_task(pool.load("base-2", "default", pin=False, drain_seconds=60))
        await until_swapping(pool)
        with pytest.raises(Unavailable) as caught:
            await touch(pool, "base-1")
        assert caught.value.reason == "MODEL_SWAPPING"
        assert engine.log == []
    held = await swap
    assert held.model.name == "base-2"
    assert engine.log == ["start base-2"]
    await touch(pool, "base-2")
    with pytest.raises(FailedPrecondition) as refused:
        await touch(pool, "ft:1")
    assert refused.value.reason == "BASE_MODEL_NOT_LOADED"
    with pytest.raises(NotFound):
        await touch(pool, "base-1")


async def test_a_swap_cuts_off_requests_that_outlast_the_drain_time(pool: ModelPool, source: MemorySource) -> None:
    source.publish(PublishedModel("base-2", "base", artifact_id="a2"))
    async with pool.use("base-1", "default"):
        await pool.load("base-2", "default", pin=False, drain_seconds=0.01)
    assert pool.active_requests == 0


async def test_a_model_the_engine_refuses_leaves_the_previous_one_in_place(
    pool: ModelPool, source: MemorySource, engine: RecordingEngine
) -> None:
    source.publish(PublishedModel("broken", "whole", artifact_id="a2"))
    engine.refused["broken"] = FailedPrecondition("no such architecture", reason="ENGINE_REFUSED_MODEL")
    with pytest.raises(FailedPrecondition, match="no such architecture"):
        await pool.load("broken", "default", pin=False, drain_seconds=0)
    assert engine.log == ["start broken", "start base-1"]
    await touch(pool, "base-1")


async def test_a_pinned_whole_model_is_not_swapped_or_unloaded(pool: ModelPool, source: MemorySource) -> None:
    source.publish(PublishedModel("base-2", "base", artifact_id="a2"))
    await pool.load("base-1", "default", pin=True, drain_seconds=0)
    with pytest.raises(FailedPrecondition) as caught:
        await pool.load("base-2", "default", pin=False, drain_seconds=0)
    assert caught.value.reason == "MODEL_PINNED"
    with pytest.raises(FailedPrecondition):
        await pool.unload("base-1", "default")


async def test_unload(pool: ModelPool, source: MemorySource, engine: RecordingEngine) -> None:
    source.publish(adapter("ft:1"))
    async with pool.use("ft:1", "default"):
        with pytest.raises(FailedPrecondition) as caught:
            await pool.unload("ft:1", "default")
        assert caught.value.reason == "MODEL_IN_USE"
    await pool.unload("ft:1", "default")
    assert engine.log == ["load ft:1", "unload ft:1"]
    with pytest.raises(NotFound) as missing:
        await pool.unload("ft:1", "default")
    assert missing.value.reason == "MODEL_NOT_LOADED"
    await pool.unload("base-1", "default")
    assert engine.state is EngineState.STOPPED
    assert pool.held() == []
    await pool.load("base-1", "default", pin=False, drain_seconds=0)
    await touch(pool, "base-1")


async def test_changes_are_told(pool: ModelPool, source: MemorySource, engine: RecordingEngine) -> None:
    source.publish(adapter("ft:1"))
    seen: list[list[tuple[str, EngineState]]] = []
    pool.on_change(lambda: seen.append([(h.model.name, pool.state(h)) for h in pool.held()]))
    await touch(pool, "ft:1")
    assert seen[0] == [("base-1", EngineState.READY), ("ft:1", EngineState.STARTING)]
    assert seen[-1] == [("base-1", EngineState.READY), ("ft:1", EngineState.READY)]
    await engine.stop()
    assert seen[-1][0] == ("base-1", EngineState.STOPPED)


@pytest.mark.parametrize(
    ("facts", "said"),
    [({"use_dora": True}, "DoRA"), ({"use_dora": False, "modules_to_save": ["lm_head"]}, "whole modules (lm_head)")],
)
async def test_adapters_that_are_more_than_lora_are_sent_to_the_merge(
    engine: RecordingEngine, clock: Clock, tmp_path: Path, facts: dict[str, object], said: str
) -> None:
    """Told by the registry, or else, for those published without the facts, by their own files."""

    class Files(MemorySource):
        async def files(self, model: PublishedModel) -> Path:
            return tmp_path

    source = Files()
    source.publish(replace(adapter("ft:1"), metadata=facts), adapter("ft:2"), adapter("ft:plain"))
    pool = ModelPool(engine, source, clock=clock)
    await pool.whole.load(BASE)
    plain = {"r": 8, "use_dora": False, "modules_to_save": None}
    for name, config in (("ft:1", plain), ("ft:2", {**plain, **facts})):
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
        with pytest.raises(FailedPrecondition) as caught:
            await touch(pool, name)
        assert caught.value.reason == "ADAPTER_NEEDS_MERGE"
        assert said in caught.value.message
        assert f"martlet merge {name}" in caught.value.message
    (tmp_path / "adapter_config.json").write_text(json.dumps(plain))
    await touch(pool, "ft:plain")
    assert engine.log == ["start base-1", "load ft:plain"]


async def test_an_adapter_that_names_no_revision_runs_on_the_one_that_is_served(
    engine: RecordingEngine, source: MemorySource
) -> None:
    pool = ModelPool(engine, source)
    source.publish(
        PublishedModel("org/model@c1", "base"),
        adapter("ft:any", base="org/model"),
        adapter("ft:c1", base="org/model@c1"),
        adapter("ft:c2", base="org/model@c2"),
    )
    await pool.load("org/model@c1", "default", pin=False, drain_seconds=0)
    await touch(pool, "ft:any")
    await touch(pool, "ft:c1")
    with pytest.raises(FailedPrecondition) as caught:
        await touch(pool, "ft:c2")
    assert caught.value.reason == "BASE_MODEL_NOT_LOADED"
    assert engine.adapters == {"ft:any", "ft:c1"}


async def test_files_of_what_is_held_or_on_its_way_are_guarded(
    pool: ModelPool, source: MemorySource, engine: RecordingEngine
) -> None:
    assert set(source.in_use()) == {"a1"}
    source.publish(adapter("ft:1"), PublishedModel("merged-1", "whole", artifact_id="a2"))
    engine.gate.clear()
    use = asyncio.create_task(touch(pool, "ft:1"))
    await engine.at_gate.wait()
    assert set(source.in_use()) == {"a1", "artifact-ft:1"}
    engine.gate.set()
    await use
    assert set(source.in_use()) == {"a1", "artifact-ft:1"}
    seen: list[set[str]] = []
    pool.on_change(lambda: seen.append(set(source.in_use())) if pool.whole.swapping else None)
    await pool.load("merged-1", "default", pin=False, drain_seconds=0)
    assert {"a1", "a2"} <= seen[0], "the old one may have to come back"
    assert set(source.in_use()) == {"a2"}
    await pool.unload("merged-1", "default")
    assert not source.in_use()


async def test_a_model_that_is_to_come_is_not_ready_rather_than_unknown(
    engine: RecordingEngine, source: MemorySource
) -> None:
    source.publish(adapter("ft:1"))
    pool = ModelPool(engine, source)
    pool.whole.announce(BASE)
    for name in (BASE.name, "ft:1"):
        with pytest.raises(Unavailable) as caught:
            await touch(pool, name)
        assert caught.value.reason == "ENGINE_NOT_READY"
    assert [pool.state(held) for held in pool.held()] == [EngineState.STOPPED]
    await pool.whole.load(BASE)
    await touch(pool, "ft:1")


async def test_a_swap_goes_on_when_its_caller_gives_up(
    pool: ModelPool, source: MemorySource, engine: RecordingEngine
) -> None:
    source.publish(PublishedModel("base-2", "base", artifact_id="a2"))
    async with pool.use("base-1", "default"):
        swap = asyncio.create_task(pool.load("base-2", "default", pin=False, drain_seconds=60))
        await until_swapping(pool)
        swap.cancel()
        with pytest.raises(asyncio.CancelledError):
            await swap
    held = await pool.load("base-2", "default", pin=False, drain_seconds=0)
    assert held.model.name == "base-2"
    assert engine.log == ["start base-2"]


async def test_closing_gives_up_a_swap(pool: ModelPool, source: MemorySource, engine: RecordingEngine) -> None:
    source.publish(PublishedModel("base-2", "base", artifact_id="a2"))
    async with pool.use("base-1", "default"):
        swap = asyncio.create_task(pool.load("base-2", "default", pin=False, drain_seconds=60))
        await until_swapping(pool)
        await pool.whole.close()
        with pytest.raises(asyncio.CancelledError):
            await swap
    assert engine.state is EngineState.STOPPED
    assert engine.log == []
