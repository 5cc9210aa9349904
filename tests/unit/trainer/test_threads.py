"""Choosing the number of threads by what steps take, on a simulated machine."""

from __future__ import annotations

from collections.abc import Callable

from martlet_trainer.training.threads import ThreadGovernor


class Machine:
    """Steps of 900 tokens; ``rate`` gives tokens/s by the number of threads."""

    def __init__(self, rate: Callable[[int], float], threads: int = 2) -> None:
        self.rate = rate
        self.threads = threads
        self.used: list[int] = []
        self.governor = ThreadGovernor(threads, self._set)

    def _set(self, threads: int) -> None:
        self.threads = threads

    def run(self, steps: int) -> list[int]:
        """Threads of each step."""
        begun = len(self.used)
        for _ in range(steps):
            self.used.append(self.threads)
            assert self.governor.threads == self.threads
            self.governor.step_done(900, 900 / self.rate(self.threads))
        return self.used[begun:]


def quiet(threads: int) -> float:
    return {1: 177.0, 2: 245.0}[threads]


def busy(threads: int) -> float:
    return {1: 179.0, 2: 40.0}[threads]


def test_a_quiet_machine_computes_with_all_threads_but_for_rare_trials() -> None:
    used = Machine(quiet).run(300)
    assert used[:4] == [2, 2, 2, 2]
    assert 0 < used.count(1) <= 10


def test_beside_a_busy_program_one_thread_computes() -> None:
    used = Machine(busy).run(300)
    assert used[:4] == [2, 2, 2, 2]
    assert used[4:30] == [1] * 26
    assert used.count(2) <= 14, "trials of what lost get rarer"


def test_a_program_that_comes_is_noticed_at_its_second_slow_step() -> None:
    machine = Machine(quiet)
    machine.run(60)
    machine.rate = busy
    assert machine.run(12)[2:] == [1] * 10


def test_when_it_goes_all_threads_compute_again() -> None:
    machine = Machine(busy)
    machine.run(100)
    machine.rate = quiet
    assert machine.run(260)[-1] == 2


def test_one_thread_and_short_steps_leave_nothing_to_choose() -> None:
    assert set(Machine(lambda threads: 50.0, threads=1).run(100)) == {1}
    assert set(Machine(lambda threads: 1e6).run(100)) == {2}


def test_with_many_cores_one_is_left_to_a_busy_program() -> None:
    rates = {16: 300.0, 15: 900.0, 8: 700.0, 1: 100.0}
    used = Machine(lambda threads: rates[threads], threads=16).run(200)
    assert used[-1] == 15
    assert set(used) == set(rates)


def test_a_trial_ends_also_where_its_steps_are_short() -> None:
    machine = Machine(lambda threads: {1: 9000.0, 2: 900.0}[threads])
    assert machine.run(7)[4:] == [1, 1, 1]
    machine.rate = lambda threads: {1: 850.0, 2: 600.0}[threads]
    assert machine.run(20)[-1] == 1
