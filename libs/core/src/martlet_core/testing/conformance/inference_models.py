"""The rules of ``martlet.inference.v1.InferenceService`` about models: loading, pinning, unloading, adapters."""

from __future__ import annotations

from typing import Any

from martlet.inference.v1 import inference_pb2 as pb
from martlet.inference.v1 import inference_service_pb2 as service_pb

from martlet_core.testing.conformance.checks import expect_bad_field, expect_error, read_all, require
from martlet_core.testing.conformance.inference_target import (
    CHAT,
    InferenceTarget,
    call_openai,
    chat_body,
    check_envelope,
    model_name,
    served_model,
    whole_answer,
)
from martlet_core.testing.conformance.rules import Rule, Untried


async def loading_a_loaded_model_changes_nothing(target: InferenceTarget) -> None:
    """LoadModel of a model that is there returns it, READY."""
    name = await model_name(target)
    before = await served_model(target, name)
    model = await _load(target, name)
    require(model.name == name, f"returned {model.name!r}")
    require(model.state == pb.MODEL_STATE_READY, f"{name} is {pb.ModelState.Name(model.state)}")
    require(before and model.pinned == before.pinned, f"{name}: pinned became {model.pinned}")


async def models_are_named(target: InferenceTarget) -> None:
    """LoadModel, UnloadModel and PinModel without a name are INVALID_ARGUMENT."""
    stub, options = target.stub, target.call_options
    await expect_bad_field("LoadModel", stub.LoadModel(service_pb.LoadModelRequest(), **options), "model")
    await expect_bad_field("UnloadModel", stub.UnloadModel(service_pb.UnloadModelRequest(), **options), "model")
    await expect_bad_field("PinModel", stub.PinModel(service_pb.PinModelRequest(), **options), "model")


async def pinned_model_is_not_unloaded(target: InferenceTarget) -> None:
    """PinModel shows in the model; UnloadModel of a pinned model is FAILED_PRECONDITION and leaves it answering."""
    name = await model_name(target)
    before = await served_model(target, name)
    pinned = await _pin(target, name, True)
    try:
        require(pinned.pinned and pinned.name == name, "PinModel did not return the model as pinned")
        listed = await served_model(target, name)
        require(listed and listed.pinned, "ListServedModels does not show it as pinned")
        await expect_error("UnloadModel of a pinned model", _unload(target, name), "FAILED_PRECONDITION")
        check_envelope(await whole_answer(target, CHAT, await chat_body(target, max_tokens=4)), "chat.completion", name)
    finally:
        lifted = await _pin(target, name, bool(before and before.pinned))
    require(lifted.pinned == bool(before and before.pinned), "PinModel did not lift the protection")


async def adapter_is_loaded_by_a_request(target: InferenceTarget) -> None:
    """A request that names an adapter is answered without a load call; then it is listed with its base model."""
    adapter = _adapter(target)
    base = await model_name(target)
    answer = await whole_answer(target, CHAT, await chat_body(target, model=adapter, max_tokens=4))
    check_envelope(answer, "chat.completion", adapter)
    listed = await served_model(target, adapter)
    require(listed, f"{adapter} is not listed")
    assert listed is not None
    require(listed.kind == pb.MODEL_KIND_ADAPTER, f"its kind is {pb.ModelKind.Name(listed.kind)}")
    require(listed.state == pb.MODEL_STATE_READY, f"its state is {pb.ModelState.Name(listed.state)}")
    require(listed.base_model == base, f"its base_model is {listed.base_model!r}, expected {base!r}")
    parts = await read_all(
        target.stub.Generate(
            pb.GenerateRequest(model=adapter, prompt="hi", sampling=pb.SamplingConfig(max_new_tokens=2)),
            **target.call_options,
        )
    )
    require(parts[-1].finish_reason, "Generate with the adapter did not end with a finish_reason")


async def unloaded_adapter_is_gone_until_the_next_request(target: InferenceTarget) -> None:
    """UnloadModel takes an adapter off the list; the next request for it, or LoadModel, brings it back."""
    adapter = _adapter(target)
    loaded = await _load(target, adapter)
    require(loaded.state == pb.MODEL_STATE_READY, f"LoadModel returned {pb.ModelState.Name(loaded.state)}")
    await _unload(target, adapter)
    require(await served_model(target, adapter) is None, "it is still listed")
    await expect_error("unloading it again", _unload(target, adapter), "NOT_FOUND")
    answer = await whole_answer(target, CHAT, await chat_body(target, model=adapter, max_tokens=4))
    check_envelope(answer, "chat.completion", adapter)


async def adapters_of_other_tenants_are_not_found(target: InferenceTarget) -> None:
    """An adapter of one tenant is NOT_FOUND for another, also once it is loaded, and not on that tenant's list."""
    adapter = _adapter(target)
    if not any(key == "x-martlet-tenant" for key, _ in target.metadata):
        raise Untried("name the tenant that the adapter belongs to: --tenant")
    await _load(target, adapter)
    others = (
        *(pair for pair in target.metadata if pair[0] != "x-martlet-tenant"),
        ("x-martlet-tenant", "somebody-else"),
    )
    options: dict[str, Any] = {"metadata": others, "timeout": target.timeout_seconds}
    request = pb.GenerateRequest(model=adapter, prompt="hi")
    await expect_error("another tenant's request", read_all(target.stub.Generate(request, **options)), "NOT_FOUND")
    listed = await target.stub.ListServedModels(service_pb.ListServedModelsRequest(), **options)
    require(adapter not in [model.name for model in listed.models], "another tenant sees it in the list")


async def unloaded_whole_model_can_be_loaded_again(target: InferenceTarget) -> None:
    """After UnloadModel of the whole model its requests fail with NOT_FOUND or UNAVAILABLE; LoadModel returns when it
    answers again."""
    if not target.unload_whole_model:
        raise Untried("allow it to be unloaded: --unload-whole-model")
    name = await model_name(target)
    body = await chat_body(target, model=name)
    await _unload(target, name)
    call = read_all(call_openai(target, CHAT, body))
    await expect_error("a request for the unloaded model", call, "NOT_FOUND", "UNAVAILABLE")
    model = await _load(target, name)
    require(model.state == pb.MODEL_STATE_READY, f"LoadModel returned {pb.ModelState.Name(model.state)}")
    check_envelope(await whole_answer(target, CHAT, body), "chat.completion", name)


def _adapter(target: InferenceTarget) -> str:
    if not target.adapter:
        raise Untried("name an adapter that a request may load: --adapter")
    return target.adapter


async def _load(target: InferenceTarget, name: str) -> pb.ServedModel:
    return await target.stub.LoadModel(service_pb.LoadModelRequest(model=name), **target.call_options)


async def _unload(target: InferenceTarget, name: str) -> None:
    await target.stub.UnloadModel(service_pb.UnloadModelRequest(model=name), **target.call_options)


async def _pin(target: InferenceTarget, name: str, pinned: bool) -> pb.ServedModel:
    return await target.stub.PinModel(service_pb.PinModelRequest(model=name, pinned=pinned), **target.call_options)


#: The last one takes the whole model away for a while.
MODEL_RULES: tuple[Rule, ...] = (
    Rule.of(loading_a_loaded_model_changes_nothing),
    Rule.of(models_are_named),
    Rule.of(pinned_model_is_not_unloaded),
    Rule.of(adapter_is_loaded_by_a_request),
    Rule.of(unloaded_adapter_is_gone_until_the_next_request),
    Rule.of(adapters_of_other_tenants_are_not_found),
    Rule.of(unloaded_whole_model_can_be_loaded_again),
)
