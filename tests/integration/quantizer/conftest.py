"""The quantizer as deployed: ``serve`` and a worker, each in its own environment, on real Valkey and SeaweedFS, over gRPC."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from martlet.common.v1 import job_pb2
from martlet.quantizer.v1 import quantization_job_pb2 as job_messages
from martlet.quantizer.v1 import quantization_service_pb2 as messages
from martlet.quantizer.v1 import quantization_service_pb2_grpc
from martlet_core.local_servers import free_port
from martlet_core.rpc.client import call_metadata
from martlet_core.settings import CoreSettings
from martlet_core.stores import Stores, open_stores
from martlet_core.testing.servers import start_valkey

ROOT = Path(__file__).parents[3]
HERE = Path(__file__).parent
DEADLINE_SECONDS = 240.0
TENANT = "acme"


def python_of(environment: str) -> str:
    """The interpreter of an environment; the test is skipped where it wasn't made."""
    python = ROOT / ".martlet/envs" / environment / "bin/python"
    if not python.is_file():
        pytest.skip(f"the environment {environment} isn't there; make it with scripts/bootstrap.sh {environment}")
    return str(python)


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of two layers, as an ordinary Hugging Face directory."""
    directory = tmp_path_factory.mktemp("models") / "tiny-llama"
    script = [python_of("quantizer-bnb"), str(HERE / "tiny_llama.py"), str(directory)]
    # One thread: two that wait for one another on busy cores take minutes for what takes seconds.
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run(script, check=True, timeout=180, env=environ | {"OMP_NUM_THREADS": "1"})
    return directory


class Quantizer:
    """A quantizer with a worker of the family bnb, and its client."""

    def __init__(self, tmp_path: Path, s3_settings: dict[str, str], model: Path) -> None:
        self._tmp_path = tmp_path
        self._valkey = start_valkey(tmp_path / "valkey")
        self.model = f"file://{model}"
        s3 = {**s3_settings, "s3_bucket": f"quantizer-{secrets.token_hex(4)}"}
        self._environ = {
            **{name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"},
            **{f"MARTLET_{name.upper()}": value for name, value in s3.items()},
            "MARTLET_REDIS_URL": self._valkey.url,
            "MARTLET_GRPC_ADDRESS": f"127.0.0.1:{free_port()}",
            "MARTLET_CACHE_DIR": str(tmp_path / "cache"),
            "MARTLET_WORK_DIR": str(tmp_path / "work"),
            "MARTLET_MODELS_DIR": str(tmp_path / "models"),
            "MARTLET_MODEL_ROOTS": str(model.parent),
            "MARTLET_QUANTIZER_FAMILY": "bnb",
            "MARTLET_LEASE_SECONDS": "4",
            "MARTLET_RECONCILE_SECONDS": "1",
            "OMP_NUM_THREADS": "1",
        }
        self.stores: Stores = open_stores(
            CoreSettings(redis_url=self._valkey.url, cache_dir=tmp_path / "test-cache", **s3)  # type: ignore[arg-type]
        )
        self._processes: list[subprocess.Popen[bytes]] = []
        self._start("quantizer", "serve")
        self.worker = self.start_worker()
        self._channel = grpc.insecure_channel(self._environ["MARTLET_GRPC_ADDRESS"])
        grpc.channel_ready_future(self._channel).result(60)
        self.stub = quantization_service_pb2_grpc.QuantizationServiceStub(self._channel)

    def start_worker(self) -> subprocess.Popen[bytes]:
        """Another worker process."""
        return self._start("quantizer-bnb", "work")

    def create(self, **spec: Any) -> job_messages.QuantizationJob:
        """Create a job; by default bnb-nf4 on the tiny model, measured on few texts."""
        fields = {"model": self.model, "method": "bnb-nf4", "sample_prompts": ["Hello"], **spec}
        job = job_messages.QuantizationJob(display_name="tiny", spec=job_messages.QuantizationSpec(**fields))
        request = messages.CreateQuantizationJobRequest(quantization_job=job)
        return self.stub.CreateQuantizationJob(request, timeout=60, metadata=call_metadata(tenant=TENANT))

    def ask(self, verb: str, name: str) -> job_messages.QuantizationJob:
        """Get, Cancel, Pause or Resume a job."""
        request = getattr(messages, f"{verb}QuantizationJobRequest")(name=name)
        method = getattr(self.stub, f"{verb}QuantizationJob")
        return method(request, timeout=60, metadata=call_metadata(tenant=TENANT))

    def watch(self, name: str) -> list[job_pb2.JobEvent]:
        """All events to the end."""
        request = messages.WatchQuantizationJobRequest(name=name)
        return list(
            self.stub.WatchQuantizationJob(request, timeout=DEADLINE_SECONDS, metadata=call_metadata(tenant=TENANT))
        )

    def upload(self, text: str, *, tenant: str = TENANT) -> str:
        """A data set of one file; returns its resource name."""
        directory = self._tmp_path / f"upload-{secrets.token_hex(4)}"
        directory.mkdir()
        (directory / "rows.jsonl").write_text(text)
        return f"artifacts/{self.stores.artifacts.put_directory(directory, kind='dataset', tenant=tenant).id}"

    def download(self, artifact: str) -> Path:
        """An artifact's files."""
        directory = self._tmp_path / f"download-{secrets.token_hex(4)}"
        self.stores.artifacts.download(artifact.removeprefix("artifacts/"), directory)
        return directory

    def wait_until(self, condition: Callable[[], object], what: str) -> None:
        """Poll a condition to a deadline."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not condition():
            if time.monotonic() > deadline:
                pytest.fail(f"waited in vain for {what}\n{self.logs()}")
            time.sleep(0.05)

    def steps(self) -> list[int]:
        """Process ids of all steps of jobs that run now."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                text = path.read_bytes().decode(errors="replace")
                if "martlet_quantizer.step" in text and str(self._tmp_path) in text:
                    found.append(int(path.parent.name))
        return found

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

    def _start(self, environment: str, command: str) -> subprocess.Popen[bytes]:
        log = self._tmp_path / f"{command}-{len(self._processes)}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [python_of(environment), "-m", "martlet_quantizer", command],
                env=self._environ,
                stdout=output,
                stderr=output,
            )
        self._processes.append(process)
        return process


@pytest.fixture(scope="module")
def quantizer(
    tmp_path_factory: pytest.TempPathFactory, s3_settings: dict[str, str], tiny_llama: Path
) -> Iterator[Quantizer]:
    """A quantizer shared by a module's tests."""
    python_of("quantizer")
    tmp_path = tmp_path_factory.mktemp("quantizer")
    (tmp_path / "valkey").mkdir()
    quantizer = Quantizer(tmp_path, s3_settings, tiny_llama)
    yield quantizer
    quantizer.close()
