"""Asking a replica for the finished model: what the row says, against a gateway that does as it is told."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from martlet_core.artifacts.store import ContentAddressedStore
from martlet_core.artifacts.types import PublishedModel
from martlet_core.job_handler import FinishedJob, TriesItsModel
from martlet_core.jobs import Job
from martlet_core.models import ObjectModelRegistry
from martlet_core.service_tokens import tenant_of_service_token
from martlet_core.stores import Stores
from martlet_core.testing.job_store import MemoryJobStore
from martlet_core.testing.object_store import MemoryObjectStore
from martlet_inputs.base_models.locate import ModelDirs
from martlet_quantizer import serving_check
from martlet_quantizer.handlers import QuantizationHandler
from martlet_quantizer.serving_check import UNKNOWN_ENGINE, ServingCheck

NAME = "ft:tiny:acme:bnb-nf4:12345678"
REPLICA = {"name": "replicas/r1", "engine": "vllm", "loaded": True}
DEADLINE_SECONDS = 30.0


def answered(text: str) -> tuple[int, dict[str, Any]]:
    return 200, {"choices": [{"message": {"content": text}}]}


def refused(status: int, message: str, **headers: str) -> tuple[int, dict[str, Any], dict[str, str]]:
    return status, {"error": {"message": message}}, headers


@dataclass
class Gateway:
    """A local server: ``answers`` to POST in order, the last one for ever; an Event waits until it is set.

    Attributes:
        replicas: what GET says of the model.
        asked: routes, tenants and bodies of POST.
        gone: set when a caller closed its connection before it was answered.
    """

    answers: list[Any] = field(default_factory=list)
    replicas: list[dict[str, Any]] = field(default_factory=lambda: [dict(REPLICA)])
    asked: list[tuple[str, str | None, Any]] = field(default_factory=list)
    begun: threading.Event = field(default_factory=threading.Event)
    gone: threading.Event = field(default_factory=threading.Event)
    url: str = ""

    def handler(self) -> type[BaseHTTPRequestHandler]:
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                assert unquote(self.path) == f"/v1/models/{NAME}"
                self._send(200, {"id": NAME, "martlet": {"replicas": gateway.replicas}})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                tenant = tenant_of_service_token(self.headers["authorization"].removeprefix("Bearer "), "internal")
                gateway.asked.append((self.path, tenant, body))
                gateway.begun.set()
                answer = gateway.answers.pop(0) if len(gateway.answers) > 1 else gateway.answers[0]
                if answer is None:  # silence, until the other side hangs up
                    self.connection.settimeout(DEADLINE_SECONDS)
                    if self.connection.recv(1) == b"":
                        gateway.gone.set()
                    self.close_connection = True
                    return
                self._send(*answer)

            def _send(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                for name, value in (headers or {}).items():
                    self.send_header(name.replace("_", "-"), value)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                """Nothing."""

        return Handler


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    made = Gateway()
    server = ThreadingHTTPServer(("127.0.0.1", 0), made.handler())
    made.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses between two questions are short."""
    monkeypatch.setattr(serving_check, "_LONGEST_PAUSE_SECONDS", 0.02)
    monkeypatch.setattr(serving_check, "_POLL_SECONDS", 0.01)


def check(
    gateway: Gateway, *, chat: bool = True, give_up: Callable[[], bool] = lambda: False, **settings: Any
) -> dict[str, Any]:
    deployment = ServingCheck(**{"gateway_url": gateway.url, "internal_token": "internal", **settings})
    return deployment.run(NAME, "acme", chat=chat, give_up=give_up)


def test_an_answer_names_the_engine_and_the_replica(gateway: Gateway) -> None:
    gateway.answers = [answered("Paris is the capital")]
    row = check(gateway)
    assert (row["engine"], row["loaded"]) == ("vllm", True)
    assert row["detail"] == "answered 'Paris is the capital' on replicas/r1"
    assert 0 <= row["seconds"] < DEADLINE_SECONDS
    [(path, tenant, body)] = gateway.asked
    assert (path, tenant) == ("/v1/chat/completions", "acme")
    assert (body["model"], body["max_tokens"], body["temperature"]) == (NAME, 8, 0)
    assert body["messages"]


def test_a_model_without_a_chat_template_completes_a_text(gateway: Gateway) -> None:
    gateway.answers = [(200, {"choices": [{"text": " Paris"}]})]
    assert check(gateway, chat=False)["detail"].startswith("answered ' Paris' on")
    [(path, _, body)] = gateway.asked
    assert (path, body["prompt"]) == ("/v1/completions", serving_check.PROMPT)


def test_a_replica_that_has_changed_its_model_meanwhile_is_not_named(gateway: Gateway) -> None:
    gateway.answers = [answered("yes")]
    gateway.replicas = [REPLICA | {"loaded": False}]
    row = check(gateway)
    assert (row["engine"], row["loaded"]) == (UNKNOWN_ENGINE, True)


def test_a_refusal_of_the_engine_is_in_the_row(gateway: Gateway) -> None:
    gateway.answers = [refused(409, "The engine could not start with the model: no such quantization.")]
    gateway.replicas = [REPLICA | {"loaded": False}]
    row = check(gateway)
    assert (row["engine"], row["loaded"]) == ("vllm", False)
    assert "no such quantization" in row["detail"]
    assert len(gateway.asked) == 1


def test_what_is_still_being_loaded_is_asked_for_again(gateway: Gateway) -> None:
    loading = refused(503, "It is still being loaded.", retry_after="5")
    gateway.answers = [loading, loading, answered("yes")]
    assert check(gateway)["loaded"] is True
    assert len(gateway.asked) == 3


def test_the_deadline_ends_it_with_the_last_reason(gateway: Gateway) -> None:
    gateway.answers = [refused(503, "It is still being loaded.", retry_after="5")]
    row = check(gateway, seconds=0.2)
    assert row["loaded"] is False
    assert "within 0.2 s" in row["detail"]
    assert row["detail"].endswith("It is still being loaded.")


def test_silence_ends_at_the_deadline_too(gateway: Gateway) -> None:
    gateway.answers = [None]
    row = check(gateway, seconds=0.2)
    assert (row["engine"], row["loaded"]) == ("vllm", False)
    assert gateway.gone.wait(DEADLINE_SECONDS)


def test_where_no_replica_takes_it_nothing_was_tried(gateway: Gateway) -> None:
    gateway.answers = [refused(503, "No replica can take it (MARTLET_ACCEPTS_PLACEMENT).", retry_after="10")]
    gateway.replicas = []
    row = check(gateway)
    assert (row["engine"], row["loaded"]) == (UNKNOWN_ENGINE, False)
    assert row["detail"].startswith("not tried: no replica takes it. ")
    assert "MARTLET_ACCEPTS_PLACEMENT" in row["detail"]


def test_a_gateway_with_another_token_is_named(gateway: Gateway) -> None:
    gateway.answers = [refused(401, "Incorrect API key")]
    assert "the same MARTLET_INTERNAL_TOKEN" in check(gateway)["detail"]


def test_a_gateway_that_is_away_is_asked_again_for_a_while(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving_check, "_UNREACHABLE_SECONDS", 0.1)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        row = check(gateway, gateway_url=url)
    assert row["detail"].startswith(f"not tried: The gateway at {url} can't be reached: ")


def test_giving_up_breaks_the_request_off(gateway: Gateway) -> None:
    gateway.answers = [None]
    row = check(gateway, give_up=gateway.begun.is_set)
    assert row["detail"].startswith("not tried: broken off")
    assert gateway.gone.wait(DEADLINE_SECONDS), "the gateway was left waiting"


def test_giving_up_beforehand_asks_nothing_for_long(gateway: Gateway) -> None:
    gateway.answers = [None]
    assert check(gateway, give_up=lambda: True)["detail"].startswith("not tried: broken off")


class Kit:
    """A handler on stores in memory, and a finished job."""

    def __init__(self, tmp_path: Path, gateway: Gateway) -> None:
        self._tmp_path = tmp_path
        objects = MemoryObjectStore()
        self.stores = Stores(
            MemoryJobStore(), objects, ContentAddressedStore(objects, tmp_path / "cache"), ObjectModelRegistry(objects)
        )
        self._gateway = gateway
        gateway.answers = [answered("yes")]

    def row(
        self, files: dict[str, str], *, spec: dict[str, Any] | None = None, gguf: bool = False, **deployment: Any
    ) -> Any:
        directory = self._tmp_path / "model"
        directory.mkdir()
        for name, text in {"config.json": "{}", **files}.items():
            (directory / name).write_text(text)
        stored = self.stores.artifacts.put_directory(directory, kind="quantized_model", tenant="acme")
        serving = ServingCheck(**{"gateway_url": self._gateway.url, "internal_token": "internal", **deployment})
        handler = QuantizationHandler(self.stores, ModelDirs(self._tmp_path, self._tmp_path, ()), {}, serving)
        assert isinstance(handler, TriesItsModel)
        method = "gguf" if gguf else "bnb-nf4"
        job = Job(
            "0" * 12 + "12345678",
            "quantizer",
            "quantization",
            "acme",
            {"model": "tiny", "method": method, **(spec or {})},
            "q",
        )
        model = None if gguf else PublishedModel(NAME, "whole", "acme", stored.id, source_job=job.id)
        assert handler.tried_name(job) == (None if gguf else NAME)
        before = FinishedJob({"engines": [{"engine": "transformers", "loaded": True}], "method": method}, model)
        after = handler.try_out(job, before, lambda: False)
        assert after.model is before.model
        assert after.result["method"] == method
        assert after.result["engines"][:-1] == before.result["engines"]
        return after.result["engines"][-1]


@pytest.fixture
def kit(tmp_path: Path, gateway: Gateway) -> Kit:
    return Kit(tmp_path, gateway)


@pytest.mark.parametrize(
    ("files", "path"),
    [
        ({"chat_template.jinja": "x", "tokenizer_config.json": "{}"}, "/v1/chat/completions"),
        ({"tokenizer_config.json": '{"chat_template": "x"}'}, "/v1/chat/completions"),
        ({"tokenizer_config.json": "{}"}, "/v1/completions"),
        ({}, "/v1/completions"),
    ],
)
def test_the_model_is_asked_in_the_way_it_knows(kit: Kit, gateway: Gateway, files: dict[str, str], path: str) -> None:
    assert kit.row(files)["loaded"] is True
    assert [asked[0] for asked in gateway.asked] == [path]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"gguf": True}, "no engine of ours serves this format"),
        ({"spec": {"check_serving": False}}, "the job said no"),
        ({"allowed": False}, "MARTLET_SERVING_CHECKS"),
        ({"gateway_url": ""}, "MARTLET_GATEWAY_URL"),
        ({"internal_token": ""}, "MARTLET_INTERNAL_TOKEN"),
    ],
)
def test_what_isnt_tried_says_why(kit: Kit, gateway: Gateway, changes: dict[str, Any], why: str) -> None:
    row = kit.row({}, **changes)
    assert (row["engine"], row["loaded"], row["seconds"]) == (UNKNOWN_ENGINE, False, 0.0)
    assert row["detail"].startswith("not tried: ")
    assert why in row["detail"]
    assert not gateway.asked
