"""The gateway's gRPC side: one address for every service, keys checked, errors with their details."""

from __future__ import annotations

import hashlib
from typing import Any

import grpc.aio
import pytest
from google.protobuf import descriptor_pool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from martlet.common.v1 import artifact_pb2, job_pb2
from martlet.gateway.v1 import (
    artifact_service_pb2,
    artifact_service_pb2_grpc,
    model_service_pb2,
    model_service_pb2_grpc,
)
from martlet.inference.v1 import inference_pb2, inference_service_pb2, inference_service_pb2_grpc
from martlet.trainer.v1 import training_job_pb2, training_service_pb2, training_service_pb2_grpc
from martlet_core.api_keys import OPERATOR, ApiKeyStore
from martlet_core.artifacts.types import PublishedModel
from martlet_core.errors import InvalidArgument, NotFound
from martlet_core.rpc.client import error_from_rpc
from martlet_core.testing.conformance import run_conformance_async
from martlet_inference.testing import wait_until


@pytest.fixture
async def trainer_stub(gateway: Any) -> Any:
    return training_service_pb2_grpc.TrainingServiceStub(gateway.channel())


def create(model: str) -> training_service_pb2.CreateTrainingJobRequest:
    spec = training_job_pb2.TrainingSpec(base_model=model, training_dataset="artifacts/d1")
    return training_service_pb2.CreateTrainingJobRequest(
        training_job=training_job_pb2.TrainingJob(spec=spec), request_id="r-1"
    )


async def test_trainer_is_reached_with_the_keys_tenant(gateway: Any, trainer_stub: Any, tools: Any) -> None:
    metadata = (*gateway.metadata(), ("x-martlet-tenant", "globex"), ("x-request-id", "mine-1"))
    job = await trainer_stub.CreateTrainingJob(create(tools.base), metadata=metadata)
    assert job.state == job_pb2.JOB_STATE_QUEUED
    call = gateway.trainer.calls[-1]
    assert (call.tenant, call.request_id) == ("acme", "mine-1"), "a tenant that the caller claims is ignored"
    gateway.trainer.say(job.name.removeprefix("trainingJobs/"), *(job_pb2.JobEvent(message=f"m{i}") for i in range(3)))
    watch = trainer_stub.WatchTrainingJob(
        training_service_pb2.WatchTrainingJobRequest(name=job.name), metadata=gateway.metadata()
    )
    assert [event.message async for event in watch] == ["m0", "m1", "m2"]
    request = training_service_pb2.GetTrainingJobRequest(name=job.name)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await trainer_stub.GetTrainingJob(request, metadata=gateway.metadata(gateway.other_key))
    assert isinstance(error_from_rpc(caught.value), NotFound)


async def test_errors_come_with_their_details(gateway: Any, trainer_stub: Any, tools: Any) -> None:
    request = create(tools.base)
    request.training_job.spec.hyperparameters.learning_rate = 11
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await trainer_stub.CreateTrainingJob(request, metadata=gateway.metadata())
    error = error_from_rpc(caught.value)
    assert isinstance(error, InvalidArgument)
    assert error.violations[0].field == "spec.hyperparameters.learning_rate"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await trainer_stub.CreateTrainingJob(create("smolm2"), metadata=gateway.metadata())
    assert error_from_rpc(caught.value).metadata["close_matches"] == tools.base


@pytest.mark.parametrize("metadata", [(), (("authorization", "Bearer mk-" + "x" * 43),), (("authorization", "x"),)])
async def test_calls_without_a_good_key_are_refused(gateway: Any, metadata: Any) -> None:
    channel = gateway.channel()
    calls = [
        training_service_pb2_grpc.TrainingServiceStub(channel).ListTrainingJobs(  # type: ignore[attr-defined]
            training_service_pb2.ListTrainingJobsRequest(), metadata=metadata
        ),
        artifact_service_pb2_grpc.ArtifactServiceStub(channel).ListArtifacts(  # type: ignore[attr-defined]
            artifact_service_pb2.ListArtifactsRequest(), metadata=metadata
        ),
        inference_service_pb2_grpc.InferenceServiceStub(channel).ListServedModels(  # type: ignore[attr-defined]
            inference_service_pb2.ListServedModelsRequest(), metadata=metadata
        ),
    ]
    for call in calls:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert not gateway.trainer.calls


async def test_health_and_reflection_need_no_key(gateway: Any) -> None:
    channel = gateway.channel()
    health: Any = health_pb2_grpc.HealthStub(channel)
    answer = await health.Check(health_pb2.HealthCheckRequest(service="martlet.trainer.v1.TrainingService"))
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    reflection: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
    stream = reflection.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    names = {service.name async for answer in stream for service in answer.list_services_response.service}
    expected = {
        "martlet.trainer.v1.TrainingService",
        "martlet.trainer.v1.MergeService",
        "martlet.inference.v1.InferenceService",
        "martlet.gateway.v1.ArtifactService",
        "martlet.gateway.v1.ModelService",
        "martlet.gateway.v1.ReplicaService",
    }
    assert expected <= names
    assert all(descriptor_pool.Default().FindServiceByName(name) for name in expected)


async def test_unknown_method_is_unimplemented(gateway: Any) -> None:
    call = gateway.channel().unary_unary("/martlet.quantizer.v1.QuantizationService/Nothing")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(b"", metadata=gateway.metadata())
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_inference_is_routed(gateway: Any, start_replica: Any, tools: Any) -> None:
    await start_replica()
    stub: Any = inference_service_pb2_grpc.InferenceServiceStub(gateway.channel())
    request = inference_pb2.GenerateRequest(model=tools.base, prompt="a b")
    request.sampling.max_new_tokens = 3
    parts = [part async for part in stub.Generate(request, metadata=gateway.metadata())]
    assert "".join(part.text for part in parts) == "a b a"
    assert parts[-1].usage.completion_tokens == 3
    served = await stub.ListServedModels(inference_service_pb2.ListServedModelsRequest(), metadata=gateway.metadata())
    assert [model.name for model in served.models] == [tools.base]
    info = await stub.GetReplicaInfo(inference_service_pb2.GetReplicaInfoRequest(), metadata=gateway.metadata())
    assert (info.engine, info.ready, info.max_lora_rank) == ("echo", True, 64)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in stub.Generate(
            inference_pb2.GenerateRequest(model="nothing", prompt="a"), metadata=gateway.metadata()
        ):
            pass
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_cancelled_call_ends_the_generation(gateway: Any, start_replica: Any, tools: Any) -> None:
    replica = await start_replica(rate=20.0)
    stub: Any = inference_service_pb2_grpc.InferenceServiceStub(gateway.channel())
    request = inference_pb2.GenerateRequest(model=tools.base, prompt="a b")
    request.sampling.max_new_tokens = 10_000
    call = stub.Generate(request, metadata=gateway.metadata())
    await call.read()
    call.cancel()
    await wait_until(lambda: replica.engine.aborted_calls)


async def test_adapters_are_loaded_pinned_and_unloaded(gateway: Any, start_replica: Any, tools: Any) -> None:
    replica = await start_replica()
    tools.publish(gateway, replica, PublishedModel("ft:x", "adapter", "acme", "a1", tools.base, lora_rank=8))
    stub: Any = inference_service_pb2_grpc.InferenceServiceStub(gateway.channel())
    metadata = gateway.metadata()
    loaded = await stub.LoadModel(inference_service_pb2.LoadModelRequest(model="ft:x", pin=True), metadata=metadata)
    assert (loaded.name, loaded.pinned) == ("ft:x", True)
    await tools.until(gateway, lambda views: any("ft:x" in view.adapters for view in views))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.UnloadModel(inference_service_pb2.UnloadModelRequest(model="ft:x"), metadata=metadata)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    await stub.PinModel(inference_service_pb2.PinModelRequest(model="ft:x", pinned=False), metadata=metadata)
    await stub.UnloadModel(inference_service_pb2.UnloadModelRequest(model="ft:x"), metadata=metadata)
    assert not replica.engine.adapters
    theirs, _ = ApiKeyStore(gateway.stores.objects).create("globex", scope=OPERATOR)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.PinModel(inference_service_pb2.PinModelRequest(model="ft:x"), metadata=gateway.metadata(theirs))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_models_are_listed_per_tenant(gateway: Any) -> None:
    gateway.stores.models.publish(PublishedModel("ft:a", "adapter", "acme", "a1", "b", lora_rank=8, create_time=5.0))
    stub: Any = model_service_pb2_grpc.ModelServiceStub(gateway.channel())
    model = await stub.GetModel(model_service_pb2.GetModelRequest(name="ft:a"), metadata=gateway.metadata())
    assert (model.artifact, model.base_model, model.lora_rank) == ("artifacts/a1", "b", 8)
    other = gateway.metadata(gateway.other_key)
    listed = await stub.ListModels(model_service_pb2.ListModelsRequest(), metadata=other)
    assert "ft:a" not in {m.name for m in listed.models}
    page = await stub.ListModels(model_service_pb2.ListModelsRequest(page_size=1), metadata=gateway.metadata())
    assert [m.name for m in page.models] == ["ft:a"]
    rest = await stub.ListModels(
        model_service_pb2.ListModelsRequest(page_token=page.next_page_token), metadata=gateway.metadata()
    )
    assert len(rest.models) == 2
    with pytest.raises(grpc.aio.AioRpcError):
        await stub.DeleteModel(model_service_pb2.DeleteModelRequest(name="ft:a"), metadata=other)
    await stub.DeleteModel(model_service_pb2.DeleteModelRequest(name="ft:a"), metadata=gateway.metadata())
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.GetModel(model_service_pb2.GetModelRequest(name="ft:a"), metadata=gateway.metadata())
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


class Announcement:
    """An artifact of one file, as a foreign client would bring it. The memory store's URLs can't be PUT to, so ``send`` writes there."""

    def __init__(self, gateway: Any, data: bytes = b"weights") -> None:
        self.gateway = gateway
        self.stub: Any = artifact_service_pb2_grpc.ArtifactServiceStub(gateway.channel())
        self.metadata = gateway.metadata()
        self.data = data
        self.file = artifact_pb2.ArtifactFile(
            path="adapter.bin", sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data)
        )

    async def announce(self, key: str | None = None) -> artifact_service_pb2.ArtifactUpload:
        artifact = artifact_pb2.Artifact(
            kind=artifact_pb2.ARTIFACT_KIND_ADAPTER, files=[self.file], labels={"a": "b"}, display_name="mine"
        )
        artifact.metadata.update({"lora_rank": 8})
        request = artifact_service_pb2.CreateArtifactUploadRequest(artifact=artifact)
        return await self.stub.CreateArtifactUpload(request, metadata=self.gateway.metadata(key))

    def send(self, upload: artifact_service_pb2.ArtifactUpload, data: bytes, tenant: str = "acme") -> None:
        upload_id = upload.name.removeprefix("artifactUploads/")
        self.gateway.stores.objects.put(f"artifact-uploads/{tenant}/{upload_id}/000000", data)

    async def commit(self, upload: artifact_service_pb2.ArtifactUpload, key: str | None = None) -> Any:
        request = artifact_service_pb2.CommitArtifactRequest(name=upload.name)
        return await self.stub.CommitArtifact(request, metadata=self.gateway.metadata(key))


async def test_artifact_is_brought_checked_and_read(gateway: Any) -> None:
    brought = Announcement(gateway)
    upload = await brought.announce()
    assert [put.path for put in upload.puts] == ["adapter.bin"]
    brought.send(upload, brought.data)
    artifact = await brought.commit(upload)
    assert artifact.size_bytes == 7
    assert artifact.metadata["lora_rank"] == 8
    assert (await brought.commit(upload)).name == artifact.name, "committing again is harmless"
    listed = await brought.stub.ListArtifacts(
        artifact_service_pb2.ListArtifactsRequest(kind=artifact_pb2.ARTIFACT_KIND_ADAPTER), metadata=brought.metadata
    )
    assert [a.name for a in listed.artifacts] == [artifact.name]
    download = await brought.stub.CreateArtifactDownload(
        artifact_service_pb2.CreateArtifactDownloadRequest(name=artifact.name), metadata=brought.metadata
    )
    assert [get.path for get in download.gets] == ["adapter.bin"]
    second = await brought.announce()
    assert not second.puts, "the tenant has this content already"
    assert (await brought.commit(second)).files[0].sha256 == brought.file.sha256
    assert not [k for k in gateway.stores.objects.list("artifact-uploads/") if not k.endswith(".json")]
    await brought.stub.DeleteArtifact(
        artifact_service_pb2.DeleteArtifactRequest(name=artifact.name), metadata=brought.metadata
    )
    with pytest.raises(grpc.aio.AioRpcError):
        await brought.stub.GetArtifact(
            artifact_service_pb2.GetArtifactRequest(name=artifact.name), metadata=brought.metadata
        )


@pytest.mark.parametrize(
    ("sent", "reason"), [(None, "CONTENT_MISSING"), (b"weighty", "CONTENT_MISMATCH"), (b"w", "CONTENT_MISMATCH")]
)
async def test_content_that_is_not_what_was_announced_is_refused(gateway: Any, sent: bytes | None, reason: str) -> None:
    brought = Announcement(gateway)
    upload = await brought.announce()
    if sent is not None:
        brought.send(upload, sent)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await brought.commit(upload)
    error = error_from_rpc(caught.value)
    assert (error.code, error.reason) == ("FAILED_PRECONDITION", reason)
    assert "adapter.bin" in error.message
    assert not gateway.stores.objects.list("blobs/")


async def test_knowing_a_hash_gives_no_content(gateway: Any) -> None:
    """Another tenant announces a hash that is stored: it must send the bytes all the same, and can't commit the first one's upload."""
    brought = Announcement(gateway)
    upload = await brought.announce()
    brought.send(upload, brought.data)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await brought.commit(upload, gateway.other_key)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    await brought.commit(upload)
    theirs = await brought.announce(gateway.other_key)
    assert len(theirs.puts) == 1
    with pytest.raises(grpc.aio.AioRpcError):
        await brought.commit(theirs, gateway.other_key)


async def test_gateway_keeps_the_inference_contract(gateway: Any, start_replica: Any, tools: Any) -> None:
    """Whoever speaks to a replica may speak to the gateway instead: the conformance kit sees no difference."""
    replica = await start_replica(rate=200.0, renew_seconds=0.1)
    tools.publish(gateway, replica, PublishedModel("ft:x", "adapter", "acme", "a1", tools.base, lora_rank=8))
    report = await run_conformance_async(
        "inference",
        f"127.0.0.1:{gateway.server.grpc_port}",
        metadata=gateway.metadata(),
        adapter="ft:x",
    )
    assert report.passed, report.table()
