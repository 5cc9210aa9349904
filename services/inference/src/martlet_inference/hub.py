"""Models of hubs: downloaded whole before an engine is started with them, then only read."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

from martlet_core.errors import FailedPrecondition
from martlet_core.hub import snapshot, with_template
from martlet_core.model_rules import parse_hub_id


class HubModels:
    """Snapshots of hub models in a cache that the machine's services share.

    The engine could fetch them itself, but then the model before it would be gone while it does.

    Args:
        cache_dir: where they lie, see ``martlet_core.hub``.
    """

    def __init__(self, cache_dir: Path) -> None:
        self._cache_dir = cache_dir.resolve()

    async def files(self, name: str, chat_template: str = "") -> Path:
        """The directory of ``org/model@revision``, downloaded if it isn't there, with a chat template in the place of its own if one is given.

        Raises:
            FailedPrecondition: the name has no revision.
            NotFound, Unavailable, FailedPrecondition: as ``martlet_core.hub.snapshot``.
        """
        model = parse_hub_id(name)
        if model is None or not model.revision:
            raise FailedPrecondition(
                f"{name!r} doesn't say which revision of the hub's model is meant; write it as org/model@commit.",
                reason="REVISION_REQUIRED",
            )
        directory = await asyncio.to_thread(snapshot, name, self._cache_dir)
        if not chat_template:
            return directory
        key = hashlib.sha256(f"{directory}\n{chat_template}".encode()).hexdigest()[:32]
        return with_template(directory, chat_template, self._cache_dir / "templates" / key)
