"""A model that a replica holds."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from martlet_core.artifacts.types import PublishedModel


@dataclass(eq=False)
class Held:
    """A model that this replica holds or is loading.

    Attributes:
        pinned: never evicted or swapped to make room.
        incarnation: the engine's incarnation that an adapter was loaded into; 0 before.
        active: requests that use it or wait for it.
        last_used: monotonic time of the last request, in seconds.
        checked: monotonic time at which the registry last confirmed the name, in seconds.
        loading: an adapter's load under way, shared by all who wait for it.
    """

    model: PublishedModel
    pinned: bool = False
    incarnation: int = 0
    active: int = 0
    last_used: float = 0.0
    checked: float = 0.0
    loading: asyncio.Task[None] | None = field(default=None, repr=False)

    @property
    def adapter(self) -> bool:
        """Whether it is an adapter on top of the whole model."""
        return self.model.kind == "adapter"

    def visible_to(self, tenant: str) -> bool:
        """Whether a tenant may use it."""
        return self.model.tenant in ("", tenant)
