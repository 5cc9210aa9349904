"""Who may use which GPU: wishes, leases and the store that keeps them.

A process that computes on GPUs takes a lease of a share of one or more of them before it, or its child, imports torch,
renews it while it computes and gives it back at its end; if it dies, the lease lapses. The shares of a GPU never add up to
more than 1. Two stores pass the same suite: ``martlet_core.gpu_leases.RedisGpuLeases`` and
``martlet_core.testing.gpu_leases.MemoryGpuLeases``; the rules of both are in ``gpu_rules`` (docs/adr/0012-gpu-leases.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

#: Variable that says which GPUs CUDA shows a process.
VISIBLE = "CUDA_VISIBLE_DEVICES"
#: Variable that says what share of the memory of each visible GPU a job's process may allocate (``gpu_memory``).
MEMORY_SHARE = "MARTLET_GPU_MEMORY_SHARE"


@dataclass(frozen=True)
class GpuWish:
    """What a process wants.

    Attributes:
        holder: who asks; unique to the process and to what it wants the GPUs for.
        label: who that is, for people: ``training job 3f2a``.
        gpus: ids of the GPUs that it may use, in the order it would choose.
        count: how many of them it needs, all at once.
        share: share of each one's memory, above 0.0 to 1.0; whole thousandths.
        lasting: whether it keeps them until it is stopped (a replica), so that nobody need wait for its end.
    """

    holder: str
    label: str
    gpus: tuple[str, ...]
    count: int = 1
    share: float = 1.0
    lasting: bool = False


@dataclass(frozen=True)
class GpuLease:
    """A hold on GPUs.

    Attributes:
        holder, label, share, lasting: as in the wish.
        gpus: ids of the GPUs.
        number: its place among all that ever asked.
        lease_until: when it ends unless renewed, in seconds since the epoch by the store's clock.
    """

    holder: str
    label: str
    gpus: tuple[str, ...]
    share: float
    lasting: bool
    number: int
    lease_until: float


@dataclass(frozen=True)
class GpuTicket:
    """A place in the line; kept by asking again before ``until``.

    Attributes:
        wish: what is wanted.
        number: its place: lower ones come first.
        until: when it is forgotten, in seconds since the epoch by the store's clock.
    """

    wish: GpuWish
    number: int
    until: float


@dataclass(frozen=True)
class GpuWait:
    """Why a wish wasn't granted.

    Attributes:
        leases: those on GPUs that the wish names, the oldest first.
        ahead: earlier tickets that want GPUs which the wish names.
    """

    leases: tuple[GpuLease, ...]
    ahead: tuple[GpuTicket, ...]


class GpuLeases(Protocol):
    """The GPU leases of one machine. Thread-safe. Methods raise ``martlet_core.errors`` and nothing else: Unavailable when
    the store doesn't answer, InvalidArgument for a wish that nobody could grant.
    """

    def take(self, wish: GpuWish, lease_seconds: float) -> GpuLease | GpuWait:
        """Lease what is wished, or get in line. Ask again, every second or so, to keep one's place: who came first gets
        it first, unless a later wish can be granted without making an earlier one wait longer. Asking again with a
        lease gives that lease, renewed.
        """
        ...

    def renew(self, lease: GpuLease, lease_seconds: float) -> None:
        """Keep a lease. One that lapsed, or that the store has forgotten, is taken anew while the GPUs have room for it.
        LeaseLost if they haven't: the holder must stop computing.
        """
        ...

    def release(self, holder: str) -> None:
        """Give a lease, or a place in the line, back; nothing happens if there is none."""
        ...

    def leases(self) -> Sequence[GpuLease]:
        """The leases that hold now, the oldest first."""
        ...

    def tickets(self) -> Sequence[GpuTicket]:
        """Who waits, the first first."""
        ...
