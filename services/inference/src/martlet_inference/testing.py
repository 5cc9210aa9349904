"""What tests need beside the real parts: a model source in memory, and an engine that writes down its orders."""

from __future__ import annotations

import array
import asyncio
import json
import math
import random
import struct
import sys
import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
from martlet.inference.v1 import inference_pb2 as pb
from martlet.inference.v1 import inference_service_pb2_grpc as service_grpc
from martlet_core.artifacts.types import PublishedModel
from martlet_core.errors import NotFound
from martlet_core.model_tasks import ModelTask, told_task
from martlet_core.rpc.client import open_channel
from martlet_core.rpc.server import GrpcServer, Service

from martlet_inference.dataplane import DataPlane
from martlet_inference.engines.base import WholeModel
from martlet_inference.engines.echo import EchoEngine
from martlet_inference.servicer import SERVICE_NAME, InferenceServicer

BASE = PublishedModel("base-1", "base", artifact_id="a1")


class RecordingEngine(EchoEngine):
    """The echo engine, writing down what was asked of it; adapter loads wait while ``gate`` is closed.

    Attributes:
        log: ``start <model>``, ``load <adapter>``, ``unload <adapter>`` in order.
        refused: errors to raise for the models and adapters of these names.
        at_gate: set when an adapter load has begun.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.log: list[str] = []
        self.refused: dict[str, Exception] = {}
        self.gate = asyncio.Event()
        self.gate.set()
        self.at_gate = asyncio.Event()

    async def start(self, model: WholeModel) -> None:
        self.log.append(f"start {model.name}")
        if model.name in self.refused:
            raise self.refused[model.name]
        await super().start(model)

    async def load_adapter(self, name: str, directory: Path) -> None:
        self.log.append(f"load {name}")
        self.at_gate.set()
        await self.gate.wait()
        if name in self.refused:
            raise self.refused[name]
        await super().load_adapter(name, directory)

    async def unload_adapter(self, name: str) -> None:
        self.log.append(f"unload {name}")
        await super().unload_adapter(name)

    async def restart(self) -> None:
        """What a supervisor does after the engine died: same model, new incarnation, no adapters."""
        assert self._model
        await super().start(self._model)


@dataclass
class MemorySource:
    """Models by name; ``resolved`` lists the names that were looked up, ``in_use`` tells the artifacts that are needed."""

    models: dict[str, PublishedModel] = field(default_factory=dict)
    resolved: list[str] = field(default_factory=list)
    in_use: Callable[[], Collection[str]] = tuple

    def publish(self, *models: PublishedModel) -> None:
        """Make models known."""
        self.models.update({model.name: model for model in models})

    async def resolve(self, name: str, tenant: str) -> PublishedModel:
        self.resolved.append(name)
        model = self.models.get(name)
        if model is None or model.tenant not in ("", tenant):
            close = ",".join(n for n, m in self.models.items() if m.tenant in ("", tenant))
            raise NotFound(f"no {name}", reason="MODEL_NOT_FOUND", metadata={"close_matches": close})
        return model

    async def files(self, model: PublishedModel) -> Path:
        return Path("/nowhere") / model.artifact_id

    async def task(self, model: PublishedModel) -> ModelTask | None:
        return told_task(model.metadata)

    def guard(self, in_use: Callable[[], Collection[str]]) -> None:
        self.in_use = in_use


async def wait_until(condition: Callable[[], object], timeout_seconds: float = 10.0) -> None:
    """Wait until a condition holds that nothing announces. TimeoutError when it doesn't in time."""

    def poll() -> None:
        deadline = time.monotonic() + timeout_seconds
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError
            time.sleep(0.01)

    await asyncio.to_thread(poll)


class Clock:
    """Seconds that pass when told to; each look takes a moment, so that uses have an order."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        self.now += 0.001
        return self.now


def adapter(name: str, *, base: str = BASE.name, tenant: str = "", rank: int = 8) -> PublishedModel:
    """A published adapter."""
    return PublishedModel(name, "adapter", tenant, artifact_id=f"artifact-{name}", base_model=base, lora_rank=rank)


def chat_request(model: str = BASE.name, *, stream: bool = False, **fields: Any) -> pb.CallOpenAIRequest:
    """A chat request in OpenAI's shape; ``fields`` are further ones of the body."""
    body = {"model": model, "messages": [{"role": "user", "content": "a b"}], "stream": stream, **fields}
    return pb.CallOpenAIRequest(
        route=pb.OPEN_AI_ROUTE_CHAT_COMPLETIONS, model=model, stream=stream, body=json.dumps(body).encode()
    )


@asynccontextmanager
async def serving(plane: DataPlane) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to a server on loopback with the inference service on a data plane."""
    service = Service(service_grpc.add_InferenceServiceServicer_to_server, InferenceServicer(plane), SERVICE_NAME)
    server = GrpcServer("127.0.0.1:0", [service])
    channel = open_channel(f"127.0.0.1:{await server.start()}")
    try:
        yield channel
    finally:
        await channel.close()
        await server.stop(0)


def write_adapter(directory: Path, model: Path, *, seed: int, rank: int = 8) -> Path:
    """A peft directory with random weights that visibly change what the model says, written without torch.

    Args:
        directory: to be made.
        model: directory of its base, a Llama.
        seed: of the weights.
        rank: of the adapter.
    """
    directory.mkdir()
    config = json.loads((model / "config.json").read_text())
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    head = hidden // config["num_attention_heads"]
    outs = {"q_proj": hidden, "v_proj": head * config["num_key_value_heads"]}
    rng = random.Random(seed)
    header: dict[str, Any] = {}
    data = bytearray()
    for layer in range(layers):
        for module, out in outs.items():
            for part, shape in (("lora_A", (rank, hidden)), ("lora_B", (out, rank))):
                values = array.array("f", (rng.gauss(0, 0.05) for _ in range(math.prod(shape))))
                name = f"base_model.model.model.layers.{layer}.self_attn.{module}.{part}.weight"
                offsets = [len(data), len(data) + 4 * len(values)]
                header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": offsets}
                data += values.tobytes()
    head_bytes = json.dumps(header).encode()
    assert sys.byteorder == "little"
    weights = struct.pack("<Q", len(head_bytes)) + head_bytes + bytes(data)
    (directory / "adapter_model.safetensors").write_bytes(weights)
    adapter_config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": sorted(outs),
        "bias": "none",
        "base_model_name_or_path": model.name,
    }
    (directory / "adapter_config.json").write_text(json.dumps(adapter_config))
    return directory
