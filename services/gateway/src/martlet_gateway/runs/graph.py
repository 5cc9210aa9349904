"""What follows from a run's definition and what is known of its steps. Nothing here asks anybody: all functions are pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from martlet_gateway.runs.definition import RunDefinition, StepDefinition
from martlet_gateway.runs.status import StepState, StepStatus

_STOPPED = (StepState.FAILED, StepState.CANCELLED)


@dataclass(frozen=True)
class Survey:
    """What follows.

    Attributes:
        statuses: of every step in the definition's order; those that can't run any more are SKIPPED, with the reason.
        ready: steps that may begin now.
        active: steps that have begun and aren't over.
    """

    statuses: Mapping[str, StepStatus]
    ready: Sequence[StepDefinition]
    active: Sequence[str]

    @property
    def is_over(self) -> bool:
        """Nothing runs, and nothing can begin."""
        return not self.ready and not self.active

    @property
    def succeeded(self) -> bool:
        """Every step has succeeded."""
        return all(status.state is StepState.SUCCEEDED for status in self.statuses.values())

    @property
    def stopped(self) -> Sequence[str]:
        """Steps that failed or were cancelled themselves, in order."""
        return [step for step, status in self.statuses.items() if status.state in _STOPPED]


def survey(definition: RunDefinition, known: Mapping[str, StepStatus]) -> Survey:
    """What follows from what is known of the steps that have begun; steps that are missing have not."""
    statuses: dict[str, StepStatus] = {}
    for step in in_order(definition):
        status = known.get(step.id) or StepStatus()
        if not status.state.is_final and not status.attempt and (why := _cause(step, statuses)):
            status = replace(status, state=StepState.SKIPPED, note=why)
        statuses[step.id] = status
    ordered = {step.id: statuses[step.id] for step in definition.steps}
    ready = [
        step
        for step in definition.steps
        if statuses[step.id].state is StepState.WAITING
        and not statuses[step.id].attempt
        and all(statuses[need].state is StepState.SUCCEEDED for need in step.needs)
    ]
    active = [step for step, status in ordered.items() if status.attempt and not status.state.is_final]
    return Survey(ordered, ready, active)


def _cause(step: StepDefinition, statuses: Mapping[str, StepStatus]) -> str:
    """Why a step can't run any more; empty if it still may."""
    for need in step.needs:
        status = statuses[need]
        if status.state in _STOPPED:
            return f"step {need} {'failed' if status.state is StepState.FAILED else 'was cancelled'}"
        if status.state is StepState.SKIPPED:
            return status.note
    return ""


def in_order(definition: RunDefinition) -> Sequence[StepDefinition]:
    """The steps, each behind all it needs; a definition has no cycle."""
    by_id = {step.id: step for step in definition.steps}
    placed: dict[str, StepDefinition] = {}

    def place(step: StepDefinition) -> None:
        for need in step.needs:
            if need not in placed:
                place(by_id[need])
        placed[step.id] = step

    for step in definition.steps:
        if step.id not in placed:
            place(step)
    return list(placed.values())


def find_cycle(needs: Mapping[str, Sequence[str]]) -> Sequence[str]:
    """Steps that need one another in a circle, the first one again at the end; empty if there is no cycle."""
    done: set[str] = set()
    for start in needs:
        path: list[str] = []
        stack: list[tuple[str, int]] = [(start, 0)]
        while stack:
            step, place = stack.pop()
            if place == 0:
                if step in done:
                    continue
                path.append(step)
            following = [need for need in needs.get(step, ()) if need in needs]
            if place < len(following):
                stack.append((step, place + 1))
                if following[place] in path:
                    return [*path[path.index(following[place]) :], following[place]]
                stack.append((following[place], 0))
            else:
                path.pop()
                done.add(step)
    return []


def attempts_after(statuses: Mapping[str, StepStatus], attempts: Mapping[str, int]) -> dict[str, int]:
    """The attempt that each step is at when a failed run is resumed: one more for those that stopped."""
    return {
        step: attempts.get(step, 1) + (1 if status.state in _STOPPED else 0)
        for step, status in statuses.items()
        if status.state in _STOPPED or attempts.get(step, 1) > 1
    }
