"""Between the contract's messages and what the data plane works with. Pure functions; nothing here waits."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

from martlet.gateway.v1 import replica_pb2
from martlet.inference.v1 import inference_pb2 as pb
from martlet.inference.v1 import inference_service_pb2 as service_pb
from martlet_core.errors import FieldViolation, InvalidArgument, MartletError, NotFound, Unavailable
from martlet_core.model_tasks import ModelTask

from martlet_inference.dataplane import DataPlane, Load
from martlet_inference.engines.base import EngineCall, EngineState, Route
from martlet_inference.held import Held
from martlet_inference.models import ModelPool

MAX_BODY_BYTES = 16 * 2**20
MAX_STOP_TEXTS = 4
DEFAULT_NEW_TOKENS = 256
#: Texts of one request for embeddings, scores or classes, as in OpenAI's interface.
MAX_INPUTS = 2048
ENCODINGS = ("float", "base64")
_BATCHES = ("input", "documents", "queries", "items", "text_1", "text_2", "data_1", "data_2")
DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1000

ROUTES = {
    pb.OPEN_AI_ROUTE_CHAT_COMPLETIONS: Route.CHAT_COMPLETIONS,
    pb.OPEN_AI_ROUTE_COMPLETIONS: Route.COMPLETIONS,
    pb.OPEN_AI_ROUTE_EMBEDDINGS: Route.EMBEDDINGS,
    pb.OPEN_AI_ROUTE_CLASSIFY: Route.CLASSIFY,
    pb.OPEN_AI_ROUTE_POOLING: Route.POOLING,
    pb.OPEN_AI_ROUTE_SCORE: Route.SCORE,
    pb.OPEN_AI_ROUTE_RERANK: Route.RERANK,
}
_TASKS = {
    ModelTask.CAUSAL_LM: pb.MODEL_TASK_CAUSAL_LM,
    ModelTask.SEQUENCE_CLASSIFICATION: pb.MODEL_TASK_SEQUENCE_CLASSIFICATION,
    ModelTask.TOKEN_CLASSIFICATION: pb.MODEL_TASK_TOKEN_CLASSIFICATION,
    ModelTask.EMBEDDING: pb.MODEL_TASK_EMBEDDING,
    ModelTask.RERANKER: pb.MODEL_TASK_RERANKER,
    ModelTask.REWARD: pb.MODEL_TASK_REWARD,
}
_STATES = {
    EngineState.STOPPED: pb.MODEL_STATE_LOADING,
    EngineState.STARTING: pb.MODEL_STATE_LOADING,
    EngineState.READY: pb.MODEL_STATE_READY,
    EngineState.UNHEALTHY: pb.MODEL_STATE_UNHEALTHY,
}
_FINISH_REASONS = {
    "stop": pb.FINISH_REASON_STOP,
    "tool_calls": pb.FINISH_REASON_STOP,
    "length": pb.FINISH_REASON_LENGTH,
    "abort": pb.FINISH_REASON_ABORT,
}
_ROLES = ("system", "user", "assistant", "tool")


def openai_call(request: pb.CallOpenAIRequest, request_id: str) -> EngineCall:
    """The engine call of an OpenAI-shaped request.

    The body goes to the engine as it came, so its ``model`` must be the one that was named, and allowed, beside it.

    Raises:
        InvalidArgument: the route is not set, the body is too large or not a JSON object, or the fields beside it
            disagree with it.
    """
    route = ROUTES.get(request.route)
    if route is None:
        raise InvalidArgument.field("route", f"must be set to one of {', '.join(r.name for r in Route)}")
    if len(request.body) > MAX_BODY_BYTES:
        raise InvalidArgument.field("body", f"has {len(request.body)} bytes; at most {MAX_BODY_BYTES} are taken")
    try:
        fields = json.loads(request.body)
    except ValueError as exc:
        raise InvalidArgument.field("body", f"is not JSON: {exc}") from exc
    if not isinstance(fields, dict):
        raise InvalidArgument.field("body", "must be a JSON object")
    if not request.model:
        raise InvalidArgument.field("model", "must name a model")
    if fields.get("model") != request.model:
        raise InvalidArgument.field("body.model", f"must be {request.model!r}, as in the request's `model`")
    if bool(fields.get("stream")) != request.stream:
        raise InvalidArgument.field(
            "body.stream", f"must be {str(request.stream).lower()}, as in the request's `stream`"
        )
    if not route.generates:
        _check_pooling(fields)
    return EngineCall(route, request.body, request.stream, request_id)


def _check_pooling(fields: Mapping[str, Any]) -> None:
    """Refuse what would break the contract: an answer that is a stream, or no JSON, or far too large."""
    if fields.get("stream"):
        raise InvalidArgument.field("body.stream", "must be false: only chat completions and completions are streamed")
    encoding = fields.get("encoding_format")
    if encoding not in (None, *ENCODINGS):
        raise InvalidArgument.field("body.encoding_format", f"is {encoding!r}; must be {' or '.join(ENCODINGS)}")
    for name in _BATCHES:
        batch = fields.get(name)
        if isinstance(batch, list) and len(batch) > MAX_INPUTS and not isinstance(batch[0], int):
            raise InvalidArgument.field(f"body.{name}", f"has {len(batch)} items; at most {MAX_INPUTS} are taken")


def generate_call(request: pb.GenerateRequest, request_id: str) -> EngineCall:
    """The engine call of a typed request: a streamed chat or text completion.

    Raises:
        InvalidArgument: with every field that is wrong.
    """
    violations = _generate_violations(request)
    if violations:
        raise InvalidArgument("; ".join(f"{v.field}: {v.description}" for v in violations), violations=violations)
    sampling = request.sampling
    body: dict[str, Any] = {"model": request.model, "stream": True, "stream_options": {"include_usage": True}}
    body["max_tokens"] = sampling.max_new_tokens if sampling.HasField("max_new_tokens") else DEFAULT_NEW_TOKENS
    body["temperature"] = sampling.temperature if sampling.HasField("temperature") else 1.0
    body["top_p"] = sampling.top_p if sampling.HasField("top_p") else 1.0
    if sampling.HasField("seed"):
        body["seed"] = sampling.seed
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if request.WhichOneof("input") == "prompt":
        route = Route.COMPLETIONS
        body["prompt"] = request.prompt
    else:
        route = Route.CHAT_COMPLETIONS
        body["messages"] = [{"role": m.role, "content": m.content} for m in request.conversation.messages]
    return EngineCall(route, json.dumps(body).encode(), True, request_id)


def _generate_violations(request: pb.GenerateRequest) -> list[FieldViolation]:
    found = []
    if not request.model:
        found.append(FieldViolation("model", "must name a model"))
    which = request.WhichOneof("input")
    if which is None:
        found.append(FieldViolation("input", "set `prompt` or `conversation`"))
    elif which == "conversation":
        if not request.conversation.messages:
            found.append(FieldViolation("conversation.messages", "must hold at least one message"))
        for index, message in enumerate(request.conversation.messages):
            if message.role not in _ROLES:
                description = f"is {message.role!r}; must be one of {', '.join(_ROLES)}"
                found.append(FieldViolation(f"conversation.messages[{index}].role", description))
    sampling = request.sampling
    if sampling.HasField("max_new_tokens") and sampling.max_new_tokens < 1:
        found.append(FieldViolation("sampling.max_new_tokens", f"is {sampling.max_new_tokens}; must be at least 1"))
    if sampling.HasField("temperature") and not 0 <= sampling.temperature <= 2:
        found.append(FieldViolation("sampling.temperature", f"is {sampling.temperature}; must be from 0 to 2"))
    if sampling.HasField("top_p") and not 0 < sampling.top_p <= 1:
        found.append(FieldViolation("sampling.top_p", f"is {sampling.top_p}; must be above 0 and at most 1"))
    if len(sampling.stop) > MAX_STOP_TEXTS:
        found.append(
            FieldViolation("sampling.stop", f"has {len(sampling.stop)} texts; at most {MAX_STOP_TEXTS} are taken")
        )
    return found


class GenerateResponses:
    """Turns the events of a streamed completion into typed parts; ``last()`` closes with reason and counts."""

    def __init__(self) -> None:
        self._finish_reason = pb.FINISH_REASON_UNSPECIFIED
        self._usage = pb.TokenUsage()

    def part(self, event: bytes) -> pb.GenerateResponse | None:
        """The new text of an event; None if it has none.

        Raises:
            MartletError: the event is an error that the engine met on the way.
        """
        fields = json.loads(event)
        if "error" in fields:
            raise engine_error(500, event)
        usage = fields.get("usage")
        if usage:
            self._usage = pb.TokenUsage(
                prompt_tokens=usage.get("prompt_tokens") or 0, completion_tokens=usage.get("completion_tokens") or 0
            )
        text = ""
        for choice in fields.get("choices") or ():
            text += (choice["delta"].get("content") if "delta" in choice else choice.get("text")) or ""
            reason = choice.get("finish_reason")
            if reason:
                self._finish_reason = _FINISH_REASONS.get(reason, pb.FINISH_REASON_STOP)
        return pb.GenerateResponse(text=text) if text else None

    def last(self) -> pb.GenerateResponse:
        """The closing part."""
        return pb.GenerateResponse(finish_reason=self._finish_reason or pb.FINISH_REASON_ABORT, usage=self._usage)


def engine_error(http_status: int, body: bytes) -> MartletError:
    """The error behind an OpenAI error envelope, for callers that don't speak OpenAI's shape."""
    try:
        fields = json.loads(body)
        error = fields.get("error") or fields
        message = str(error.get("message") or body.decode(errors="replace"))
        param = error.get("param")
    except (ValueError, AttributeError):
        message, param = body.decode(errors="replace"), None
    if http_status == 404:
        return NotFound(message, reason="MODEL_NOT_FOUND")
    if http_status >= 500:
        return Unavailable(message, reason="ENGINE_FAILED", retry_after_seconds=1)
    violations = [FieldViolation(str(param), message)] if param else []
    return InvalidArgument(message, reason="REFUSED_BY_ENGINE", violations=violations)


def served_model(held: Held, pool: ModelPool, context_length: int) -> pb.ServedModel:
    """The message about a model on this replica."""
    return pb.ServedModel(
        name=held.model.name,
        kind=pb.MODEL_KIND_ADAPTER if held.adapter else pb.MODEL_KIND_WHOLE,
        state=_STATES[pool.state(held)],
        base_model=held.model.base_model if held.adapter else "",
        pinned=held.pinned,
        active_requests=held.active,
        context_length=context_length,
        state_reason=pool.whole.waits_for,
        task=_TASKS[pool.whole.use.task] if pool.whole.use else pb.MODEL_TASK_UNSPECIFIED,
    )


def replica_load(load: Load) -> pb.ReplicaLoad:
    """The message about how busy a replica is."""
    return pb.ReplicaLoad(
        active_requests=load.active_requests,
        waiting_requests=load.waiting_requests,
        kv_cache_usage=load.kv_cache_usage,
        max_requests=load.max_requests,
    )


async def replica(
    plane: DataPlane, *, name: str, address: str, accepts_placement: bool, home_models: Sequence[str]
) -> replica_pb2.Replica:
    """The message that registers a replica."""
    engine, pool = plane.engine, plane.pool
    return replica_pb2.Replica(
        name=name,
        address=address,
        engine=engine.name,
        models=[served_model(held, pool, engine.context_length) for held in pool.held()],
        load=replica_load(await plane.load()),
        draining=plane.draining,
        ready=plane.ready,
        max_lora_rank=engine.max_lora_rank,
        accepts_placement=accepts_placement,
        home_models=home_models,
    )


def page(
    models: Sequence[pb.ServedModel], request: service_pb.ListServedModelsRequest
) -> service_pb.ListServedModelsResponse:
    """One page of models in their order; the token is the place it goes on from.

    Raises:
        InvalidArgument: the page size is out of range, or the token is not one of ours.
    """
    size = request.page_size or DEFAULT_PAGE_SIZE
    if not 1 <= size <= MAX_PAGE_SIZE:
        raise InvalidArgument.field("page_size", f"is {size}; must be from 1 to {MAX_PAGE_SIZE}")
    start = _position(request.page_token) if request.page_token else 0
    more = start + size < len(models)
    token = base64.urlsafe_b64encode(str(start + size).encode()).decode() if more else ""
    return service_pb.ListServedModelsResponse(models=models[start : start + size], next_page_token=token)


def _position(page_token: str) -> int:
    try:
        position = int(base64.urlsafe_b64decode(page_token))
    except ValueError:
        position = -1
    if position < 0:
        raise InvalidArgument.field("page_token", "is not a token of an earlier answer")
    return position
