"""Puts together what steps may use, from a gateway's stages and stores."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from martlet.trainer.v1 import training_service_pb2
from martlet_core.errors import AlreadyExists
from martlet_core.stores import Stores

from martlet_gateway.aliases import AliasStore
from martlet_gateway.clients import Stages
from martlet_gateway.runs.steps.base import StepWorld


def make_world(stores: Stores, stages: Stages) -> StepWorld:
    """What steps may use."""
    return StepWorld(stages, stores.models, AliasStore(stores.objects, stores.models), alias_checker(stages))


def alias_checker(stages: Stages) -> Callable[[str, str], Awaitable[None]]:
    """Refuses names of the trainer's base models."""

    async def check(name: str, tenant: str) -> None:
        request = training_service_pb2.ListBaseModelsRequest(page_size=1000)
        answer = await stages.trainer.call("training", "ListBaseModels", request)
        if name in [model.name for model in answer.base_models]:
            raise AlreadyExists(
                f"alias: {name!r} is the name of a base model; choose another.",
                reason="NAME_TAKEN",
                metadata={"param": "alias"},
            )

    return check
