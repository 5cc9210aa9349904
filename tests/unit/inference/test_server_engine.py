"""A server as an engine: what is started where an engine takes no adapters of a model. The servers are small programs, really run."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from martlet_core.errors import FailedPrecondition
from martlet_inference.engines.base import EngineState, WholeModel
from martlet_inference.engines.server import ServerEngine
from martlet_inference.engines.server_process import ServerProgram
from martlet_inference.engines.vllm import vllm_program
from martlet_inference.engines.vllm_process import VllmOptions

MODEL = WholeModel("base-1", Path("/nowhere"))
#: Answers as an engine that is ready does, on a Unix socket.
SERVER = """
import json, socketserver, sys
from http.server import BaseHTTPRequestHandler

class Handler(BaseHTTPRequestHandler):
    def address_string(self):
        return "socket"

    def answer(self):
        self.rfile.read(int(self.headers.get("content-length") or 0))
        body = json.dumps({"data": [{"max_model_len": 64}]}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = answer

socketserver.ThreadingUnixStreamServer(sys.argv[1], Handler).serve_forever()
"""


#: Gets ready, and fails at its first answer.
FAILS = SERVER.replace(
    "do_GET = do_POST = answer",
    """do_GET = answer

    def do_POST(self):
        print("lora kernels are missing", flush=True)
        self.send_error(500)""",
)


def ends(words: str) -> str:
    """A server that never gets ready."""
    return f"raise ValueError({words!r})"


def program(code: str, max_lora_rank: int = 64) -> ServerProgram:
    """What runs the code."""

    def environment(base: Mapping[str, str]) -> dict[str, str]:
        return dict(base)

    def command(model: WholeModel, socket: Path) -> list[str]:
        return [sys.executable, "-c", code, str(socket)]

    return ServerProgram("script", "1", "cpu", max_lora_rank, 8, command, environment)


Start = Callable[[str, str | None], ServerEngine]


@pytest.fixture
async def engine_of() -> AsyncIterator[Start]:
    engines: list[ServerEngine] = []

    def make(code: str, bare: str | None) -> ServerEngine:
        first = program(code)
        engines.append(ServerEngine(first if bare is None else replace(first, bare=program(bare, 0)), start_seconds=30))
        return engines[-1]

    yield make
    for engine in engines:
        await engine.stop()


@pytest.mark.parametrize("refusal", [ends("NamedForCausalLM does not support LoRA yet."), FAILS])
async def test_a_model_without_adapters_is_served_where_the_engine_takes_none(engine_of: Start, refusal: str) -> None:
    engine = engine_of(refusal, SERVER)
    assert (engine.max_lora_rank, engine.max_adapters) == (64, 8)
    await engine.start(MODEL)
    assert engine.state is EngineState.READY
    assert engine.context_length == 64
    assert (engine.max_lora_rank, engine.max_adapters) == (0, 0), "so gateway and replica refuse adapters of this model"


async def test_the_next_model_is_asked_about_adapters_anew(engine_of: Start, tmp_path: Path) -> None:
    once = tmp_path / "refused"
    code = f"import os\nif not os.path.exists({str(once)!r}):\n    open({str(once)!r}, 'w'); {ends('no LoRA here')}\n{SERVER}"
    engine = engine_of(code, SERVER)
    await engine.start(MODEL)
    assert engine.max_lora_rank == 0
    await engine.start(MODEL)
    assert (engine.state, engine.max_lora_rank) == (EngineState.READY, 64)


@pytest.mark.parametrize(
    ("code", "bare", "said"),
    [
        (ends("the weights are torn"), SERVER, "the weights are torn"),
        (ends("no LoRA here"), None, "no LoRA here"),
        (ends("no LoRA here"), ends("nor without it"), "nor without it"),
    ],
)
async def test_what_is_refused_for_another_reason_stays_refused(
    engine_of: Start, code: str, bare: str | None, said: str
) -> None:
    engine = engine_of(code, bare)
    with pytest.raises(FailedPrecondition, match=said) as refused:
        await engine.start(MODEL)
    assert refused.value.reason == "ENGINE_REFUSED_MODEL"
    assert engine.state is EngineState.STOPPED
    assert engine.pid is None


def test_vllm_has_a_program_without_adapters() -> None:
    whole = vllm_program(VllmOptions("cpu"), "1")
    assert whole.bare is not None
    assert (whole.max_lora_rank, whole.bare.max_lora_rank, whole.bare.bare) == (64, 0, None)
    assert vllm_program(VllmOptions("cpu", max_lora_rank=0), "1").bare is None
