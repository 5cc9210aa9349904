"""Which of the replicas that can answer gets a request (ADR 0015)."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence

from martlet_core.artifacts.types import PublishedModel

from martlet_gateway.prefixes import Prompt
from martlet_gateway.replicas import ReplicaView, Snapshot
from martlet_gateway.settings import RoutingPolicy

#: What a replica knows already (an adapter, a prompt's beginning) counts as long as it has at most this many requests
#: more than twice those of the least busy one.
SLACK = 4
#: A beginning that a replica has seen counts from this share of the prompt on: less saves less than a queue costs.
LEAST_SHARE = 0.25


class Choice:
    """Orders replicas by a policy.

    Args:
        policy: ``affinity`` prefers a replica that holds the adapter, then one that has seen the prompt's beginning,
            unless it is much busier than others; ``least-busy`` doesn't look at prompts; ``round-robin``
            takes one after the other.
    """

    def __init__(self, policy: RoutingPolicy = "affinity") -> None:
        self._policy = policy
        self._turn = itertools.count()

    def order(self, snapshot: Snapshot, model: PublishedModel, prompt: Prompt | None = None) -> Sequence[ReplicaView]:
        """Replicas that can answer at once, best first. Those that just failed to answer, or are full, come last."""
        able = candidates(snapshot, model)
        if len(able) < 2:
            return able
        now = time.monotonic()
        if self._policy == "round-robin":
            turn = next(self._turn) % len(able)
            turned = [*able[turn:], *able[:turn]]
            return sorted(turned, key=lambda view: (view.avoid_until > now, full(view)))
        blocks = prompt.blocks if prompt is not None and self._policy == "affinity" else ()
        busiest = 2 * min(view.load for view in able) + SLACK
        return sorted(
            able,
            key=lambda view: (
                view.avoid_until > now,
                full(view),
                view.load > busiest,
                model.kind == "adapter" and model.name not in view.adapters,
                -_seen(view, blocks),
                view.load,
                len(view.adapters) if model.kind == "adapter" else 0,
                len(view.prefixes),
            ),
        )

    def note(self, view: ReplicaView, prompt: Prompt) -> None:
        """A request goes to a replica: what begins like it should follow."""
        if self._policy == "affinity":
            view.prefixes.add(prompt.blocks)


def candidates(snapshot: Snapshot, model: PublishedModel) -> Sequence[ReplicaView]:
    """Replicas that can answer for a model at once, in no order: those that hold it, and those whose whole model can take
    the adapter.
    """
    if model.kind != "adapter":
        return snapshot.by_model.get(model.name, ())
    holders = snapshot.by_model.get(model.name, ())
    able = [view for view in snapshot.with_base(model.base_model) if view.proto.max_lora_rank >= model.lora_rank]
    return [*holders, *(view for view in able if view not in holders)]


def full(view: ReplicaView) -> bool:
    """Whether a replica would refuse a request now."""
    limit = view.proto.load.max_requests
    return limit > 0 and view.load >= limit


def _seen(view: ReplicaView, blocks: Sequence[int]) -> int:
    matched = view.prefixes.matched(blocks)
    return matched if matched >= LEAST_SHARE * len(blocks) else 0
