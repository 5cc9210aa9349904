"""What every store of GPU leases must do, as a pytest class.

Subclass ``GpuLeaseSuite`` and give it the fixtures ``gpus`` (an empty store), ``pass_time`` (returns when so many seconds have
passed on the store's clock) and ``lose_all`` (empties the store).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from martlet_core.errors import InvalidArgument, LeaseLost
from martlet_core.gpus import GpuLease, GpuLeases, GpuWait, GpuWish

LONG = 60.0
SHORT = 0.05
PassTime = Callable[[float], None]


def wish(holder: str, *gpus: str, **changes: Any) -> GpuWish:
    """A wish for one whole GPU of ``gpus`` unless told otherwise."""
    return GpuWish(holder, f"job {holder}", gpus or ("a",), **changes)


def taken(gpus: GpuLeases, wanted: GpuWish, lease_seconds: float = LONG) -> GpuLease:
    """The lease of a wish that must be granted."""
    answer = gpus.take(wanted, lease_seconds)
    assert isinstance(answer, GpuLease), answer
    return answer


def waits(gpus: GpuLeases, wanted: GpuWish) -> GpuWait:
    """The answer to a wish that must wait."""
    answer = gpus.take(wanted, LONG)
    assert isinstance(answer, GpuWait), answer
    return answer


def most_used(leases: Iterable[GpuLease]) -> float:
    """The largest sum of shares of a GPU."""
    sums: dict[str, float] = {}
    for lease in leases:
        for gpu in lease.gpus:
            sums[gpu] = sums.get(gpu, 0.0) + lease.share
    return round(max(sums.values(), default=0.0), 6)


class GpuLeaseSuite:
    """All cases."""

    @pytest.fixture
    def gpus(self) -> GpuLeases:
        """An empty store."""
        raise NotImplementedError("the suite's subclass gives the fixture `gpus`")

    @pytest.fixture
    def pass_time(self) -> PassTime:
        """A function that returns when so many seconds have passed on the store's clock."""
        raise NotImplementedError("the suite's subclass gives the fixture `pass_time`")

    @pytest.fixture
    def lose_all(self) -> Callable[[], None]:
        """A function that empties the store behind its back."""
        raise NotImplementedError("the suite's subclass gives the fixture `lose_all`")

    # Taking and giving back

    def test_a_free_gpu_is_given_at_once(self, gpus: GpuLeases) -> None:
        lease = taken(gpus, wish("x", "a", "b", share=0.65))
        assert (lease.gpus, lease.share, lease.holder, lease.label) == (("a",), 0.65, "x", "job x")
        assert gpus.leases() == [lease]
        assert gpus.tickets() == []

    def test_a_released_gpu_is_the_next_ones(self, gpus: GpuLeases) -> None:
        taken(gpus, wish("x"))
        wait = waits(gpus, wish("y"))
        assert [lease.holder for lease in wait.leases] == ["x"]
        gpus.release("x")
        assert taken(gpus, wish("y")).gpus == ("a",)
        gpus.release("nobody")

    def test_asking_again_gives_the_same_lease(self, gpus: GpuLeases) -> None:
        first = taken(gpus, wish("x", "a", "b"))
        again = taken(gpus, wish("x", "a", "b"))
        assert (again.gpus, again.number) == (first.gpus, first.number)
        assert len(gpus.leases()) == 1

    def test_shares_add_up_to_one_and_no_further(self, gpus: GpuLeases) -> None:
        taken(gpus, wish("replica", share=0.35, lasting=True))
        taken(gpus, wish("job", share=0.65))
        waits(gpus, wish("more", share=0.001))
        assert most_used(gpus.leases()) == 1.0

    def test_several_gpus_are_given_together_or_not_at_all(self, gpus: GpuLeases) -> None:
        taken(gpus, wish("x", "a"))
        wait = waits(gpus, wish("y", "a", "b", count=2))
        assert [lease.holder for lease in wait.leases] == ["x"]
        assert [lease.holder for lease in gpus.leases()] == ["x"]
        gpus.release("x")
        assert set(taken(gpus, wish("y", "a", "b", count=2)).gpus) == {"a", "b"}

    def test_the_emptiest_gpu_is_chosen(self, gpus: GpuLeases) -> None:
        taken(gpus, wish("x", "a", share=0.5))
        assert taken(gpus, wish("y", "a", "b", share=0.5)).gpus == ("b",)

    def test_a_wish_nobody_could_grant_is_refused(self, gpus: GpuLeases) -> None:
        for changes in ({"count": 2}, {"count": 0}, {"share": 0.0}, {"share": 1.1}):
            with pytest.raises(InvalidArgument):
                gpus.take(wish("x", "a", **changes), LONG)
        assert gpus.tickets() == []

    # Lapsing

    def test_a_lease_that_is_not_renewed_lapses(self, gpus: GpuLeases, pass_time: PassTime) -> None:
        taken(gpus, wish("dead"), SHORT)
        waits(gpus, wish("next"))
        pass_time(SHORT * 2)
        assert gpus.leases() == []
        taken(gpus, wish("next"))

    def test_a_renewed_lease_holds(self, gpus: GpuLeases, pass_time: PassTime) -> None:
        lease = taken(gpus, wish("x"), SHORT)
        gpus.renew(lease, LONG)
        pass_time(SHORT * 2)
        assert [lease.holder for lease in gpus.leases()] == ["x"]
        waits(gpus, wish("y"))

    def test_a_lapsed_lease_is_taken_anew_while_nobody_has_the_gpu(self, gpus: GpuLeases, pass_time: PassTime) -> None:
        lease = taken(gpus, wish("x"), SHORT)
        pass_time(SHORT * 2)
        gpus.renew(lease, LONG)
        waits(gpus, wish("y"))

    def test_a_lapsed_lease_is_lost_once_another_has_the_gpu(self, gpus: GpuLeases, pass_time: PassTime) -> None:
        lease = taken(gpus, wish("slow"), SHORT)
        pass_time(SHORT * 2)
        taken(gpus, wish("fast"))
        with pytest.raises(LeaseLost):
            gpus.renew(lease, LONG)
        assert [held.holder for held in gpus.leases()] == ["fast"]

    def test_holders_outlive_a_store_that_lost_everything(self, gpus: GpuLeases, lose_all: Callable[[], None]) -> None:
        leases = [taken(gpus, wish("x", share=0.35)), taken(gpus, wish("y", share=0.65))]
        lose_all()
        for lease in leases:
            gpus.renew(lease, LONG)
        assert [lease.holder for lease in gpus.leases()] == ["x", "y"]
        late = waits(gpus, wish("z", share=0.5))
        assert len(late.leases) == 2

    # The line

    def test_who_came_first_gets_it_first(self, gpus: GpuLeases) -> None:
        taken(gpus, wish("x"))
        waits(gpus, wish("first"))
        wait = waits(gpus, wish("second"))
        assert [ticket.wish.holder for ticket in wait.ahead] == ["first"]
        assert [ticket.wish.holder for ticket in gpus.tickets()] == ["first", "second"]
        gpus.release("x")
        waits(gpus, wish("second"))
        taken(gpus, wish("first"))

    def test_who_just_had_it_goes_to_the_end_of_the_line(self, gpus: GpuLeases) -> None:
        taken(gpus, wish("x"))
        waits(gpus, wish("y"))
        gpus.release("x")
        waits(gpus, wish("x again"))
        taken(gpus, wish("y"))

    def test_small_wishes_do_not_starve_a_large_one(self, gpus: GpuLeases) -> None:
        taken(gpus, wish("small 0", share=0.5))
        waits(gpus, wish("large", share=1.0))
        for number in range(1, 4):
            waits(gpus, wish(f"small {number}", share=0.25))
        gpus.release("small 0")
        taken(gpus, wish("large", share=1.0))

    def test_small_wishes_do_not_starve_a_middling_one_by_turns(self, gpus: GpuLeases) -> None:
        for number in (1, 2):
            taken(gpus, wish(f"old {number}", share=0.3))
        waits(gpus, wish("middling", share=0.6))
        taken(gpus, wish("new 1", share=0.3))  # fits beside the middling one
        waits(gpus, wish("new 2", share=0.2))  # wouldn't
        gpus.release("old 1")
        waits(gpus, wish("new 2", share=0.2))
        gpus.release("old 2")
        taken(gpus, wish("middling", share=0.6))

    def test_a_replica_that_starts_again_need_not_wait_behind_jobs(self, gpus: GpuLeases) -> None:
        taken(gpus, wish("running job", share=0.65))
        waits(gpus, wish("waiting job", share=0.65))
        taken(gpus, wish("replica", share=0.35, lasting=True))
        gpus.release("running job")
        taken(gpus, wish("waiting job", share=0.65))

    def test_a_second_replica_does_not_take_a_waiting_jobs_place(self, gpus: GpuLeases) -> None:
        taken(gpus, wish("replica 1", share=0.35, lasting=True))
        taken(gpus, wish("running job", share=0.65))
        waits(gpus, wish("waiting job", share=0.65))
        gpus.release("running job")
        waits(gpus, wish("replica 2", share=0.35, lasting=True))
        taken(gpus, wish("waiting job", share=0.65))

    def test_one_that_can_not_be_granted_for_long_blocks_nobody(self, gpus: GpuLeases) -> None:
        taken(gpus, wish("replica", "a", lasting=True))
        waits(gpus, wish("large", "a", "b", count=2))
        assert taken(gpus, wish("small", "a", "b")).gpus == ("b",)

    def test_several_gpus_are_kept_for_one_that_wants_them_all(self, gpus: GpuLeases) -> None:
        taken(gpus, wish("x", "a"))
        waits(gpus, wish("large", "a", "b", count=2))
        waits(gpus, wish("small", "a", "b"))
        gpus.release("x")
        assert set(taken(gpus, wish("large", "a", "b", count=2)).gpus) == {"a", "b"}

    def test_waiters_for_other_gpus_are_not_in_the_way(self, gpus: GpuLeases) -> None:
        taken(gpus, wish("x", "a"))
        waits(gpus, wish("y", "a"))
        assert taken(gpus, wish("z", "b")).gpus == ("b",)
        assert taken(gpus, wish("w", "a", "c")).gpus == ("c",)

    def test_a_ticket_given_back_is_out_of_the_line(self, gpus: GpuLeases) -> None:
        taken(gpus, wish("x"))
        waits(gpus, wish("first"))
        waits(gpus, wish("second"))
        gpus.release("first")
        gpus.release("x")
        taken(gpus, wish("second"))

    def test_racing_takers_never_get_more_than_there_is(self, gpus: GpuLeases) -> None:
        racers = 16
        barrier = threading.Barrier(racers)

        def race(number: int) -> GpuLease | GpuWait:
            barrier.wait()
            return gpus.take(wish(f"racer {number}", "a", "b", share=0.4), LONG)

        with ThreadPoolExecutor(racers) as pool:
            answers = list(pool.map(race, range(racers)))
        assert sum(isinstance(answer, GpuLease) for answer in answers) == 4  # two on each
        assert most_used(gpus.leases()) == 0.8
        assert len(gpus.tickets()) == racers - 4
