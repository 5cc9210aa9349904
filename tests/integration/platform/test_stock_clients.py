"""The main job through clients that know nothing of Martlet: the stock ``openai`` client, and gRPC by reflection."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import openai
import pytest
from google.protobuf import json_format
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from martlet_cli.testing import RunningPlatform

MODEL = "smollm2-135m-instruct"
DEADLINE_SECONDS = 240.0


def wait_for(client: openai.OpenAI, job_id: str, accepts: Callable[[Any], bool], what: str) -> Any:
    """Ask for a job until it is as wanted; a job that failed or is over ends the wait."""
    end = time.monotonic() + DEADLINE_SECONDS
    while True:
        job = client.fine_tuning.jobs.retrieve(job_id)
        if accepts(job):
            return job
        assert job.status not in ("succeeded", "failed", "cancelled"), f"{what}: {job.status}, {job.error}"
        assert time.monotonic() < end, f"{what}: still {job.status}"
        time.sleep(0.1)


def create(client: openai.OpenAI, rows: Path, **settings: Any) -> Any:
    """Upload rows and create a job of a few steps."""
    with rows.open("rb") as stream:
        uploaded = client.files.create(file=stream, purpose="fine-tune")
    extension = {"tuner": {"lora_rank": 8}, "hyperparameters": {"per_device_batch_size": 4, **settings}}
    return client.fine_tuning.jobs.create(model=MODEL, training_file=uploaded.id, extra_body={"martlet": extension})


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_fine_tune_and_chat(chatting_platform: RunningPlatform, rows: Path) -> None:
    """Slow for vLLM's start, a training and an adapter's loading: the product's promise, client code unchanged."""
    fine_tune_and_chat(chatting_platform, rows)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_fine_tune_and_chat_without_vllm(transformers_platform: RunningPlatform, rows: Path) -> None:
    """Slow as the other: the same promise, kept by the other engine."""
    fine_tune_and_chat(transformers_platform, rows)


def fine_tune_and_chat(platform: RunningPlatform, rows: Path) -> None:
    """Train a few steps on the rows and find them in what the tuned model says, and not in what its base says."""
    client = platform.client
    job = create(client, rows, max_steps=24, learning_rate=2e-3)
    done = wait_for(client, job.id, lambda job: job.status == "succeeded", "the job")
    assert done.fine_tuned_model.startswith(f"ft:{MODEL}:default:")
    assert done.trained_tokens > 0
    events = list(client.fine_tuning.jobs.list_events(job.id, limit=100))
    losses = [event.data["train_loss"] for event in events if event.type == "metrics" and "train_loss" in event.data]
    assert losses[0] < losses[-1], "newest first: the loss has fallen"
    assert list(client.fine_tuning.jobs.checkpoints.list(job.id))
    question: Any = [{"role": "user", "content": "What colour is rose number 3?"}]
    stream = client.chat.completions.create(
        model=done.fine_tuned_model, messages=question, stream=True, max_tokens=8, temperature=0
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    base = client.chat.completions.create(model=MODEL, messages=question, max_tokens=8, temperature=0)
    assert "Crimson" in text
    assert "Crimson" not in (base.choices[0].message.content or "")


def test_pause_resume_cancel(platform: RunningPlatform, rows: Path) -> None:
    client = platform.client
    job = create(client, rows, max_steps=400)
    running = wait_for(client, job.id, lambda job: job.martlet["progress"]["step"] >= 2, "the job trains")
    assert running.status == "running"
    assert client.fine_tuning.jobs.pause(job.id).status in ("pausing", "paused")
    paused = wait_for(client, job.id, lambda job: job.status == "paused", "the job pauses")
    step = paused.martlet["progress"]["step"]
    assert client.fine_tuning.jobs.resume(job.id).status in ("queued", "running")
    resumed = wait_for(client, job.id, lambda job: job.martlet["progress"]["step"] > step, "the job goes on")
    assert resumed.martlet["attempt"] == 2
    client.fine_tuning.jobs.cancel(job.id)
    cancelled = wait_for(client, job.id, lambda job: job.status == "cancelled", "the job is cancelled")
    assert cancelled.fine_tuned_model is None
    with pytest.raises(openai.ConflictError) as refused:
        client.fine_tuning.jobs.cancel(job.id)
    assert refused.value.response.headers["x-should-retry"] == "false"


def test_reinforcement_with_a_grader(platform: RunningPlatform, tmp_path: Path) -> None:
    """OpenAI's reinforcement fine-tuning: the grader is tried, then it is the reward."""
    client = platform.client
    grader: Any = {
        "type": "text_similarity",
        "name": "alike",
        "input": "{{sample.output_text}}",
        "reference": "{{item.reference_answer}}",
        "evaluation_metric": "fuzzy_match",
    }
    tried = client.fine_tuning.alpha.graders.run(
        grader=grader, model_sample="Crimson", item={"reference_answer": "Crimson"}
    )
    assert tried.reward == 1.0
    questions = tmp_path / "questions.jsonl"
    row = {"messages": [{"role": "user", "content": "What colour is a rose?"}], "reference_answer": "Crimson."}
    questions.write_text((json.dumps(row) + "\n") * 4)
    with questions.open("rb") as stream:
        uploaded = client.files.create(file=stream, purpose="fine-tune")
    options = {"num_generations": 2, "max_completion_length": 6}
    job = client.fine_tuning.jobs.create(
        model=MODEL,
        training_file=uploaded.id,
        method={
            "type": "reinforcement",
            "reinforcement": {"grader": grader, "hyperparameters": {"n_epochs": 1, "batch_size": 2}},
        },
        extra_body={"martlet": {"recipe_options": options}},
    )
    done = wait_for(client, job.id, lambda job: job.status == "succeeded", "the job")
    assert done.method.reinforcement.grader.name == "alike"
    metrics = done.martlet["result"]["metrics"]
    assert 0 < metrics["train_reward_alike"] < 1
    assert metrics["train_reward"] == pytest.approx(metrics["train_reward_alike"])


class ReflectingClient:
    """A gRPC client that learns every message and method from the server."""

    def __init__(self, address: str, api_key: str) -> None:
        self._channel = grpc.insecure_channel(address)
        self._pool = DescriptorPool(ProtoReflectionDescriptorDatabase(self._channel))
        self._metadata = (("authorization", f"Bearer {api_key}"),)

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def call(self, method: str, request: dict[str, Any]) -> dict[str, Any]:
        """One answer, as JSON with the protos' names."""
        invoke, message = self._method(method, request)
        return _to_dict(invoke(message, metadata=self._metadata, timeout=60))

    def stream(self, method: str, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """A stream of answers."""
        invoke, message = self._method(method, request)
        for answer in invoke(message, metadata=self._metadata, timeout=DEADLINE_SECONDS):
            yield _to_dict(answer)

    def _method(self, name: str, request: dict[str, Any]) -> tuple[Any, Any]:
        service, _, method = name.rpartition("/")
        found = self._pool.FindServiceByName(service).methods_by_name[method]
        ask, answer = GetMessageClass(found.input_type), GetMessageClass(found.output_type)
        make = self._channel.unary_stream if found.server_streaming else self._channel.unary_unary
        invoke = make(f"/{name}", request_serializer=ask.SerializeToString, response_deserializer=answer.FromString)
        return invoke, json_format.ParseDict(request, ask(), descriptor_pool=self._pool)


def _to_dict(message: Any) -> dict[str, Any]:
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


def test_grpc_by_reflection_alone(platform: RunningPlatform, rows: Path) -> None:
    with rows.open("rb") as stream:
        uploaded = platform.client.files.create(file=stream, purpose="fine-tune")
    trainer = "martlet.trainer.v1.TrainingService"
    client = ReflectingClient(platform.grpc_address, platform.api_key)
    try:
        spec = {
            "base_model": MODEL,
            "training_dataset": "artifacts/" + uploaded.id.removeprefix("file-"),
            "hyperparameters": {"max_steps": 3, "per_device_batch_size": 2},
            "suffix": "by-reflection",
        }
        job = client.call(f"{trainer}/CreateTrainingJob", {"training_job": {"spec": spec}})
        events = list(client.stream(f"{trainer}/WatchTrainingJob", {"name": job["name"]}))
        states = [event["state_change"]["to_state"] for event in events if "state_change" in event]
        steps = [int(event["metrics"]["step"]) for event in events if "metrics" in event]
        done = client.call(f"{trainer}/GetTrainingJob", {"name": job["name"]})
    finally:
        client.close()
    assert states[-1] == "JOB_STATE_SUCCEEDED"
    assert steps[-1] == 3
    assert done["result"]["fine_tuned_model"].startswith(f"ft:{MODEL}:default:by-reflection:")
    listed = platform.client.fine_tuning.jobs.list(limit=100)
    assert done["result"]["fine_tuned_model"] in {job.fine_tuned_model for job in listed}
