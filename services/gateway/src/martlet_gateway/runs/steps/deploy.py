"""``deploy``: a served alias is given to a model."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any, ClassVar

from martlet_core.errors import AlreadyExists, FailedPrecondition, NotFound

from martlet_gateway.aliases import ALIAS_PATTERN
from martlet_gateway.proto_json import close_hint
from martlet_gateway.runs.marks import Mistakes, shown
from martlet_gateway.runs.references import references
from martlet_gateway.runs.status import StepState, StepStatus
from martlet_gateway.runs.steps.base import ImmediateStep, StepPlace, StepWorld

_FIELDS = {
    "alias": "Name that will answer, 1 to 64 of a-z, A-Z, 0-9, '.', '_' and '-'.",
    "model": "Name of the model that it is given to.",
}


class DeployStep(ImmediateStep):
    """``with`` has ``alias`` and ``model``."""

    kind = "deploy"
    title = "Give a served name to a model; the name moves at once and can be moved back."
    outputs: ClassVar[Mapping[str, str]] = {
        "alias": "The alias.",
        "model": "The model that it means now.",
        "previous": "What it meant before.",
    }
    known_metrics = frozenset()

    def check(self, options: Mapping[str, Any], path: str, mistakes: Mistakes) -> None:
        """See StepKind."""
        for name in options:
            if name not in _FIELDS:
                hint = close_hint(name, list(_FIELDS))
                mistakes.add(f"{path}.{name}", f"`{name}` is not known here.{hint}", of_key=True)
        for name in _FIELDS:
            value = options.get(name)
            if value in (None, ""):
                mistakes.add(path, f"`{name}` is missing; a step of kind deploy needs it.")
            elif not isinstance(value, str):
                mistakes.add(f"{path}.{name}", f"must be text; got {shown(value)}.")
        alias = options.get("alias")
        if isinstance(alias, str) and alias and not list(references(alias, "")) and not ALIAS_PATTERN.fullmatch(alias):
            mistakes.add(f"{path}.alias", f"{alias[:80]!r} can't be an alias: {_FIELDS['alias']}")

    def schema(self) -> dict[str, Any]:
        """See StepKind."""
        return {
            "type": "object",
            "properties": {name: {"type": "string", "description": text} for name, text in _FIELDS.items()},
            "required": list(_FIELDS),
            "additionalProperties": False,
        }

    async def check_free(self, world: StepWorld, alias: str) -> None:
        """AlreadyExists if a model has that name."""
        if alias in await world.base_models():
            raise AlreadyExists(
                f"alias: {alias!r} is the name of a base model; choose another.",
                reason="NAME_TAKEN",
                metadata={"param": "alias"},
            )
        await asyncio.to_thread(world.aliases.check_free, alias)

    async def perform(
        self, world: StepWorld, place: StepPlace, options: Mapping[str, Any], steps: Mapping[str, StepStatus]
    ) -> StepStatus:
        """Move the alias, unless this step did so already."""
        alias, model = options["alias"], options["model"]
        if not model:
            raise FailedPrecondition(
                "There is no model to deploy: the step that `model` refers to made none that can be served.",
                reason="NO_MODEL_TO_DEPLOY",
            )
        await self.check_free(world, alias)
        await _check_model(world, model, place.tenant)
        record = await asyncio.to_thread(
            world.aliases.put,
            place.tenant,
            alias,
            model,
            run=f"runs/{place.run}",
            reason="deploy",
            once=place.request_id,
        )
        mine = next((i for i, move in enumerate(record.moves) if move.once == place.request_id), 0)
        previous = record.moves[mine + 1].model if mine + 1 < len(record.moves) else ""
        now = time.time()
        return StepStatus(
            StepState.SUCCEEDED,
            start_time=now,
            end_time=now,
            outputs={"alias": alias, "model": model, "previous": previous},
            note=f"`{alias}` was {f'`{previous}`' if previous else 'not there'} before",
            summary=f"{alias} -> {model}",
        )


async def _check_model(world: StepWorld, model: str, tenant: str) -> None:
    """NotFound if nothing answers to a model's name: it is neither published nor a base model."""
    try:
        await asyncio.to_thread(world.models.get, model, tenant=tenant)
    except NotFound:
        if model not in await world.base_models():
            raise
