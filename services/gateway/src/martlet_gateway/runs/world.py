"""Puts together what steps may use, from a gateway's stages and stores."""

from __future__ import annotations

from martlet.trainer.v1 import training_service_pb2
from martlet_core.stores import Stores

from martlet_gateway.aliases import AliasStore
from martlet_gateway.clients import Stages
from martlet_gateway.runs.steps.base import StepWorld


def make_world(stores: Stores, stages: Stages) -> StepWorld:
    """What steps may use."""

    async def base_models() -> list[str]:
        request = training_service_pb2.ListBaseModelsRequest(page_size=1000)
        answer = await stages.trainer.call("training", "ListBaseModels", request)
        return [model.name for model in answer.base_models]

    return StepWorld(stages, stores.models, AliasStore(stores.objects, stores.models), base_models)
