"""An inference service that has nothing of ours but the contract: it shows that the contract can be kept by others.

It was written from the protos alone. Where our service is asynchronous, layered and supervises an engine, this one is a
threaded server, one class, and a parrot for a model, which repeats words of the prompt by a rule of its own.

    python tests/contract/foreign_inference.py --port 0      prints the port it listens on
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf import empty_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from martlet.inference.v1 import inference_pb2 as pb
from martlet.inference.v1 import inference_service_pb2 as api
from martlet.inference.v1 import inference_service_pb2_grpc as api_grpc

SERVICE = "martlet.inference.v1.InferenceService"
WORDS = ["swift", "martin", "swallow", "falcon", "kestrel", "heron", "wren", "robin", "finch", "lark"]
SIXTEEN_MIB = 16 * 2**20


@dataclass
class Parrot:
    """A model; ``present`` when it is loaded, with a ``base`` when it is an adapter."""

    name: str
    present: bool = False
    base: str = ""
    pinned: bool = False
    busy: int = 0


class ForeignInference(api_grpc.InferenceServiceServicer):
    """The whole service."""

    def __init__(self, tokens_per_second: float) -> None:
        self.pause = 1.0 / tokens_per_second
        known = (Parrot("parrot-large", True), Parrot("parrot-small"), Parrot("parrot-rude", base="parrot-large"))
        self.parrots = {parrot.name: parrot for parrot in known}
        self.lock = threading.Lock()

    # Answering

    def CallOpenAI(self, request: pb.CallOpenAIRequest, context: grpc.ServicerContext) -> Iterator[Any]:
        if request.route == pb.OPEN_AI_ROUTE_UNSPECIFIED:
            refuse(context, "route", "choose a route")
        if len(request.body) > SIXTEEN_MIB:
            refuse(context, "body", "is larger than 16 MiB")
        try:
            body = json.loads(request.body)
        except ValueError as problem:
            refuse(context, "body", f"is not JSON ({problem})")
        if not isinstance(body, dict):
            refuse(context, "body", "is not an object")
        with self.in_use(request.model, context) as parrot:
            if request.route == pb.OPEN_AI_ROUTE_EMBEDDINGS:
                fail(context, code_pb2.NOT_FOUND, "PARROTS_DONT_EMBED", "A parrot makes no embeddings.")
            chat = request.route == pb.OPEN_AI_ROUTE_CHAT_COMPLETIONS
            prompt = body.get("messages") if chat else body.get("prompt")
            if not (isinstance(prompt, list) and prompt if chat else isinstance(prompt, str)):
                field = "messages" if chat else "prompt"
                error = {
                    "message": f"`{field}` is missing or malformed",
                    "type": "bad_parrot",
                    "param": field,
                    "code": 422,
                }
                yield pb.CallOpenAIResponse(http_status=422, data=json.dumps({"error": error}).encode())
                return
            speech = Speech(parrot.name, json.dumps(prompt), int(body.get("max_tokens") or 16), chat)
            if request.stream:
                usage_wanted = bool((body.get("stream_options") or {}).get("include_usage"))
                yield from self.stream(speech, context, usage_wanted)
            else:
                text = "".join(self.spoken(speech, context))
                yield pb.CallOpenAIResponse(http_status=200, data=speech.whole(text))

    def stream(self, speech: Speech, context: grpc.ServicerContext, usage_wanted: bool) -> Iterator[Any]:
        """Chunks of an OpenAI stream."""
        status = 200
        if speech.chat:
            yield pb.CallOpenAIResponse(http_status=status, data=speech.chunk("", role="assistant"))
            status = 0
        for word in self.spoken(speech, context):
            yield pb.CallOpenAIResponse(http_status=status, data=speech.chunk(word))
            status = 0
        yield pb.CallOpenAIResponse(data=speech.chunk("", reason="length"))
        if usage_wanted:
            yield pb.CallOpenAIResponse(data=speech.closing_usage())

    def Generate(self, request: pb.GenerateRequest, context: grpc.ServicerContext) -> Iterator[Any]:
        sampling = request.sampling
        if not request.WhichOneof("input"):
            refuse(context, "input", "give a prompt or a conversation")
        if request.HasField("conversation"):
            if not request.conversation.messages:
                refuse(context, "conversation.messages", "is empty")
            for place, message in enumerate(request.conversation.messages):
                if message.role not in ("system", "user", "assistant", "tool"):
                    refuse(context, f"conversation.messages[{place}].role", "is no role")
        if sampling.HasField("max_new_tokens") and sampling.max_new_tokens < 1:
            refuse(context, "sampling.max_new_tokens", "is less than 1")
        if sampling.HasField("temperature") and sampling.temperature < 0:
            refuse(context, "sampling.temperature", "is negative")
        if sampling.HasField("top_p") and not 0 < sampling.top_p <= 1:
            refuse(context, "sampling.top_p", "is not in (0, 1]")
        if len(sampling.stop) > 4:
            refuse(context, "sampling.stop", "has more than 4 texts")
        with self.in_use(request.model, context) as parrot:
            prompt = request.prompt or "\n".join(m.content for m in request.conversation.messages)
            count = sampling.max_new_tokens if sampling.HasField("max_new_tokens") else 256
            speech = Speech(parrot.name, prompt, count, chat=False)
            for word in self.spoken(speech, context):
                yield pb.GenerateResponse(text=word)
            usage = pb.TokenUsage(prompt_tokens=speech.prompt_tokens, completion_tokens=count)
            yield pb.GenerateResponse(finish_reason=pb.FINISH_REASON_LENGTH, usage=usage)

    def spoken(self, speech: Speech, context: grpc.ServicerContext) -> Iterator[str]:
        """The words at the parrot's pace, as long as someone listens."""
        for word in speech.words():
            if not context.is_active():
                return
            time.sleep(self.pause)
            yield word

    @contextmanager
    def in_use(self, name: str, context: grpc.ServicerContext) -> Iterator[Parrot]:
        """The named parrot, counted as busy until the call is over, however it ends."""
        if not name:
            refuse(context, "model", "is empty")
        parrot = self.find(name, context)
        if parrot.base:
            parrot.present = True
        if not parrot.present:
            fail(context, code_pb2.NOT_FOUND, "PARROT_AWAY", f"{name} is not loaded.")
        released = threading.Event()

        def release() -> None:
            with self.lock:
                if not released.is_set():
                    released.set()
                    parrot.busy -= 1

        with self.lock:
            parrot.busy += 1
        if not context.add_callback(release):
            release()
        try:
            yield parrot
        finally:
            release()

    # Models

    def ListServedModels(self, request: api.ListServedModelsRequest, context: grpc.ServicerContext) -> Any:
        size = request.page_size or 100
        if not 1 <= size <= 1000:
            refuse(context, "page_size", "is not in 1 to 1000")
        names = sorted(name for name, parrot in self.parrots.items() if parrot.present)
        if request.page_token and request.page_token not in self.parrots:
            refuse(context, "page_token", "is not mine")
        left = [name for name in names if name > request.page_token]
        token = left[size - 1] if len(left) > size else ""
        return api.ListServedModelsResponse(models=[self.described(n) for n in left[:size]], next_page_token=token)

    def LoadModel(self, request: api.LoadModelRequest, context: grpc.ServicerContext) -> pb.ServedModel:
        parrot = self.find(request.model, context)
        parrot.present = True
        parrot.pinned = parrot.pinned or request.pin
        return self.described(parrot.name)

    def UnloadModel(self, request: api.UnloadModelRequest, context: grpc.ServicerContext) -> empty_pb2.Empty:
        parrot = self.find(request.model, context, must_be_present=True)
        if parrot.pinned:
            fail(context, code_pb2.FAILED_PRECONDITION, "PARROT_PINNED", f"{parrot.name} is pinned.")
        parrot.present = False
        return empty_pb2.Empty()

    def PinModel(self, request: api.PinModelRequest, context: grpc.ServicerContext) -> pb.ServedModel:
        parrot = self.find(request.model, context, must_be_present=True)
        parrot.pinned = request.pinned
        return self.described(parrot.name)

    def GetReplicaInfo(self, request: api.GetReplicaInfoRequest, context: grpc.ServicerContext) -> api.ReplicaInfo:
        load = pb.ReplicaLoad(active_requests=sum(p.busy for p in self.parrots.values()), max_requests=24)
        return api.ReplicaInfo(
            engine="parrot", engine_version="0.1", ready=True, load=load, max_lora_rank=1, max_adapters=1, device="cpu"
        )

    def find(self, name: str, context: grpc.ServicerContext, *, must_be_present: bool = False) -> Parrot:
        """The parrot of that name; NOT_FOUND with those whose names are close."""
        if not name:
            refuse(context, "model", "is empty")
        parrot = self.parrots.get(name)
        if parrot is None or (must_be_present and not parrot.present):
            close = difflib.get_close_matches(name, self.parrots)
            fail(
                context,
                code_pb2.NOT_FOUND,
                "NO_SUCH_PARROT",
                f"No parrot is called {name}.",
                close_matches=",".join(close),
            )
        return parrot

    def described(self, name: str) -> pb.ServedModel:
        """What the contract says about a model."""
        parrot = self.parrots[name]
        return pb.ServedModel(
            name=name,
            kind=pb.MODEL_KIND_ADAPTER if parrot.base else pb.MODEL_KIND_WHOLE,
            base_model=parrot.base,
            state=pb.MODEL_STATE_READY,
            pinned=parrot.pinned,
            active_requests=parrot.busy,
        )


class Speech:
    """What a parrot says to a prompt: ``count`` words, the same ones each time."""

    def __init__(self, model: str, prompt: str, count: int, chat: bool) -> None:
        self.model, self.count, self.chat = model, count, chat
        self.prompt_tokens = len(prompt.split()) or 1
        self.seed = hashlib.sha256(prompt.encode()).digest()
        self.base = {"id": "parrot-" + self.seed.hex()[:12], "created": int(time.time()), "model": model}

    def words(self) -> Iterator[str]:
        """The words."""
        for place in range(self.count):
            yield WORDS[(self.seed[place % 32] + place) % len(WORDS)] + " "

    def usage(self) -> dict[str, int]:
        """Words count as tokens."""
        total = self.prompt_tokens + self.count
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.count, "total_tokens": total}

    def whole(self, text: str) -> bytes:
        """An answer in one piece."""
        said = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        kind = "chat.completion" if self.chat else "text_completion"
        choices = [{"index": 0, "finish_reason": "length", **said}]
        return json.dumps({**self.base, "object": kind, "choices": choices, "usage": self.usage()}).encode()

    def chunk(self, text: str, *, role: str | None = None, reason: str | None = None) -> bytes:
        """A part of a streamed answer."""
        said: dict[str, Any] = {"text": text}
        if self.chat:
            said = {"delta": {"role": role, "content": text} if role else {"content": text}}
        choices = [{"index": 0, "finish_reason": reason, **said}]
        return json.dumps({**self.base, "object": self.chunk_kind, "choices": choices}).encode()

    def closing_usage(self) -> bytes:
        """The part that carries the counts."""
        return json.dumps({**self.base, "object": self.chunk_kind, "choices": [], "usage": self.usage()}).encode()

    @property
    def chunk_kind(self) -> str:
        """OpenAI's name for a part."""
        return "chat.completion.chunk" if self.chat else "text_completion"


def refuse(context: grpc.ServicerContext, field: str, problem: str) -> Any:
    """End the call with INVALID_ARGUMENT about a field."""
    violation = error_details_pb2.BadRequest.FieldViolation(field=field, description=problem)
    fail(context, code_pb2.INVALID_ARGUMENT, "BAD_FIELD", f"{field} {problem}", violation)


def fail(context: grpc.ServicerContext, code: int, reason: str, text: str, *violations: Any, **metadata: str) -> Any:
    """End the call with a status and its details."""
    status = status_pb2.Status(code=code, message=text)
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=reason, domain="parrots.example", metadata=metadata))
    if violations:
        status.details.add().Pack(error_details_pb2.BadRequest(field_violations=violations))
    context.abort_with_status(rpc_status.to_status(status))


def main() -> None:
    """Serve on loopback until the process is ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--tokens-per-second", type=float, default=200.0)
    arguments = parser.parse_args()
    options = [("grpc.max_receive_message_length", SIXTEEN_MIB + 2**16)]
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=32), options=options)
    api_grpc.add_InferenceServiceServicer_to_server(ForeignInference(arguments.tokens_per_second), server)
    health_servicer = health.HealthServicer()
    health_servicer.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    port = server.add_insecure_port(f"127.0.0.1:{arguments.port}")
    server.start()
    print(port, flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main()
