"""An OpenAI-shaped server over real HTTP whose models answer as a test says, and what an evaluation is given."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from martlet_core.recipe import RecipeResult
from martlet_evaluator.evaluate import run

#: From a request's body to the answer's text, or to (status, headers, body) of a refusal.
Model = Callable[[Mapping[str, Any]], Any]


class ScriptedServer:
    """Serves the inference routes in a thread of its own.

    Attributes:
        models: how each model answers.
        requests: bodies that came, in order, with the headers under ``headers``.
    """

    def __init__(self) -> None:
        self.models: dict[str, Model] = {}
        self.requests: list[dict[str, Any]] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.url = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)

    async def _start(self) -> str:
        app = web.Application()
        for route in ("chat/completions", "completions", "embeddings", "classify", "rerank"):
            app.router.add_post(f"/v1/{route}", self._answer)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.requests.append({**body, "headers": dict(request.headers), "path": request.path})
        said = await asyncio.to_thread(self.models[body["model"]], body)
        if isinstance(said, tuple):
            status, headers, text = said
            return web.json_response({"error": {"message": text}}, status=status, headers=headers)
        if isinstance(said, dict):
            return web.json_response(said)
        if body.get("stream"):
            return await _stream(request, said)
        usage = {"prompt_tokens": 5, "completion_tokens": len(said.split())}
        part = {"message": {"role": "assistant", "content": said}} if "messages" in body else {"text": said}
        return web.json_response({"choices": [{"index": 0, **part, "finish_reason": "stop"}], "usage": usage})


async def _stream(request: web.Request, text: str) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    for word in text.split():
        event = {"choices": [{"index": 0, "delta": {"content": word + " "}, "finish_reason": None}]}
        await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")
    end = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": len(text.split())}}
    await response.write(b"data: " + json.dumps(end).encode() + b"\n\ndata: [DONE]\n\n")
    return response


@dataclass
class Recorder:
    """Keeps what an evaluation reports."""

    phases: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    steps: list[tuple[int, int]] = field(default_factory=list)
    checkpoints: list[tuple[Path, int]] = field(default_factory=list)

    def phase(self, name: str) -> None:
        self.phases.append(name)

    def log(self, message: str, level: str = "info") -> None:
        self.lines.append(message)

    def metrics(
        self, step: int, total_steps: int, values: Mapping[str, float], eta_seconds: float | None = None
    ) -> None:
        self.steps.append((step, total_steps))

    def checkpoint(self, path: Path, step: int, metrics: Mapping[str, float], is_best: bool = False) -> None:
        self.checkpoints.append((path, step))

    def partial_result(self, values: Mapping[str, Any]) -> None:
        pass


@dataclass
class Evaluated:
    """What an evaluation left."""

    result: RecipeResult
    workdir: Path
    report: Recorder

    @property
    def metrics(self) -> dict[str, dict[str, dict[str, float]]]:
        """Metrics by target."""
        return {target["name"]: target["metrics"] for target in self.result.values["targets"]}

    @property
    def records(self) -> list[dict[str, Any]]:
        """The records, as they lie in the artifact."""
        text = (self.workdir / "output/records/records.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.split("\n") if line]

    @property
    def html(self) -> str:
        """The page."""
        return (self.workdir / "output/report/report.html").read_text(encoding="utf-8")

    @property
    def json(self) -> dict[str, Any]:
        """The report's numbers."""
        return json.loads((self.workdir / "output/report/report.json").read_text(encoding="utf-8"))


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    """A server of this test alone: a request that an ended evaluation left behind can't reach the next test's."""
    started = ScriptedServer()
    yield started
    started.stop()


@pytest.fixture
def evaluate(server: ScriptedServer, tmp_path: Path) -> Callable[..., Evaluated]:
    """Runs an evaluation: ``evaluate(rows, suites=[…], targets=["a", "b"], **spec)``."""

    def start(
        rows: Sequence[Any] | None,
        suites: Sequence[Any],
        targets: Sequence[Any] = ("model",),
        *,
        name: str = "job",
        should_stop: Callable[[], bool] = lambda: False,
        config: Mapping[str, Any] | None = None,
        report: Recorder | None = None,
        **spec: Any,
    ) -> Evaluated:
        workdir = tmp_path / name
        if rows is not None:
            write_rows(workdir / "inputs/dataset/rows.jsonl", rows)
            spec["dataset"] = "artifacts/a"
        values = {
            "targets": [{"model": t, "name": t} if isinstance(t, str) else t for t in targets],
            "suites": [{"suite": s} if isinstance(s, str) else s for s in suites],
            **spec,
        }
        gateway = {"base_url": server.url, "api_key": "secret"}
        report = report or Recorder()
        result = run({"spec": values, "gateway": gateway, **(config or {})}, workdir, report, should_stop)
        return Evaluated(result, workdir, report)

    return start


def write_rows(path: Path, rows: Sequence[Any]) -> None:
    """Rows as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="session")
def sums() -> list[dict[str, Any]]:
    """Forty sums with their answers and a category."""
    return [
        {
            "messages": [
                {"role": "user", "content": f"{i} + {i // 3}"},
                {"role": "assistant", "content": "even" if (i + i // 3) % 2 == 0 else "odd"},
            ],
            "size": "small" if i < 20 else "large",
        }
        for i in range(40)
    ]
