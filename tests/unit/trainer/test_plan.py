"""The plan of steps: what every row may rely on."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from martlet_trainer.training.plan import PlanSettings, StepPlan

LENGTHS = np.random.default_rng(0).integers(5, 60, size=103).tolist()


def plan(epochs: float = 1.0, max_steps: int | None = None, **settings: int) -> StepPlan:
    values = {"row_count": 103, "batch_size": 4, "accumulation": 2, "world_size": 1, "seed": 5, **settings}
    return StepPlan(PlanSettings(**values), LENGTHS, epochs, max_steps)


def rows_of_step(the_plan: StepPlan, step: int) -> list[int]:
    ranks = range(the_plan.settings.world_size)
    return [row for rank in ranks for batch in the_plan.rows_of(step, rank) for row in batch]


@pytest.mark.parametrize(
    "settings", [{}, {"world_size": 3}, {"pack_length": 128, "batch_size": 1}, {"batch_size": 500}]
)
def test_each_epoch_takes_every_row_once(settings: dict[str, int]) -> None:
    the_plan = plan(epochs=3, **settings)
    epochs: dict[int, list[int]] = {}
    for step in range(the_plan.total_steps):
        epochs.setdefault(the_plan.epoch_of(step), []).extend(rows_of_step(the_plan, step))
    assert len(epochs) == 3
    for rows in epochs.values():
        assert Counter(rows) == Counter(range(103))
    assert epochs[0] != epochs[1], "epochs are in different orders"


def test_a_plan_is_a_function_of_the_step() -> None:
    """Asking in another order, or from the middle, gives the same rows: resuming needs no replay."""
    forward = [plan(epochs=4).rows_of(step, 0) for step in range(plan(epochs=4).total_steps)]
    fresh = plan(epochs=4)
    assert [fresh.rows_of(step, 0) for step in reversed(range(fresh.total_steps))] == forward[::-1]
    assert plan(epochs=4, seed=6).rows_of(0, 0) != forward[0]


def test_processes_share_a_step() -> None:
    """Three processes take at each step what one would take with three times the batch size."""
    one, three = plan(batch_size=12), plan(batch_size=4, world_size=3)
    assert one.total_steps == three.total_steps
    for step in range(one.total_steps):
        assert sorted(rows_of_step(one, step)) == sorted(rows_of_step(three, step))
        assert len({len(three.rows_of(step, rank)) for rank in range(3)}) == 1, "all meet at the same synchronisations"


def test_packs_fit_and_are_well_filled() -> None:
    the_plan = plan(pack_length=128, batch_size=1, accumulation=1)
    packs = [rows_of_step(the_plan, step) for step in range(the_plan.total_steps)]
    sizes = [sum(LENGTHS[row] for row in pack) for pack in packs]
    assert max(sizes) <= 128
    assert sum(sizes) / (128 * len(packs)) > 0.9


def test_steps_and_fractions_of_epochs() -> None:
    the_plan = plan(epochs=2.5)  # 103 rows, 8 a step: 13 steps an epoch
    assert the_plan.total_steps == 33
    assert [step for step in range(33) if the_plan.is_epoch_end(step)] == [12, 25]
    assert the_plan.fraction_of(0) == 0
    assert the_plan.fraction_of(13) == 1.0
    assert plan(epochs=0.01).total_steps == 1
    assert plan(max_steps=7, epochs=3).total_steps == 7
    assert len(rows_of_step(the_plan, 12)) == 103 - 12 * 8, "the last step of an epoch is smaller, not dropped"
