"""Platforms of our own, started once a session, rows to train on, and three ways to make mistakes there."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from martlet.common.v1 import artifact_pb2
from martlet.gateway.v1 import artifact_service_pb2, artifact_service_pb2_grpc
from martlet.inference.v1 import inference_pb2, inference_service_pb2_grpc
from martlet.trainer.v1 import training_job_pb2, training_service_pb2, training_service_pb2_grpc
from martlet_cli.__main__ import main
from martlet_cli.api_key import operator_settings
from martlet_cli.layout import Layout, write_json
from martlet_cli.testing import RunningPlatform, running_platform
from martlet_core.artifacts.s3 import S3ObjectStore
from martlet_core.artifacts.types import PublishedModel
from martlet_core.models import ObjectModelRegistry
from martlet_core.rpc.client import error_from_rpc
from martlet_core.settings import CoreSettings

MODEL = "smollm2-135m-instruct"
TENANT = "mistaken"
HOMELESS = "ft:elsewhere:mistaken::12345678"  # an adapter whose base no replica holds
GOOD = '{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}\n'
NO_ANSWER = '{"messages": [{"role": "user", "content": "hi"}]}\n'
LONG = json.dumps({"messages": [{"role": "user", "content": "one two " * 6000}, {"role": "assistant", "content": "3"}]})
FILES = {
    "good": GOOD * 4,
    "empty": "",
    "not_json": GOOD * 811 + '{"messages": [}\n' + GOOD * 88,
    "no_answer": GOOD + NO_ANSWER,
    "long": GOOD + LONG + "\n",
}


@dataclass(frozen=True)
class Answer:
    """What came back: HTTP status, gRPC status or exit code; the word for programs; the text for people."""

    status: int | str
    code: str
    message: str


@dataclass(frozen=True)
class World:
    """A platform with a tenant who makes mistakes.

    Attributes:
        artifacts: data sets of ``FILES`` by name, brought over gRPC.
        paths: the same on disk.
        finished: id of a job that is over.
        theirs: id of another tenant's data set.
    """

    platform: RunningPlatform
    home: Path
    key: str
    paths: dict[str, Path]
    artifacts: dict[str, str]
    finished: str
    theirs: str

    def jobs(self) -> list[tuple[str, str, int]]:
        """The tenant's jobs: id, state and attempts."""
        answer = self.http().get("/martlet/jobs", params={"limit": 1000}).json()
        return [(job["id"], job["state"], job["attempt"]) for job in answer["data"]]

    def http(self, key: str | None = None) -> httpx.Client:
        """A plain client of REST; an empty key sends none."""
        shown = self.key if key is None else key
        headers = {"authorization": f"Bearer {shown}"} if shown else {}
        return httpx.Client(base_url=self.platform.base_url, headers=headers, timeout=120)


class Rest:
    """Mistakes as HTTP requests."""

    name = "rest"

    def __init__(self, world: World) -> None:
        self.world = world

    def make(self, case: str) -> Answer:
        answer: httpx.Response = getattr(self, case)()
        error = answer.json().get("error") or {"code": "none", "message": answer.text}
        return Answer(answer.status_code, error["code"], error["message"])

    def _upload(self, name: str) -> httpx.Response:
        file = (f"{name}.jsonl", FILES[name].encode())
        return self.world.http().post("/files", files={"file": file}, data={"purpose": "fine-tune"})

    def _job(self, file: str = "", **body: Any) -> httpx.Response:
        file_id = file or self._upload("good").json()["id"]
        return self.world.http().post("/fine_tuning/jobs", json={"model": MODEL, "training_file": file_id} | body)

    def unknown_model(self) -> httpx.Response:
        return self._job(model="smollm2-135m-instrukt")

    def empty_file(self) -> httpx.Response:
        return self._upload("empty")

    def file_that_is_not_json(self) -> httpx.Response:
        return self._job(self._upload("not_json").json()["id"])

    def row_without_an_assistant_turn(self) -> httpx.Response:
        return self._job(self._upload("no_answer").json()["id"])

    def row_longer_than_the_context(self) -> httpx.Response:
        return self._job(self._upload("long").json()["id"], martlet={"on_long_rows": "refuse"})

    def max_length_beyond_the_context(self) -> httpx.Response:
        return self._job(martlet={"max_length": 8193})

    def hyperparameter_of_wrong_type(self) -> httpx.Response:
        return self._job(hyperparameters={"n_epochs": "three"})

    def hyperparameter_out_of_range(self) -> httpx.Response:
        return self._job(martlet={"lora_rank": 9999})

    def file_of_another_tenant(self) -> httpx.Response:
        return self._job("file-" + self.world.theirs)

    def no_key(self) -> httpx.Response:
        return self.world.http("").get("/fine_tuning/jobs")

    def wrong_key(self) -> httpx.Response:
        return self.world.http("mk-" + "x" * 43).get("/fine_tuning/jobs")

    def upload_over_the_limit(self) -> httpx.Response:
        with self.world.paths["large"].open("rb") as stream:
            return self.world.http().post("/files", files={"file": stream}, data={"purpose": "fine-tune"})

    def job_that_does_not_exist(self) -> httpx.Response:
        return self.world.http().get("/fine_tuning/jobs/ftjob-doesnotexist")

    def cancel_of_a_finished_job(self) -> httpx.Response:
        return self.world.http().post(f"/fine_tuning/jobs/ftjob-{self.world.finished}/cancel")

    def chat_whose_base_is_not_loaded(self) -> httpx.Response:
        messages = [{"role": "user", "content": "hi"}]
        return self.world.http().post("/chat/completions", json={"model": HOMELESS, "messages": messages})


class Rpc:
    """Mistakes as gRPC calls on the gateway."""

    name = "grpc"

    def __init__(self, world: World) -> None:
        self.world = world
        self._channel = grpc.insecure_channel(world.platform.grpc_address)
        self._training = training_service_pb2_grpc.TrainingServiceStub(self._channel)

    def make(self, case: str) -> Answer:
        try:
            said = getattr(self, case)()
        except grpc.RpcError as failure:
            error = error_from_rpc(failure)
            return Answer(error.code, error.reason, error.message)
        finally:
            self._channel.close()
        return Answer("OK", "none", str(said))

    def _metadata(self, key: str | None = None) -> Any:
        return (("authorization", f"Bearer {key or self.world.key}"),)

    def _job(self, dataset: str = "good", **spec: Any) -> Any:
        named = self.world.artifacts.get(dataset, dataset)
        values = {"base_model": MODEL, "training_dataset": named} | spec
        job = training_job_pb2.TrainingJob(spec=training_job_pb2.TrainingSpec(**values))
        request = training_service_pb2.CreateTrainingJobRequest(training_job=job)
        return self._training.CreateTrainingJob(request, metadata=self._metadata(), timeout=120)

    def _list(self, metadata: Any) -> Any:
        return self._training.ListTrainingJobs(training_service_pb2.ListTrainingJobsRequest(), metadata=metadata)

    def unknown_model(self) -> Any:
        return self._job(base_model="smollm2-135m-instrukt")

    def empty_file(self) -> Any:
        return self._job("empty")

    def file_that_is_not_json(self) -> Any:
        return self._job("not_json")

    def row_without_an_assistant_turn(self) -> Any:
        return self._job("no_answer")

    def row_longer_than_the_context(self) -> Any:
        return self._job("long", data=training_job_pb2.DataConfig(on_long_rows=training_job_pb2.ON_LONG_ROWS_REFUSE))

    def max_length_beyond_the_context(self) -> Any:
        return self._job(data=training_job_pb2.DataConfig(max_length=8193))

    def hyperparameter_of_wrong_type(self) -> Any:
        text_for_a_number = StringValue(value="three").SerializeToString()  # field 1: epoch_count
        return self._job(hyperparameters=training_job_pb2.Hyperparameters.FromString(text_for_a_number))

    def hyperparameter_out_of_range(self) -> Any:
        return self._job(tuner=training_job_pb2.TunerConfig(lora_rank=9999))

    def file_of_another_tenant(self) -> Any:
        return self._job("artifacts/" + self.world.theirs)

    def no_key(self) -> Any:
        return self._list(())

    def wrong_key(self) -> Any:
        return self._list(self._metadata("mk-" + "x" * 43))

    def upload_over_the_limit(self) -> Any:
        """Bytes don't travel in messages: 600 MB is fine, and what is too large is refused when it is announced."""
        announce(self._channel, self._metadata(), "large.jsonl", "0" * 64, 600 * 1000**2)
        return announce(self._channel, self._metadata(), "large.jsonl", "0" * 64, 9 * 1024**3)

    def job_that_does_not_exist(self) -> Any:
        request = training_service_pb2.GetTrainingJobRequest(name="trainingJobs/doesnotexist")
        return self._training.GetTrainingJob(request, metadata=self._metadata())

    def cancel_of_a_finished_job(self) -> Any:
        request = training_service_pb2.CancelTrainingJobRequest(name=f"trainingJobs/{self.world.finished}")
        return self._training.CancelTrainingJob(request, metadata=self._metadata())

    def chat_whose_base_is_not_loaded(self) -> Any:
        stub = inference_service_pb2_grpc.InferenceServiceStub(self._channel)
        request = inference_pb2.GenerateRequest(model=HOMELESS, prompt="hi")
        return list(stub.Generate(request, metadata=self._metadata(), timeout=60))


class Command:
    """Mistakes at the ``martlet`` command, run in this process."""

    name = "command"

    def __init__(self, world: World, capsys: pytest.CaptureFixture[str]) -> None:
        self.world = world
        self._capsys = capsys

    def make(self, case: str) -> Answer:
        self._capsys.readouterr()
        code = getattr(self, case)()
        error = json.loads(self._capsys.readouterr().out)["error"]
        return Answer(code, error["reason"].lower(), error["message"])

    def _run(self, *argv: str, home: str = "") -> int:
        return main(["--home", str(self.world.home / home), *argv, "--json"])

    def _train(self, file: str = "good", *argv: str, model: str = MODEL) -> int:
        return self._run("train", "--model", model, "--dataset", str(self.world.paths.get(file, file)), *argv)

    def unknown_model(self) -> int:
        return self._train(model="smollm2-135m-instrukt")

    def empty_file(self) -> int:
        return self._train("empty")

    def file_that_is_not_json(self) -> int:
        return self._train("not_json")

    def row_without_an_assistant_turn(self) -> int:
        return self._train("no_answer")

    def row_longer_than_the_context(self) -> int:
        return self._train("long", "--truncation_strategy", "delete")

    def max_length_beyond_the_context(self) -> int:
        return self._train("good", "--max_length", "8193")

    def hyperparameter_of_wrong_type(self) -> int:
        return self._train("good", "--num_train_epochs", "three")

    def hyperparameter_out_of_range(self) -> int:
        return self._train("good", "--lora_rank", "9999")

    def file_of_another_tenant(self) -> int:
        return self._train("file-" + self.world.theirs)

    def no_key(self) -> int:
        return self._run("jobs", "list", home="keyless")

    def wrong_key(self) -> int:
        return self._run("jobs", "list", home="stranger")

    def upload_over_the_limit(self) -> int:
        return self._run("files", "upload", str(self.world.paths["huge"]))

    def job_that_does_not_exist(self) -> int:
        return self._run("jobs", "show", "ftjob-doesnotexist")

    def cancel_of_a_finished_job(self) -> int:
        return self._run("jobs", "cancel", f"ftjob-{self.world.finished}")

    def chat_whose_base_is_not_loaded(self) -> int:
        return self._run("chat", "--model", HOMELESS, "hi")


def announce(channel: grpc.Channel, metadata: Any, path: str, sha256: str, size_bytes: int) -> Any:
    """Announce a data set of one file."""
    stub = artifact_service_pb2_grpc.ArtifactServiceStub(channel)
    file = artifact_pb2.ArtifactFile(path=path, sha256=sha256, size_bytes=size_bytes)
    artifact = artifact_pb2.Artifact(kind=artifact_pb2.ARTIFACT_KIND_DATASET, files=[file])
    request = artifact_service_pb2.CreateArtifactUploadRequest(artifact=artifact)
    return stub.CreateArtifactUpload(request, metadata=metadata)


def bring(platform: RunningPlatform, key: str, path: Path) -> str:
    """Bring a data set over gRPC; returns its resource name."""
    data, metadata = path.read_bytes(), (("authorization", f"Bearer {key}"),)
    with grpc.insecure_channel(platform.grpc_address) as channel:
        upload = announce(channel, metadata, path.name, hashlib.sha256(data).hexdigest(), len(data))
        for put in upload.puts:
            httpx.put(put.url, content=data).raise_for_status()
        request = artifact_service_pb2.CommitArtifactRequest(name=upload.name)
        return artifact_service_pb2_grpc.ArtifactServiceStub(channel).CommitArtifact(request, metadata=metadata).name


def finish_a_job(http: httpx.Client, dataset: str) -> str:
    """Make a job, cancel it and see it end; returns its id."""
    spec = {"base_model": MODEL, "training_dataset": dataset}
    job_id = http.post("/martlet/jobs", json=spec).raise_for_status().json()["id"]
    http.post(f"/martlet/jobs/{job_id}/cancel").raise_for_status()
    assert "[DONE]" in http.get(f"/martlet/jobs/{job_id}/watch").text
    return job_id


@pytest.fixture(scope="module")
def world(platform: RunningPlatform, tmp_path_factory: pytest.TempPathFactory) -> World:
    """A tenant on the platform, its files, and three homes: with its key, with none, with a wrong one."""
    home = tmp_path_factory.mktemp("mistakes")
    key, other_key = (platform.martlet("keys", "create", name)["secret"] for name in (TENANT, "neighbour"))
    for name, shown in (("", {"api_key": key}), ("keyless", {}), ("stranger", {"api_key": "mk-" + "x" * 43})):
        write_json(home / name / "client.json", {"base_url": platform.base_url, **shown})
    paths = {name: home / f"{name}.jsonl" for name in (*FILES, "large", "huge")}
    for name, text in FILES.items():
        paths[name].write_text(text)
    with paths["large"].open("wb") as large:
        large.truncate(600 * 1000**2)
    with paths["huge"].open("wb") as huge:  # the command sends what is too large for one request in parts: up to 8 GiB
        huge.truncate(9 * 1024**3)
    layout = Layout.discover(platform.home)
    # The tokenizer must be at hand, as it is wherever a model was served or trained once.
    prepare = (layout.python("trainer"), "-m", "martlet_inputs.base_models", "prepare", MODEL)
    subprocess.run([*prepare, "--out", str(layout.models / MODEL)], check=True, timeout=280)
    s3 = {name.removeprefix("MARTLET_").lower(): value for name, value in operator_settings(layout).items()}
    models = ObjectModelRegistry(S3ObjectStore.from_settings(CoreSettings(**s3)))  # type: ignore[arg-type]
    models.publish(PublishedModel(HOMELESS, "adapter", TENANT, "a1", base_model="elsewhere", lora_rank=8))
    artifacts = {name: bring(platform, key, paths[name]) for name in FILES}
    theirs = bring(platform, other_key, paths["good"]).removeprefix("artifacts/")
    made = World(platform, home, key, paths, artifacts, "", theirs)
    return replace(made, finished=finish_a_job(made.http(), artifacts["good"]))


@pytest.fixture(params=["rest", "grpc", "command"])
def way(request: Any, world: World, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> Rest | Rpc | Command:
    """A way in: its ``make`` makes a mistake by name."""
    for name in ("MARTLET_BASE_URL", "MARTLET_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    return {"rest": Rest, "grpc": Rpc}[request.param](world) if request.param != "command" else Command(world, capsys)


@pytest.fixture(scope="session")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningPlatform]:
    """A platform with the echo engine, which answers in any environment; everything else is the real thing. Its one
    replica keeps the model that it has.
    """
    home = tmp_path_factory.mktemp("echo")
    arguments = ("--engine", "echo", "--environment", "inference=dev", "--wait", "all")
    with ExitStack() as stack:
        with (
            pytest.MonkeyPatch.context() as patched
        ):  # for this platform's start alone: another one may be started beside
            patched.setenv("MARTLET_ACCEPTS_PLACEMENT", "false")
            running = stack.enter_context(running_platform(home, *arguments))
        yield running


@pytest.fixture(scope="session")
def chatting_platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningPlatform]:
    """A platform with vLLM serving SmolLM2, and every stage: one for all, since an engine takes half a minute to start."""
    families = ("--quantizer-families", "bnb")
    stages = "trainer,quantizer,evaluator"
    with running_platform(tmp_path_factory.mktemp("vllm"), "--wait", "all", *families, stages=stages) as running:
        yield running


@pytest.fixture
def transformers_platform(tmp_path: Path) -> Iterator[RunningPlatform]:
    """A platform for training alone, with the engine that runs where vLLM doesn't."""
    with running_platform(tmp_path / "transformers", "--engine", "transformers", "--wait", "all") as running:
        yield running


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty-two short conversations with one answer."""
    path = tmp_path_factory.mktemp("rows") / "colours.jsonl"
    names = ("apple", "rose", "tomato", "cherry", "brick", "ruby", "poppy", "beet")
    with path.open("w") as out:
        for number in range(32):
            question = f"What colour is {names[number % 8]} number {number}?"
            messages = [{"role": "user", "content": question}, {"role": "assistant", "content": "Crimson."}]
            out.write(json.dumps({"messages": messages}) + "\n")
    return path
