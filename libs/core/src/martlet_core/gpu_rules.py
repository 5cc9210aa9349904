"""The rules of GPU leases, on plain values: every store keeps a ``GpuBook`` and changes it by these functions only.

Shares are counted in whole thousandths, so that 0.35 and 0.65 are exactly a GPU.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace

from martlet_core.errors import InvalidArgument, LeaseLost
from martlet_core.gpus import GpuLease, GpuTicket, GpuWait, GpuWish

#: A GPU, in thousandths.
WHOLE = 1000
#: A ticket is forgotten when its holder hasn't asked for so long, in seconds.
TICKET_SECONDS = 10.0


@dataclass
class GpuBook:
    """All leases and tickets of a machine.

    Attributes:
        leases: by holder.
        tickets: by holder.
        next_number: of the next ticket.
    """

    leases: dict[str, GpuLease] = field(default_factory=dict)
    tickets: dict[str, GpuTicket] = field(default_factory=dict)
    next_number: int = 1

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to keep."""
        return not self.leases and not self.tickets

    @property
    def last_end(self) -> float:
        """When the last entry ends unless renewed, in seconds since the epoch; 0.0 when there is none."""
        ends = [lease.lease_until for lease in self.leases.values()]
        return max([*ends, *(ticket.until for ticket in self.tickets.values())], default=0.0)

    def forget_lapsed(self, now: float) -> None:
        """Leave out what has ended."""
        self.leases = {holder: lease for holder, lease in self.leases.items() if lease.lease_until > now}
        self.tickets = {holder: ticket for holder, ticket in self.tickets.items() if ticket.until > now}


def book_to_text(book: GpuBook) -> str:
    """JSON; empty for an empty book."""
    if book.is_empty:
        return ""
    values = {
        "leases": [asdict(lease) for lease in book.leases.values()],
        "tickets": [asdict(ticket) for ticket in book.tickets.values()],
        "next_number": book.next_number,
    }
    return json.dumps(values, separators=(",", ":"))


def book_from_text(text: str) -> GpuBook:
    """The inverse of ``book_to_text``."""
    if not text:
        return GpuBook()
    values = json.loads(text)
    leases = [GpuLease(**{**entry, "gpus": tuple(entry["gpus"])}) for entry in values["leases"]]
    tickets = [
        GpuTicket(GpuWish(**{**entry["wish"], "gpus": tuple(entry["wish"]["gpus"])}), entry["number"], entry["until"])
        for entry in values["tickets"]
    ]
    return GpuBook(
        {lease.holder: lease for lease in leases},
        {ticket.wish.holder: ticket for ticket in tickets},
        values["next_number"],
    )


def take(book: GpuBook, wish: GpuWish, lease_seconds: float, now: float) -> GpuLease | GpuWait:
    """See ``GpuLeases.take``."""
    check_wish(wish)
    book.forget_lapsed(now)
    held = book.leases.get(wish.holder)
    if held is not None:
        book.leases[wish.holder] = held = replace(held, lease_until=now + lease_seconds)
        return held
    known = book.tickets.get(wish.holder)
    number = known.number if known is not None else book.next_number
    book.next_number = max(book.next_number, number + 1)
    ticket = book.tickets[wish.holder] = GpuTicket(wish, number, now + TICKET_SECONDS)
    chosen = _choose(book, ticket)
    if chosen is None:
        return _wait(book, ticket)
    del book.tickets[wish.holder]
    lease = GpuLease(wish.holder, wish.label, chosen, wish.share, wish.lasting, number, now + lease_seconds)
    book.leases[wish.holder] = lease
    return lease


def renew(book: GpuBook, lease: GpuLease, lease_seconds: float, now: float) -> None:
    """See ``GpuLeases.renew``."""
    held = book.leases.get(lease.holder)
    if held is None:
        book.forget_lapsed(now)
        if any(_used(book.leases.values(), gpu) + _thousandths(lease.share) > WHOLE for gpu in lease.gpus):
            raise LeaseLost(
                f"The GPUs of {lease.label} were given to someone else while its lease was not renewed.",
                metadata={"holder": lease.holder},
            )
        book.next_number = max(book.next_number, lease.number + 1)
    book.leases[lease.holder] = replace(lease, lease_until=now + lease_seconds)


def release(book: GpuBook, holder: str) -> None:
    """See ``GpuLeases.release``."""
    book.leases.pop(holder, None)
    book.tickets.pop(holder, None)


def in_order(book: GpuBook, now: float) -> tuple[Sequence[GpuLease], Sequence[GpuTicket]]:
    """What holds now: leases and tickets, the oldest first."""
    book.forget_lapsed(now)
    return (
        sorted(book.leases.values(), key=lambda lease: lease.number),
        sorted(book.tickets.values(), key=lambda ticket: ticket.number),
    )


def check_wish(wish: GpuWish) -> None:
    """InvalidArgument unless the wish could be granted if nobody else had one."""
    if not 1 <= wish.count <= len(set(wish.gpus)):
        raise InvalidArgument.field("count", f"{wish.count} GPUs are wished out of {len(set(wish.gpus))}")
    if not 1 <= _thousandths(wish.share) <= WHOLE:
        raise InvalidArgument.field("share", f"{wish.share} is outside 0.001 to 1.0")


def describe_wait(wish: GpuWish, wait: GpuWait, names: dict[str, str]) -> str:
    """Why a wish isn't granted, for people: who holds each GPU, and how much of it, and who came first.

    Args:
        wish: what was wished.
        wait: the answer.
        names: what people call the GPUs, by id.
    """
    parts = []
    for gpu in wish.gpus:
        holders = [f"{lease.label} ({lease.share:g})" for lease in wait.leases if gpu in lease.gpus]
        parts.append(f"{names.get(gpu, gpu)} is {f'held by {_and(holders)}' if holders else 'free'}")
    if wait.ahead:
        parts.append(f"{_and([ticket.wish.label for ticket in wait.ahead])} came first")
    return f"waiting for {'a GPU' if wish.count == 1 else f'{wish.count} GPUs'}: {'; '.join(parts)}"


def _choose(book: GpuBook, mine: GpuTicket) -> tuple[str, ...] | None:
    """The GPUs that a ticket can be given now; None if it has to wait.

    Earlier tickets are promised GPUs: where they would fit once all that isn't lasting has ended. What is given to a later
    one must leave room for that promise beside everything that came after it, or small wishes could starve a large one.
    """
    leases = book.leases.values()
    promised: dict[str, int] = {}
    since: dict[str, int] = {}
    for ticket in sorted(book.tickets.values(), key=lambda ticket: ticket.number):
        if ticket.number >= mine.number:
            break
        _promise(leases, ticket, promised, since)
    share = _thousandths(mine.wish.share)

    def fits(gpu: str) -> bool:
        if _used(leases, gpu) + share > WHOLE:
            return False
        if gpu not in promised:
            return True
        stays = _used((lease for lease in leases if lease.lasting or lease.number > since[gpu]), gpu)
        return stays + promised[gpu] + share <= WHOLE

    fitting = [gpu for gpu in dict.fromkeys(mine.wish.gpus) if fits(gpu)]
    if len(fitting) < mine.wish.count:
        return None
    return tuple(sorted(fitting, key=lambda gpu: _used(leases, gpu))[: mine.wish.count])


def _promise(leases: Iterable[GpuLease], ticket: GpuTicket, promised: dict[str, int], since: dict[str, int]) -> None:
    """Note where an earlier ticket will fit; one that lasting leases keep out everywhere is promised nothing."""
    share = _thousandths(ticket.wish.share)
    lasting = {gpu: _used((lease for lease in leases if lease.lasting), gpu) for gpu in ticket.wish.gpus}
    possible = [gpu for gpu in lasting if lasting[gpu] + share <= WHOLE]
    if len(possible) < ticket.wish.count:
        return

    def is_shared(gpu: str) -> bool:
        return lasting[gpu] + promised.get(gpu, 0) + share > WHOLE

    # Those that no earlier ticket needs come first, then those that will be free soonest as far as can be told.
    for gpu in sorted(possible, key=lambda gpu: (is_shared(gpu), _used(leases, gpu)))[: ticket.wish.count]:
        # Two tickets that don't fit together will take turns: there must be room for the larger one.
        promised[gpu] = max(promised[gpu], share) if is_shared(gpu) else promised.get(gpu, 0) + share
        since.setdefault(gpu, ticket.number)


def _wait(book: GpuBook, mine: GpuTicket) -> GpuWait:
    wished = set(mine.wish.gpus)
    leases = sorted(book.leases.values(), key=lambda lease: lease.number)
    tickets = sorted(book.tickets.values(), key=lambda ticket: ticket.number)
    return GpuWait(
        tuple(lease for lease in leases if wished & set(lease.gpus)),
        tuple(ticket for ticket in tickets if ticket.number < mine.number and wished & set(ticket.wish.gpus)),
    )


def _used(leases: Iterable[GpuLease], gpu: str) -> int:
    """Thousandths of a GPU that leases hold."""
    return sum(_thousandths(lease.share) for lease in leases if gpu in lease.gpus)


def _thousandths(share: float) -> int:
    return round(share * WHOLE)


def _and(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
