"""The kit notices what it is there to notice: a proxy in front of our services breaks one rule at a time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from martlet.common.v1 import job_pb2
from martlet.inference.v1 import inference_pb2, inference_service_pb2
from martlet.trainer.v1 import merge_job_pb2, merge_service_pb2, training_service_pb2
from martlet_core.testing.conformance import CONTRACTS, Outcome, check_name, run_conformance_async
from martlet_core.testing.conformance.checks import run_check

_METHODS = {
    f"/{service.full_name}/{method.name}": method
    for service in (
        inference_service_pb2.DESCRIPTOR.services_by_name["InferenceService"],
        training_service_pb2.DESCRIPTOR.services_by_name["TrainingService"],
        merge_service_pb2.DESCRIPTOR.services_by_name["MergeService"],
    )
    for method in service.methods
}
_DETAILS = "grpc-status-details-bin"


@dataclass
class Fault:
    """What a proxy does wrong, in the methods whose names end with ``method``.

    Attributes:
        request: changes the request on its way in.
        response: changes each message on its way out; None drops it.
        error: makes of a failed call what is answered instead: a status code without details, or a message.
        deaf: doesn't pass the end of the caller's interest on.
    """

    method: str
    request: Callable[[Any], None] | None = None
    response: Callable[[Any], Any] | None = None
    error: grpc.StatusCode | Message | None = None
    deaf: bool = False


class _FaultyProxy(grpc.GenericRpcHandler):
    def __init__(self, upstream: grpc.aio.Channel, fault: Fault) -> None:
        self._upstream, self._fault = upstream, fault
        self._readers: list[asyncio.Task[None]] = []

    def service(self, handler_call_details: Any) -> grpc.RpcMethodHandler:
        path = handler_call_details.method
        method = _METHODS[path]
        codec = {
            "request_deserializer": GetMessageClass(method.input_type).FromString,
            "response_serializer": GetMessageClass(method.output_type).SerializeToString,
        }
        fault = self._fault if path.endswith("/" + self._fault.method) else Fault("")
        if method.server_streaming:
            return grpc.unary_stream_rpc_method_handler(self._stream(path, method, fault), **codec)
        return grpc.unary_unary_rpc_method_handler(self._unary(path, method, fault), **codec)

    def _unary(self, path: str, method: Any, fault: Fault) -> Any:
        async def call(request: Any, context: Any) -> Any:
            invoke = self._upstream.unary_unary(path, *_codecs(method))
            try:
                answer = await invoke(_changed(request, fault), metadata=_metadata(context))
            except grpc.aio.AioRpcError as error:
                return await _fail(context, error, fault)
            return fault.response(answer) if fault.response else answer

        return call

    def _stream(self, path: str, method: Any, fault: Fault) -> Any:
        async def call(request: Any, context: Any) -> AsyncIterator[Any]:
            invoke = self._upstream.unary_stream(path, *_codecs(method))
            stream = invoke(_changed(request, fault), metadata=_metadata(context))
            try:
                async for message in self._unheeded(stream) if fault.deaf else stream:
                    answer = fault.response(message) if fault.response else message
                    if answer is not None:
                        yield answer
            except grpc.aio.AioRpcError as error:
                answer = await _fail(context, error, fault)
                if answer is not None:
                    yield answer
            finally:
                if not fault.deaf:
                    stream.cancel()

        return call

    async def close(self) -> None:
        """End what nobody listens to any more."""
        for reader in self._readers:
            reader.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)

    async def _unheeded(self, stream: Any) -> AsyncIterator[Any]:
        """The stream, read to its end by a task of its own, whether or not anyone still listens."""
        messages: asyncio.Queue[Any] = asyncio.Queue()

        async def read() -> None:
            async for message in stream:
                await messages.put(message)
            await messages.put(None)

        self._readers.append(asyncio.create_task(read()))
        while (message := await messages.get()) is not None:
            yield message


def _codecs(method: Any) -> tuple[Any, Any]:
    return GetMessageClass(method.input_type).SerializeToString, GetMessageClass(method.output_type).FromString


def _metadata(context: Any) -> tuple[tuple[str, str], ...]:
    return tuple((key, value) for key, value in context.invocation_metadata() if key.startswith("x-martlet-"))


def _changed(request: Any, fault: Fault) -> Any:
    if fault.request:
        fault.request(request)
    return request


async def _fail(context: Any, error: grpc.aio.AioRpcError, fault: Fault) -> Any:
    if isinstance(fault.error, Message):
        return fault.error
    if fault.error is not None:
        await context.abort(fault.error, error.details())
    details = tuple((key, value) for key, value in error.trailing_metadata() or () if key == _DETAILS)
    await context.abort(error.code(), error.details(), details)
    return None


@asynccontextmanager
async def _proxy(upstream: grpc.aio.Channel, fault: Fault) -> AsyncIterator[grpc.aio.Channel]:
    proxy = _FaultyProxy(upstream, fault)
    server = grpc.aio.server(handlers=(proxy,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield channel
    finally:
        await server.stop(0)
        await proxy.close()


def _edit_json(**changes: Any) -> Callable[[Any], Any]:
    def edit(message: Any) -> Any:
        body = json.loads(message.data)
        body.update(changes)
        message.data = json.dumps({name: value for name, value in body.items() if value is not None}).encode()
        return message

    return edit


def _set(**values: Any) -> Callable[[Any], Any]:
    def set_fields(message: Any) -> Any:
        for name, value in values.items():
            message.ClearField(name)
            if value is not None:
                setattr(message, name, value)
        return message

    return set_fields


def _prefix_data(message: Any) -> Any:
    message.data = b"data: " + message.data
    return message


def _drop_final(event: Any) -> Any:
    return None if event.state_change.to_state == job_pb2.JOB_STATE_CANCELLED else event


INFERENCE_FAULTS = {
    "chat_streams": Fault("CallOpenAI", response=_prefix_data),
    "chat_answers_whole": Fault("CallOpenAI", response=_edit_json(usage=None)),
    "completion_answers_whole": Fault("CallOpenAI", response=_edit_json(object="chat.completion")),
    "completion_streams": Fault("CallOpenAI", response=_edit_json(model="another")),
    "requests_that_make_no_sense_are_refused": Fault("CallOpenAI", error=grpc.StatusCode.INVALID_ARGUMENT),
    "refusals_of_the_engine_are_openais": Fault("CallOpenAI", response=_set(http_status=200)),
    "unknown_model_is_not_found": Fault("Generate", error=grpc.StatusCode.INTERNAL),
    "generate_streams_text": Fault("Generate", response=_set(finish_reason=inference_pb2.FINISH_REASON_STOP)),
    "generate_says_when_it_was_cut": Fault("Generate", request=lambda request: request.sampling.Clear()),
    "generate_refuses_bad_requests": Fault("Generate", error=inference_pb2.GenerateResponse(text="hi")),
    "cancelled_calls_free_their_requests": Fault("CallOpenAI", deaf=True),
    "replica_info_is_complete": Fault("GetReplicaInfo", response=_set(load=None)),
    "served_models_are_paged": Fault("ListServedModels", error=inference_service_pb2.ListServedModelsResponse()),
    "served_models_are_described": Fault("ListServedModels", response=_set(models=None)),
    "pinned_model_is_not_unloaded": Fault("PinModel", request=_set(pinned=False)),
    "models_are_named": Fault("LoadModel", error=grpc.StatusCode.NOT_FOUND),
}

TRAINER_FAULTS = {
    "created_job_is_complete": Fault("GetTrainingJob", response=_set(labels=None)),
    "request_id_makes_create_idempotent": Fault("CreateTrainingJob", request=_set(request_id="")),
    "validate_only_creates_nothing": Fault("CreateTrainingJob", request=_set(validate_only=False)),
    "wrong_fields_are_named": Fault("CreateTrainingJob", error=grpc.StatusCode.INVALID_ARGUMENT),
    "unknown_inputs_are_not_found": Fault("CreateTrainingJob", error=grpc.StatusCode.INTERNAL),
    "unknown_job_is_not_found": Fault("WatchTrainingJob", error=job_pb2.JobEvent()),
    "jobs_of_other_tenants_are_not_found": Fault(
        "ListTrainingCheckpoints", error=training_service_pb2.ListTrainingCheckpointsResponse()
    ),
    "jobs_are_listed_newest_first_in_pages": Fault("ListTrainingJobs", request=_set(page_token="")),
    "list_filters_by_state": Fault("ListTrainingJobs", request=_set(states=None)),
    "final_states_are_final": Fault("PauseTrainingJob", error=grpc.StatusCode.UNKNOWN),
    "cancelled_job_comes_to_rest": Fault("GetTrainingJob", response=_set(end_time=None)),
    "watch_tells_the_whole_life": Fault("WatchTrainingJob", response=_drop_final),
    "watch_goes_on_behind_a_cursor": Fault("WatchTrainingJob", request=_set(after_cursor="")),
    "past_events_are_listed": Fault("ListTrainingJobEvents", request=_set(page_size=1000)),
    "newest_events_are_listed_first_when_asked_for": Fault("ListTrainingJobEvents", request=_set(newest_first=False)),
    "made_up_cursors_are_refused": Fault("WatchTrainingJob", request=_set(after_cursor="")),
    "base_models_are_listed": Fault("ListBaseModels", response=_set(base_models=None)),
    "created_merge_is_complete": Fault("GetMergeJob", response=_set(labels=None)),
    "merge_request_id_makes_create_idempotent": Fault("CreateMergeJob", request=_set(request_id="")),
    "merge_validate_only_creates_nothing": Fault("CreateMergeJob", request=_set(validate_only=False)),
    "wrong_merge_fields_are_named": Fault("CreateMergeJob", error=grpc.StatusCode.INVALID_ARGUMENT),
    "unknown_adapter_is_not_found": Fault("CreateMergeJob", error=merge_job_pb2.MergeJob()),
    "unknown_merge_is_not_found": Fault("CancelMergeJob", error=merge_job_pb2.MergeJob()),
    "malformed_merge_names_are_refused": Fault("GetMergeJob", error=merge_job_pb2.MergeJob()),
    "merges_of_other_tenants_are_not_found": Fault("WatchMergeJob", error=job_pb2.JobEvent()),
    "merges_are_listed_newest_first_in_pages": Fault("ListMergeJobs", request=_set(labels=None)),
    "cancelled_merge_comes_to_rest": Fault("GetMergeJob", response=_set(end_time=None)),
    "watch_tells_the_whole_merge": Fault("WatchMergeJob", request=_set(after_cursor="")),
}


async def _outcome(contract: str, name: str, upstream: grpc.aio.Channel, fault: Fault, **target: Any) -> Outcome:
    chosen = CONTRACTS[contract]
    [check] = [check for check in chosen.checks if check_name(check) == name]
    async with _proxy(upstream, fault) as channel:
        return (await run_check(check, chosen.target_class(channel, **target))).outcome


@pytest.mark.parametrize("name", INFERENCE_FAULTS)
async def test_broken_inference_is_noticed(
    name: str, foreign_inference: str, open_channel: Callable[[str], grpc.aio.Channel]
) -> None:
    upstream = open_channel(foreign_inference)
    assert await _outcome("inference", name, upstream, Fault("")) is Outcome.PASSED
    assert await _outcome("inference", name, upstream, INFERENCE_FAULTS[name]) is Outcome.FAILED


@pytest.mark.parametrize("name", TRAINER_FAULTS)
async def test_broken_trainer_is_noticed(
    name: str, our_trainer: str, training_dataset: str, adapter: str, open_channel: Callable[[str], grpc.aio.Channel]
) -> None:
    upstream = open_channel(our_trainer)
    target = {
        "metadata": (("x-martlet-tenant", "acme"),),
        "training_dataset": training_dataset,
        "other_tenant": "umbrella",
        "adapter": adapter,
        "timeout_seconds": 5.0,
    }
    assert await _outcome("trainer", name, upstream, Fault(""), **target) is Outcome.PASSED
    assert await _outcome("trainer", name, upstream, TRAINER_FAULTS[name], **target) is Outcome.FAILED


async def test_report_shows_what_is_broken_and_nobody_conforms_who_does_not_answer(foreign_inference: str) -> None:
    good = await run_conformance_async("inference", foreign_inference)
    assert good.passed, good.table()
    assert "conforms" in good.table()
    silent = await run_conformance_async("inference", "127.0.0.1:1", timeout_seconds=1.0)
    assert not silent.passed
    assert silent.count(Outcome.PASSED) == 0
    assert "DOES NOT CONFORM" in silent.table()
    assert "rule:  The standard health service answers SERVING" in silent.table()
