"""The kit notices what it is there to notice: a proxy in front of our services breaks one rule at a time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from martlet.common.v1 import job_pb2
from martlet.evaluator.v1 import evaluation_service_pb2
from martlet.inference.v1 import inference_pb2, inference_service_pb2
from martlet.quantizer.v1 import quantization_service_pb2
from martlet.trainer.v1 import merge_service_pb2, training_service_pb2
from martlet_core.testing.conformance import CONTRACTS, Outcome, run_conformance_async, try_rule
from martlet_core.testing.conformance.evaluator import EVALUATING
from martlet_core.testing.conformance.jobs import JobKind
from martlet_core.testing.conformance.quantizer import QUANTIZING
from martlet_core.testing.conformance.trainer import MERGING, TRAINING

_METHODS = {
    f"/{service.full_name}/{method.name}": method
    for service in (
        inference_service_pb2.DESCRIPTOR.services_by_name["InferenceService"],
        training_service_pb2.DESCRIPTOR.services_by_name["TrainingService"],
        merge_service_pb2.DESCRIPTOR.services_by_name["MergeService"],
        quantization_service_pb2.DESCRIPTOR.services_by_name["QuantizationService"],
        evaluation_service_pb2.DESCRIPTOR.services_by_name["EvaluationService"],
    )
    for method in service.methods
}
_KINDS = {"trainer": (TRAINING, MERGING), "quantizer": (QUANTIZING,), "evaluator": (EVALUATING,)}
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


def _succeeded(job: Any) -> Any:
    job.state = job_pb2.JOB_STATE_SUCCEEDED
    return job


def _without_category(request: Any) -> None:
    request.evaluation_job.spec.category_field = ""


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

#: What breaks each rule of jobs, with the noun of a kind in the method's name.
JOB_FAULTS = {
    "created_job_is_complete": Fault("Get{noun}", response=_set(labels=None)),
    "output_only_fields_are_ignored": Fault("Create{noun}", response=_succeeded),
    "request_id_makes_create_idempotent": Fault("Create{noun}", request=_set(request_id="")),
    "validate_only_creates_nothing": Fault("Create{noun}", request=_set(validate_only=False)),
    "wrong_fields_are_named": Fault("Create{noun}", error=grpc.StatusCode.INVALID_ARGUMENT),
    "unknown_inputs_are_not_found": Fault("Create{noun}", error=grpc.StatusCode.INTERNAL),
    "unknown_job_is_not_found": Fault("Watch{noun}", error=job_pb2.JobEvent()),
    "malformed_names_are_refused": Fault("Get{noun}", error=grpc.StatusCode.INTERNAL),
    "jobs_of_other_tenants_are_not_found": Fault("Watch{noun}", error=job_pb2.JobEvent()),
    "inputs_of_other_tenants_are_not_found": Fault("Create{noun}", error=grpc.StatusCode.INVALID_ARGUMENT),
    "jobs_are_listed_newest_first_in_pages": Fault("List{noun}s", request=_set(page_token="")),
    "list_filters_by_state": Fault("List{noun}s", request=_set(states=None)),
    "cancelled_job_comes_to_rest": Fault("Get{noun}", response=_set(end_time=None)),
    "final_states_are_final": Fault("Cancel{noun}", error=grpc.StatusCode.UNKNOWN),
    "paused_job_waits_until_it_is_resumed": Fault("Resume{noun}", error=grpc.StatusCode.UNKNOWN),
    "watch_tells_the_whole_life": Fault("Watch{noun}", response=_drop_final),
    "watch_goes_on_behind_a_cursor": Fault("Watch{noun}", request=_set(after_cursor="")),
    "made_up_cursors_are_refused": Fault("Watch{noun}", request=_set(after_cursor="")),
    "past_events_are_listed": Fault("List{noun}Events", request=_set(page_size=1000)),
    "newest_events_are_listed_first_when_asked_for": Fault("List{noun}Events", request=_set(newest_first=False)),
    # Of one kind alone.
    "base_models_are_listed": Fault("ListBaseModels", response=_set(base_models=None)),
    "new_job_has_no_checkpoints": Fault("ListTrainingCheckpoints", response=_set(next_page_token="more")),
    "methods_are_listed": Fault("ListQuantizationMethods", response=_set(methods=None)),
    "adapters_are_refused": Fault("CreateQuantizationJob", error=grpc.StatusCode.INVALID_ARGUMENT),
    "evaluation_is_not_calibration": Fault("CreateQuantizationJob", error=grpc.StatusCode.INVALID_ARGUMENT),
    "suites_are_listed": Fault("ListEvaluationSuites", response=_set(suites=None)),
    "addresses_must_be_allowed": Fault("CreateEvaluationJob", error=grpc.StatusCode.NOT_FOUND),
    "missing_category_is_named": Fault("CreateEvaluationJob", request=_without_category),
}
#: Kept by standard parts of gRPC (which the proxy doesn't stand in for), or tried where workers run; and one that no proxy
#: in front of one channel can break: watchers that hear other things than one another.
_NOT_BROKEN_HERE = ("health_is_serving", "reflection_lists_the_service", "job_succeeds", "watchers_hear_the_same")
_JOB_RULES = [
    pytest.param(contract, kind, rule, id=f"{contract}-{rule}")
    for contract, kinds in _KINDS.items()
    for kind in kinds
    for rule in [rule.name for rule in CONTRACTS[contract].rules if rule.name.startswith("merge_") == bool(kind.prefix)]
    if rule.removeprefix(kind.prefix) not in _NOT_BROKEN_HERE
]


async def _outcome(contract: str, name: str, upstream: grpc.aio.Channel, fault: Fault, **target: Any) -> Outcome:
    chosen = CONTRACTS[contract]
    [rule] = [rule for rule in chosen.rules if rule.name == name]
    async with _proxy(upstream, fault) as channel:
        return (await try_rule(rule, chosen.target_class(channel, **target))).outcome


@pytest.mark.parametrize("name", INFERENCE_FAULTS)
async def test_broken_inference_is_noticed(
    name: str, foreign_inference: str, open_channel: Callable[[str], grpc.aio.Channel]
) -> None:
    upstream = open_channel(foreign_inference)
    assert await _outcome("inference", name, upstream, Fault("")) is Outcome.PASSED
    assert await _outcome("inference", name, upstream, INFERENCE_FAULTS[name]) is Outcome.FAILED


@pytest.mark.parametrize(("contract", "kind", "name"), _JOB_RULES)
async def test_broken_jobs_are_noticed(
    contract: str,
    kind: JobKind,
    name: str,
    request: pytest.FixtureRequest,
    training_dataset: str,
    adapter: str,
    internal_token: str,
    open_channel: Callable[[str], grpc.aio.Channel],
) -> None:
    upstream = open_channel(request.getfixturevalue(f"our_{contract}"))
    known = {option.name for option in CONTRACTS[contract].options()}
    named = {"dataset": training_dataset, "other_tenant": "umbrella", "adapter": adapter}
    target = {name: value for name, value in named.items() if name in known}
    target |= {
        "metadata": (("x-martlet-tenant", "acme"), ("x-martlet-internal-token", internal_token)),
        "timeout_seconds": 5.0,
    }
    fault = JOB_FAULTS[name.removeprefix(kind.prefix)]
    fault = replace(fault, method=fault.method.replace("{noun}", kind.noun))
    assert await _outcome(contract, name, upstream, Fault(""), **target) is Outcome.PASSED
    assert await _outcome(contract, name, upstream, fault, **target) is Outcome.FAILED


async def test_report_shows_what_is_broken_and_nobody_conforms_who_does_not_answer(foreign_inference: str) -> None:
    good = await run_conformance_async("inference", foreign_inference)
    assert good.passed, good.table()
    assert "conforms" in good.table()
    silent = await run_conformance_async("inference", "127.0.0.1:1", timeout_seconds=1.0)
    assert not silent.passed
    assert silent.count(Outcome.PASSED) == 0
    assert "DOES NOT CONFORM" in silent.table()
    assert "expected: The standard health service answers SERVING" in silent.table()
