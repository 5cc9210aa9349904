"""Bad input, three ways: what REST, gRPC and the command say to each mistake. None becomes a job, so none reaches a worker,
and none is a fault of ours. How each mistake is made is in conftest.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

OURS = (500, "INTERNAL", "UNKNOWN")


@dataclass(frozen=True)
class Told:
    """What each way must answer: HTTP status, gRPC status or exit code; the word for programs; parts of the text."""

    rest: tuple[int, str, tuple[str, ...]]
    grpc: tuple[str, str, tuple[str, ...]]
    command: tuple[int, str, tuple[str, ...]]


SUGGESTED = ("smollm2-135m-instrukt", "did you mean smollm2-135m-instruct?")
KEY = ("Incorrect or missing API key", "martlet keys create")
TOO_LONG = ("line 2", "tokens, more than data.max_length 2048", "shorten it")
BEYOND = ("data.max_length", "8193", "context of 8192 tokens")
HOMELESS = ("base model `elsewhere`", "not loaded on any replica", "Loaded now: `smollm2-135m-instruct`")

CASES = {
    "unknown_model": Told(
        rest=(404, "model_not_found", SUGGESTED),
        grpc=("NOT_FOUND", "BASE_MODEL_NOT_FOUND", SUGGESTED),
        command=(1, "model_not_found", SUGGESTED),
    ),
    "empty_file": Told(
        rest=(400, "empty_file", ("empty.jsonl", "is empty")),
        grpc=("INVALID_ARGUMENT", "EMPTY_DATASET", ("empty.jsonl", "is empty")),
        command=(2, "empty_file", ("empty.jsonl", "is empty")),
    ),
    "file_that_is_not_json": Told(
        rest=(400, "invalid_training_file", ("line 812", "not valid JSON", "`skip`")),
        grpc=("INVALID_ARGUMENT", "BAD_ROWS", ("1 of 900 rows", "line 812", "not valid JSON", "skip")),
        command=(2, "invalid_file_format", ("1 of 900 rows", "line 812", "not valid JSON")),
    ),
    "row_without_an_assistant_turn": Told(
        rest=(400, "invalid_training_file", ("line 2", "no assistant turn", "add one")),
        grpc=("INVALID_ARGUMENT", "BAD_ROWS", ("line 2", "no assistant turn", "add one")),
        command=(2, "invalid_training_file", ("line 2", "no assistant turn", "add one")),
    ),
    "row_longer_than_the_context": Told(
        rest=(400, "invalid_training_file", TOO_LONG),
        grpc=("INVALID_ARGUMENT", "BAD_ROWS", TOO_LONG),
        command=(2, "invalid_training_file", TOO_LONG),
    ),
    "max_length_beyond_the_context": Told(
        rest=(400, "invalid_argument", BEYOND),
        grpc=("INVALID_ARGUMENT", "INVALID_ARGUMENT", BEYOND),
        command=(2, "invalid_argument", BEYOND),
    ),
    "hyperparameter_of_wrong_type": Told(
        rest=(400, "invalid_argument", ("hyperparameters.n_epochs", '"auto" or an integer', "'three'")),
        grpc=("INVALID_ARGUMENT", "INVALID_ARGUMENT", ("spec.hyperparameters", "epoch_count", "of another type")),
        command=(2, "invalid_argument", ("--num_train_epochs", "'three'")),
    ),
    "hyperparameter_out_of_range": Told(
        rest=(400, "invalid_argument", ("martlet.tuner.lora_rank", "9999", "<= 512")),
        grpc=("INVALID_ARGUMENT", "INVALID_ARGUMENT", ("spec.tuner.lora_rank", "9999", "<= 512")),
        command=(2, "invalid_argument", ("lora_rank", "9999", "<= 512")),
    ),
    "file_of_another_tenant": Told(
        rest=(404, "file_not_found", ("No such File object",)),
        grpc=("NOT_FOUND", "ARTIFACT_NOT_FOUND", ("spec.training_dataset", "doesn't exist")),
        command=(1, "file_not_found", ("No such File object",)),
    ),
    "no_key": Told(
        rest=(401, "invalid_api_key", KEY),
        grpc=("UNAUTHENTICATED", "INVALID_API_KEY", KEY),
        command=(1, "failed_precondition", ("no API key is known", "MARTLET_API_KEY")),
    ),
    "wrong_key": Told(
        rest=(401, "invalid_api_key", KEY),
        grpc=("UNAUTHENTICATED", "INVALID_API_KEY", KEY),
        command=(1, "invalid_api_key", KEY),
    ),
    "upload_over_the_limit": Told(
        rest=(413, "payload_too_large", ("512 MiB", "/v1/uploads")),
        grpc=("RESOURCE_EXHAUSTED", "PAYLOAD_TOO_LARGE", ("8192 MiB", "MARTLET_MAX_UPLOAD_BYTES")),
        command=(2, "invalid_argument", ("8589934592",)),
    ),
    "job_that_does_not_exist": Told(
        rest=(404, "fine_tune_not_found", ("ftjob-doesnotexist",)),
        grpc=("NOT_FOUND", "JOB_NOT_FOUND", ("doesnotexist",)),
        command=(1, "fine_tune_not_found", ("ftjob-doesnotexist",)),
    ),
    "cancel_of_a_finished_job": Told(
        rest=(409, "illegal_transition", ("is CANCELLED", "can be cancelled")),
        grpc=("FAILED_PRECONDITION", "ILLEGAL_TRANSITION", ("is CANCELLED", "can be cancelled")),
        command=(1, "illegal_transition", ("is CANCELLED", "can be cancelled")),
    ),
    "chat_whose_base_is_not_loaded": Told(
        rest=(503, "model_not_loaded", HOMELESS),
        grpc=("UNAVAILABLE", "MODEL_NOT_LOADED", HOMELESS),
        command=(1, "model_not_loaded", HOMELESS),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_is_named_and_costs_nothing(world: Any, way: Any, case: str) -> None:
    before = world.jobs()
    answer = way.make(case)
    status, code, parts = getattr(CASES[case], way.name)
    assert answer.status not in OURS
    assert (answer.status, answer.code) == (status, code), answer.message
    assert all(part in answer.message for part in parts), answer.message
    assert world.jobs() == before, "no job was made, and none began"
