"""The trainer as deployed: ``serve`` and ``work`` in their own environment, on real Valkey and SeaweedFS, over gRPC."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from martlet.common.v1 import job_pb2
from martlet.trainer.v1 import (
    merge_service_pb2_grpc,
    training_job_pb2,
    training_service_pb2,
    training_service_pb2_grpc,
)
from martlet_core.rpc.client import call_metadata
from martlet_core.settings import CoreSettings
from martlet_core.stores import Stores, open_stores
from martlet_core.testing.servers import start_valkey

ROOT = Path(__file__).parents[3]
HERE = Path(__file__).parent
DEADLINE_SECONDS = 240.0
TENANT = "acme"


def trainer_python() -> str:
    """The interpreter of the trainer's environment."""
    return os.environ.get("MARTLET_TRAINER_PYTHON") or str(ROOT / ".martlet/envs/trainer/bin/python")


def tracking_python() -> str:
    """The interpreter of the trackers' environment."""
    return os.environ.get("MARTLET_TRACKING_PYTHON") or str(ROOT / ".martlet/envs/trainer-tracking/bin/python")


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of some thousand parameters, as an ordinary Hugging Face directory."""
    directory = tmp_path_factory.mktemp("models") / "tiny-llama"
    subprocess.run([trainer_python(), str(HERE / "tiny_llama.py"), str(directory)], check=True, timeout=120)
    return directory


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class Trainer:
    """A trainer and its client."""

    def __init__(self, tmp_path: Path, s3_settings: dict[str, str], model: Path) -> None:
        self._tmp_path = tmp_path
        self._valkey = start_valkey(tmp_path / "valkey")
        self.model = model
        self.base_model = f"file://{model}"
        s3 = {**s3_settings, "s3_bucket": f"trainer-{secrets.token_hex(4)}"}
        self._environ = {
            **os.environ,
            **{f"MARTLET_{name.upper()}": value for name, value in s3.items()},
            "MARTLET_REDIS_URL": self._valkey.url,
            "MARTLET_GRPC_ADDRESS": f"127.0.0.1:{free_port()}",
            "MARTLET_CACHE_DIR": str(tmp_path / "cache"),
            "MARTLET_WORK_DIR": str(tmp_path / "work"),
            "MARTLET_MODELS_DIR": str(tmp_path / "models"),
            "MARTLET_MODEL_ROOTS": str(model.parent),
            "MARTLET_LEASE_SECONDS": "4",
            "MARTLET_RECONCILE_SECONDS": "1",
            "MARTLET_HOUSEKEEPING_HOURS": "0.001",
            "MARTLET_TRACKERS": "tensorboard,mlflow",
            "MARTLET_TENSORBOARD_DIR": str(tmp_path / "tensorboard"),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        }
        self.stores: Stores = open_stores(
            CoreSettings(redis_url=self._valkey.url, cache_dir=tmp_path / "test-cache", **s3)  # type: ignore[arg-type]
        )
        self._processes: list[subprocess.Popen[bytes]] = []
        self._start("serve")
        self.worker = self.start_worker()
        self._channel = grpc.insecure_channel(self.address)
        grpc.channel_ready_future(self._channel).result(60)
        self.training = training_service_pb2_grpc.TrainingServiceStub(self._channel)
        self.merging = merge_service_pb2_grpc.MergeServiceStub(self._channel)

    @property
    def address(self) -> str:
        """Where it answers."""
        return self._environ["MARTLET_GRPC_ADDRESS"]

    def start_worker(self) -> subprocess.Popen[bytes]:
        """Another worker process."""
        return self._start("work")

    def start_tracker(self, **environ: str) -> subprocess.Popen[bytes]:
        """The process that tells trackers."""
        return self._start("track", python=tracking_python(), **environ)

    @property
    def tensorboard_dir(self) -> Path:
        """Where TensorBoard's files are."""
        return Path(self._environ["MARTLET_TENSORBOARD_DIR"])

    def call(self, method: Callable[..., Any], request: Any, *, tenant: str = TENANT) -> Any:
        """A unary call on behalf of a tenant."""
        return method(request, timeout=60, metadata=call_metadata(tenant=tenant))

    def upload(self, text: str, *, name: str = "rows.jsonl", tenant: str = TENANT) -> str:
        """A data set of one file; returns its resource name."""
        directory = self._tmp_path / f"upload-{secrets.token_hex(4)}"
        directory.mkdir()
        (directory / name).write_text(text)
        return f"artifacts/{self.stores.artifacts.put_directory(directory, kind='dataset', tenant=tenant).id}"

    def spec(self, dataset: str, *, steps: int = 6, **fields: Any) -> training_job_pb2.TrainingSpec:
        """A LoRA training of some steps on the tiny model."""
        return training_job_pb2.TrainingSpec(
            **{
                "base_model": self.base_model,
                "training_dataset": dataset,
                "tuner": training_job_pb2.TunerConfig(lora_rank=4),
                "hyperparameters": training_job_pb2.Hyperparameters(
                    max_steps=steps, per_device_batch_size=4, learning_rate=1e-2
                ),
                **fields,
            }
        )

    def create(self, spec: training_job_pb2.TrainingSpec, *, tenant: str = TENANT, **fields: Any) -> Any:
        """Create a training."""
        job = training_job_pb2.TrainingJob(display_name="tiny", spec=spec)
        request = training_service_pb2.CreateTrainingJobRequest(training_job=job, **fields)
        return self.call(self.training.CreateTrainingJob, request, tenant=tenant)

    def get(self, name: str) -> training_job_pb2.TrainingJob:
        """The training as it is now."""
        return self.call(self.training.GetTrainingJob, training_service_pb2.GetTrainingJobRequest(name=name))

    def watch(self, name: str, *, after: str = "") -> list[job_pb2.JobEvent]:
        """All events to the end."""
        request = training_service_pb2.WatchTrainingJobRequest(name=name, after_cursor=after)
        stream = self.training.WatchTrainingJob(
            request, timeout=DEADLINE_SECONDS, metadata=call_metadata(tenant=TENANT)
        )
        return list(stream)

    def wait_until(self, condition: Callable[[], object], what: str) -> None:
        """Poll a condition to a deadline."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not condition():
            if time.monotonic() > deadline:
                pytest.fail(f"waited in vain for {what}\n{self.logs()}")
            time.sleep(0.05)

    def download(self, artifact: str) -> Path:
        """An artifact's files."""
        directory = self._tmp_path / f"download-{secrets.token_hex(4)}"
        self.stores.artifacts.download(artifact.removeprefix("artifacts/"), directory)
        return directory

    def recipes(self, worker: subprocess.Popen[bytes]) -> list[int]:
        """Process ids of a worker's recipes."""
        pids: set[int] = set()
        for tasks in Path(f"/proc/{worker.pid}/task").glob("*/children"):
            with suppress(OSError):
                pids |= {int(pid) for pid in tasks.read_text().split()}
        return sorted(pids)

    def logs(self) -> str:
        """What the processes wrote last."""
        return "\n".join(f"--- {path.name}\n{path.read_text()[-4000:]}" for path in self._tmp_path.glob("*.log"))

    def close(self) -> None:
        """Stop everything."""
        self._channel.close()
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self._processes:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._valkey.kill()

    def _start(self, command: str, *, python: str = "", **environ: str) -> subprocess.Popen[bytes]:
        log = self._tmp_path / f"{command}-{len(self._processes)}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [python or trainer_python(), "-m", "martlet_trainer", command],
                env={**self._environ, **environ},
                stdout=output,
                stderr=output,
            )
        self._processes.append(process)
        return process


@pytest.fixture(scope="module")
def trainer(
    tmp_path_factory: pytest.TempPathFactory, s3_settings: dict[str, str], tiny_llama: Path
) -> Iterator[Trainer]:
    """A trainer shared by a module's tests."""
    tmp_path = tmp_path_factory.mktemp("trainer")
    (tmp_path / "valkey").mkdir()
    trainer = Trainer(tmp_path, s3_settings, tiny_llama)
    yield trainer
    trainer.close()


@pytest.fixture(scope="session")
def rows() -> str:
    """Sixty rows that teach something: the answer is the question's last word."""
    words = [
        "oak",
        "elm",
        "ash",
        "fir",
        "yew",
        "box",
        "bay",
        "fig",
        "pear",
        "plum",
        "lime",
        "pine",
        "rose",
        "reed",
        "rush",
    ]
    lines = []
    for number in range(60):
        word = words[number % len(words)]
        turns = [{"role": "user", "content": f"{number} say {word}"}, {"role": "assistant", "content": word}]
        lines.append(json.dumps({"messages": turns}))
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="session")
def opens_in_peft(tiny_llama: Path) -> Callable[[Path], float]:
    """How much an adapter changes the tiny model's logits, by peft alone."""

    def change(adapter: Path) -> float:
        command = [trainer_python(), str(HERE / "open_adapter.py"), str(tiny_llama), str(adapter)]
        done = subprocess.run(command, check=True, timeout=120, stdout=subprocess.PIPE, stderr=sys.stderr)
        return float(done.stdout.split()[-1])

    return change
