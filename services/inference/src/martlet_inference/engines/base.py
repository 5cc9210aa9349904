"""What an engine is: something that answers OpenAI-shaped requests for one whole model and adapters on top of it.

A whole model that doesn't generate (embeddings, rerankers, classifiers, reward models) is answered for in the shapes of vLLM's
pooling routes."""

from __future__ import annotations

import enum
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from martlet_inference.model_use import CAUSAL_LM, ModelUse


class Route(enum.Enum):
    """Routes of inference; the value is the path an HTTP engine serves it under, which is vLLM's."""

    CHAT_COMPLETIONS = "/v1/chat/completions"
    COMPLETIONS = "/v1/completions"
    EMBEDDINGS = "/v1/embeddings"
    CLASSIFY = "/classify"
    POOLING = "/pooling"
    SCORE = "/score"
    RERANK = "/rerank"

    @property
    def public(self) -> str:
        """Its path at the gateway, as ``martlet_core.model_tasks`` has it."""
        return "/v1" + self.value.removeprefix("/v1")

    @property
    def generates(self) -> bool:
        """Whether text is generated, which can be streamed."""
        return self in (Route.CHAT_COMPLETIONS, Route.COMPLETIONS)


class EngineState(enum.Enum):
    """What an engine is doing."""

    STOPPED = "stopped"  # holds no model
    STARTING = "starting"  # getting a model ready for the first time
    READY = "ready"  # proved that it can answer
    UNHEALTHY = "unhealthy"  # died or hangs; being started again


@dataclass(frozen=True)
class WholeModel:
    """A whole model that an engine can be started with.

    Attributes:
        name: name it answers to.
        directory: an ordinary Hugging Face model; None for engines that need no files.
        use: what it is for and the routes that it answers on.
    """

    name: str
    directory: Path | None = None
    use: ModelUse = CAUSAL_LM


@dataclass(frozen=True)
class EngineCall:
    """An OpenAI-shaped request on its way into an engine.

    Attributes:
        route: route it is for.
        body: the JSON body as the client sent it.
        stream: whether the answer is a stream of server-sent events.
        request_id: id to find the request by in the engine's log; may be empty.
    """

    route: Route
    body: bytes
    stream: bool
    request_id: str = ""


@dataclass(frozen=True)
class EngineReply:
    """An engine's answer.

    Attributes:
        http_status: 200, or the 4xx of a request that the client can mend.
        chunks: the whole JSON body as one item, or with streaming the JSON of one server-sent event per item.
    """

    http_status: int
    chunks: AsyncIterator[bytes]


@dataclass(frozen=True)
class EngineLoad:
    """How busy the engine itself is: requests waiting in it, share of the KV cache in use (0.0 to 1.0)."""

    waiting_requests: int = 0
    kv_cache_usage: float = 0.0


class Engine(Protocol):
    """An engine. All methods belong to one event loop. Raises Unavailable while it can't answer."""

    #: Name of the engine (``vllm``, ``echo``).
    name: str
    #: Version of the software.
    version: str
    #: ``cpu`` or ``cuda``.
    device: str
    #: Whether models and adapters must lie in a directory before ``start`` and ``load_adapter``.
    needs_files: bool
    #: Largest LoRA rank it takes; 0 when it takes no adapters.
    max_lora_rank: int
    #: Adapters it holds at a time.
    max_adapters: int

    @property
    def state(self) -> EngineState:
        """What it is doing."""
        ...

    @property
    def incarnation(self) -> int:
        """Counts its starts: adapters loaded into an earlier incarnation are gone."""
        ...

    @property
    def context_length(self) -> int:
        """Longest context of the model in tokens; 0 when unknown."""
        ...

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` whenever ``state`` changes."""
        ...

    async def start(self, model: WholeModel) -> None:
        """Get a model ready; returns once it gave an answer. FailedPrecondition when the engine refuses it."""
        ...

    async def stop(self) -> None:
        """Let go of the model; running calls end with Unavailable."""
        ...

    def call(self, call: EngineCall) -> AbstractAsyncContextManager[EngineReply]:
        """Answer a request; leaving the context early aborts the generation."""
        ...

    async def load_adapter(self, name: str, directory: Path) -> None:
        """Load a peft directory under ``name``. FailedPrecondition when the engine refuses it."""
        ...

    async def unload_adapter(self, name: str) -> None:
        """Forget an adapter; no error if it isn't there."""
        ...

    async def load(self) -> EngineLoad:
        """How busy the engine is."""
        ...


def openai_error(message: str, *, param: str | None = None, code: str | None = None, status: int = 400) -> bytes:
    """OpenAI's error envelope as JSON bytes."""
    error: dict[str, Any] = {
        "message": message,
        "type": "invalid_request_error",
        "param": param,
        "code": code or status,
    }
    return json.dumps({"error": error}).encode()
