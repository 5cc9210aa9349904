"""Which routes go with which model."""

from __future__ import annotations

import pytest
from martlet_core.errors import InvalidArgument
from martlet_core.model_tasks import (
    CHAT_COMPLETIONS,
    CLASSIFY,
    POOLING,
    RERANK,
    ROUTES,
    ModelTask,
    check_route,
    told_task,
)


def test_every_task_has_routes_of_its_own() -> None:
    assert set(ROUTES) == set(ModelTask)
    for task, routes in ROUTES.items():
        for route in routes:
            check_route("m", task, route)
        assert (CHAT_COMPLETIONS in routes) is (task is ModelTask.CAUSAL_LM)


def test_the_refusal_names_what_to_use_instead() -> None:
    with pytest.raises(InvalidArgument, match=r"is for token classification.* use /v1/pooling") as caught:
        check_route("m", ModelTask.TOKEN_CLASSIFICATION, CHAT_COMPLETIONS)
    assert caught.value.reason == "WRONG_ROUTE"
    assert caught.value.metadata == {"model": "m", "task": "token_classification", "routes": POOLING}
    assert [violation.field for violation in caught.value.violations] == ["model"]


def test_a_model_may_answer_on_fewer_routes_than_its_task() -> None:
    with pytest.raises(InvalidArgument, match="use /v1/classify or /v1/pooling"):
        check_route("m", ModelTask.SEQUENCE_CLASSIFICATION, RERANK, (CLASSIFY, POOLING))


def test_what_metadata_say() -> None:
    assert told_task({"task": "reward"}) is ModelTask.REWARD
    assert [told_task(facts) for facts in ({}, {"task": None}, {"task": "painting"})] == [None] * 3
