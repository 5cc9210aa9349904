"""What is checked at submission, and what the worker makes of a job: on in-memory stores, without an ML library."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.wrappers_pb2 import StringValue
from martlet.trainer.v1 import training_job_pb2, training_service_pb2
from martlet_core.artifacts.store import ContentAddressedStore
from martlet_core.artifacts.types import Artifact, PublishedModel
from martlet_core.errors import FailedPrecondition, InvalidArgument, NotFound, PermissionDenied
from martlet_core.job_resource import spec_to_dict
from martlet_core.job_service import JobService
from martlet_core.jobs import Job, JobState
from martlet_core.model_rules import check_plain_lora, published_name
from martlet_core.models import ObjectModelRegistry
from martlet_core.service_tokens import tenant_of_service_token
from martlet_core.stores import Stores
from martlet_core.testing.bell import MemoryBell
from martlet_core.testing.job_store import MemoryJobStore
from martlet_core.testing.object_store import MemoryObjectStore
from martlet_inputs.base_models.locate import ModelDirs
from martlet_trainer import convert
from martlet_trainer.config import parse_merge_config, parse_training_config
from martlet_trainer.handlers import GatewayAccess, MergeHandler, TrainingHandler
from martlet_trainer.jobs import Submissions
from martlet_trainer.naming import MERGE, TRAINING, checkpoint_model_name

BASE = "smollm2-135m-instruct"
SERVICE = "https://rewards.example/score"
ROW = '{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]}\n'


class Kit:
    """Stores with a tenant's things in them."""

    def __init__(self, tmp_path: Path) -> None:
        self._tmp_path = tmp_path
        self.objects = MemoryObjectStore()
        artifacts = ContentAddressedStore(self.objects, tmp_path / "cache")
        self.stores = Stores(MemoryJobStore(), self.objects, artifacts, ObjectModelRegistry(self.objects))
        self.root = tmp_path / "allowed"
        (self.root / "llama").mkdir(parents=True)
        (self.root / "llama" / "config.json").write_text("{}")
        self.submissions = Submissions(
            artifacts,
            self.stores.models,
            model_roots=(self.root,),
            models_dir=tmp_path / "models",
            scratch_dir=tmp_path / "scratch",
            max_json_bytes=1000,
            allowed_services=[SERVICE],
            trackers=("tensorboard",),
        )
        self._dirs = dirs = ModelDirs(tmp_path / "models", tmp_path / "hub", (self.root,))
        self.training = self.handler(GatewayAccess())
        self.merge = MergeHandler(self.stores, dirs)
        self.dataset = self.artifact("dataset", {"train.jsonl": ROW * 3})

    def handler(self, gateway: GatewayAccess) -> TrainingHandler:
        return TrainingHandler(self.stores, self._dirs, [SERVICE], gateway)

    def artifact(self, kind: str, files: dict[str, str], *, tenant: str = "acme", **metadata: Any) -> str:
        directory = self._tmp_path / f"{kind}-{len(list(self._tmp_path.iterdir()))}"
        directory.mkdir()
        for name, text in files.items():
            (directory / name).write_text(text)
        artifact = self.stores.artifacts.put_directory(directory, kind=kind, tenant=tenant, metadata=metadata)
        return f"artifacts/{artifact.id}"

    def publish(self, name: str, kind: str, artifact: str, *, base_model: str = "", lora_rank: int = 0) -> str:
        artifact_id = artifact.removeprefix("artifacts/")
        self.stores.models.publish(
            PublishedModel(name, kind, "acme", artifact_id, base_model=base_model, lora_rank=lora_rank)
        )
        return name

    def adapter(self, base_model: str = BASE) -> str:
        shape = {"lora_rank": 16, "target_modules": ["q_proj", "v_proj"], "use_dora": False}
        artifact = self.artifact("adapter", {"adapter_config.json": "{}"}, base_model=base_model, **shape)
        return self.publish("ft:base:acme:x:12345678", "adapter", artifact, base_model=base_model, lora_rank=16)

    def job(self, kind: str = TRAINING, **spec: Any) -> Job:
        values = {"base_model": BASE, "training_dataset": self.dataset} if kind == TRAINING else {}
        return Job("0123456789abcdefghjk", "trainer", kind, "acme", {**values, **spec}, "trainer")

    async def check(self, **spec: Any) -> None:
        values = {"base_model": BASE, "training_dataset": self.dataset, **spec}
        await self.submissions.check_training("acme", parse_training_config(values))


@pytest.fixture
def kit(tmp_path: Path) -> Kit:
    return Kit(tmp_path)


async def test_good_training_passes(kit: Kit) -> None:
    await kit.check()
    await kit.check(validation_dataset=kit.dataset)
    await kit.check(base_model=f"file://{kit.root}/llama")
    await kit.check(base_model="org/model@main")
    await kit.check(base_model=kit.adapter())


async def test_unknown_base_model_names_close_ones(kit: Kit) -> None:
    with pytest.raises(NotFound) as caught:
        await kit.check(base_model="smollm2-135m-instruc")
    assert BASE in caught.value.metadata["close_matches"]


async def test_unknown_fine_tuned_model_names_close_ones(kit: Kit) -> None:
    name = kit.adapter()
    with pytest.raises(NotFound) as caught:
        await kit.check(base_model=name[:-1] + "0")
    assert name in caught.value.message


@pytest.mark.parametrize("path", ["/etc", "/allowed/../etc"])
async def test_path_outside_of_the_roots_is_refused(kit: Kit, path: str) -> None:
    with pytest.raises(PermissionDenied):
        await kit.check(base_model=f"file://{path}")


@pytest.mark.parametrize("field", ["training_dataset", "validation_dataset"])
async def test_data_set_that_is_not_ours_is_not_found(kit: Kit, field: str) -> None:
    theirs = kit.artifact("dataset", {"train.jsonl": ROW}, tenant="evil")
    with pytest.raises(NotFound, match=f"spec.{field}"):
        await kit.check(**{field: theirs})


async def test_artifact_of_another_kind_is_no_data_set(kit: Kit) -> None:
    with pytest.raises(InvalidArgument, match="of kind adapter"):
        await kit.check(training_dataset=kit.artifact("adapter", {"a": "b"}))


async def test_bad_row_is_named_unless_skipped(kit: Kit) -> None:
    dataset = kit.artifact("dataset", {"train.jsonl": ROW + '{"messages": []}\n' + ROW})
    with pytest.raises(InvalidArgument) as caught:
        await kit.check(training_dataset=dataset)
    assert caught.value.violations[0].field == "spec.training_dataset"
    assert "line 2" in caught.value.message
    await kit.check(training_dataset=dataset, data={"on_bad_rows": "skip"})


async def test_data_set_is_read_once(kit: Kit) -> None:
    await kit.check()
    reads = kit.objects.calls["download"] + kit.objects.calls["get"]
    await kit.check()
    again = kit.objects.calls["download"] + kit.objects.calls["get"] - reads
    assert again <= 1, "only the manifest is read again, to check whose it is"


async def test_whole_weights_from_an_adapter_are_refused(kit: Kit) -> None:
    with pytest.raises(InvalidArgument, match=r"spec\.tuner\.kind"):
        await kit.check(base_model=kit.adapter(), tuner={"kind": "full"})


@pytest.mark.parametrize(
    ("tuner", "field", "words"),
    [
        ({"lora_rank": 8}, "lora_rank", "is 8, but ft:base:acme:x:12345678 has 16, which training can't change; leave it out"),
        ({"target_modules": ["q_proj", "k_proj"]}, "target_modules", "is k_proj, q_proj, but .* has q_proj, v_proj"),
        ({"use_dora": True}, "use_dora", "is True, but .* has False"),
    ],
)  # fmt: skip
async def test_another_shape_than_the_adapters_is_refused(
    kit: Kit, tuner: dict[str, Any], field: str, words: str
) -> None:
    with pytest.raises(InvalidArgument, match=words) as caught:
        await kit.check(base_model=kit.adapter(), tuner=tuner)
    assert [violation.field for violation in caught.value.violations] == [f"spec.tuner.{field}"]


async def test_the_adapters_own_shape_may_be_asked_for(kit: Kit) -> None:
    adapter = kit.adapter()
    await kit.check(
        base_model=adapter, tuner={"lora_rank": 16, "target_modules": ["v_proj", "q_proj"], "lora_dropout": 0.1}
    )
    await kit.check(base_model=adapter, tuner={"kind": "qlora"})


def test_what_goes_on_from_an_adapter_names_the_base_underneath(kit: Kit) -> None:
    finished = kit.training.finish(
        kit.job(base_model=kit.adapter()), {}, outputs("adapter", base_model=BASE, lora_rank=16)
    )
    assert finished.model is not None
    assert (finished.model.base_model, finished.model.lora_rank) == (BASE, 16)
    assert finished.model.name == "ft:base:acme::cdefghjk"


async def test_merge_needs_an_adapter(kit: Kit) -> None:
    await kit.submissions.check_merge("acme", parse_merge_config({"adapter": kit.adapter()}))
    whole = kit.publish("ft:whole", "whole", kit.artifact("model", {"config.json": "{}"}))
    with pytest.raises(InvalidArgument, match="whole model already"):
        await kit.submissions.check_merge("acme", parse_merge_config({"adapter": whole}))
    with pytest.raises(NotFound, match=r"spec\.adapter"):
        await kit.submissions.check_merge("acme", parse_merge_config({"adapter": "ft:no:such:model:1"}))
    checkpoint = kit.artifact("checkpoint", {"adapter_config.json": "{}"})
    with pytest.raises(InvalidArgument, match="give its model's name"):
        await kit.submissions.check_merge("acme", parse_merge_config({"adapter": checkpoint}))


async def test_virtual_tokens_are_not_merged(kit: Kit) -> None:
    adapter = kit.artifact("adapter", {"adapter_config.json": "{}"}, tuner="prompt_tuning", base_model=BASE)
    name = kit.publish("ft:base:acme:p:12345678", "adapter", adapter, base_model=BASE)
    with pytest.raises(FailedPrecondition, match=r"spec\.adapter: is of kind prompt_tuning, virtual tokens"):
        await kit.submissions.check_merge("acme", parse_merge_config({"adapter": name}))


def test_inputs_of_a_training_from_the_catalogue(kit: Kit) -> None:
    prepared = kit.training.prepare(kit.job(validation_dataset=kit.dataset))
    dataset = kit.dataset.removeprefix("artifacts/")
    assert prepared.inputs == {"training_dataset": dataset, "validation_dataset": dataset}
    assert (prepared.config["base_model"]["kind"], prepared.config["base_model"]["value"]) == ("catalog", BASE)
    assert parse_training_config(prepared.config["spec"]).base_model == BASE


async def test_a_tracker_that_is_not_offered_is_refused(kit: Kit) -> None:
    await kit.check(trackers=[{"kind": "tensorboard"}])
    with pytest.raises(
        InvalidArgument, match=r"trackers\.1\.kind: is mlflow, .* \(offered are tensorboard\); leave it out"
    ):
        await kit.check(trackers=[{"kind": "tensorboard"}, {"kind": "mlflow"}])


def test_trackers_are_kept_from_the_training_and_change_nothing_in_it(kit: Kit) -> None:
    tracked = kit.training.prepare(kit.job(trackers=[{"kind": "wandb", "project": "birds"}]))
    assert tracked == kit.training.prepare(kit.job())


def test_inputs_of_a_training_on_several_data_sets(kit: Kit) -> None:
    dataset = kit.dataset.removeprefix("artifacts/")
    samples = [{"dataset": kit.dataset, "count": 5}, {"dataset": "ms:org/rows@v1"}, {"dataset": kit.dataset}]
    prepared = kit.training.prepare(kit.job(training_datasets=samples))
    assert prepared.inputs == {"training_dataset": dataset, "training_dataset_3": dataset}
    assert prepared.config["hub_datasets"] == {"training_dataset_2": "ms:org/rows@v1"}


def test_inputs_of_a_training_from_an_artifact(kit: Kit) -> None:
    model = kit.artifact("model", {"config.json": "{}"})
    prepared = kit.training.prepare(kit.job(base_model=model))
    assert prepared.inputs["base_model"] == model.removeprefix("artifacts/")


def test_inputs_of_a_training_that_goes_on_from_an_adapter(kit: Kit) -> None:
    prepared = kit.training.prepare(kit.job(base_model=kit.adapter(), tuner={"lora_dropout": 0.1}))
    assert set(prepared.inputs) == {"training_dataset", "adapter"}
    assert prepared.config["base_model"]["value"] == BASE
    spec = prepared.config["spec"]
    assert (spec["recipe"], spec["adapter_base_model"]) == ("sft", BASE)
    assert spec["tuner"] == {"lora_dropout": 0.1}, "defaults would contradict what the adapter has"


def distillation(teacher: str, **changes: Any) -> dict[str, Any]:
    return {"recipe": "distill", "recipe_options": {"teacher_model": teacher}, **changes}


def vocabulary(*tokens: str) -> str:
    model = {"type": "BPE", "vocab": {token: index for index, token in enumerate(tokens)}}
    return json.dumps({"model": model, "added_tokens": [{"id": len(tokens), "content": "<end>"}]})


def test_inputs_of_a_distillation(kit: Kit) -> None:
    prepared = kit.training.prepare(kit.job(**distillation(kit.artifact("model", {"config.json": "{}"}))))
    assert set(prepared.inputs) == {"training_dataset", "teacher_model"}
    prepared = kit.training.prepare(kit.job(**distillation(kit.adapter())))
    assert set(prepared.inputs) == {"training_dataset", "teacher_adapter"}
    assert prepared.config["teacher_model"]["value"] == prepared.config["base_model"]["value"] == BASE
    assert "teacher_model" not in kit.training.prepare(kit.job()).config


async def test_a_teacher_must_be_there_readable_and_of_the_same_vocabulary(kit: Kit) -> None:
    (kit.root / "llama" / "tokenizer.json").write_text(vocabulary("a", "b"))
    student = f"file://{kit.root}/llama"
    with pytest.raises(NotFound, match=r"spec\.recipe_options\.teacher_model"):
        await kit.check(base_model=student, **distillation("artifacts/nothere"))
    with pytest.raises(PermissionDenied):
        await kit.check(base_model=student, **distillation("file:///etc"))
    quantized = {"config.json": '{"quantization_config": {"quant_method": "awq"}}'}
    with pytest.raises(FailedPrecondition, match="teacher_model: is quantized by awq"):
        await kit.check(base_model=student, **distillation(kit.artifact("model", quantized)))
    for tokens, fits in {("a", "b"): True, ("b", "a"): False, ("a", "b", "c"): False}.items():
        files = {"config.json": "{}", "tokenizer.json": vocabulary(*tokens)}
        asked = distillation(kit.artifact("model", files))
        if fits:
            await kit.check(base_model=student, **asked)
            continue
        with pytest.raises(InvalidArgument, match="has another vocabulary") as caught:
            await kit.check(base_model=student, **asked)
        assert caught.value.violations[0].field == "spec.recipe_options.teacher_model"


async def test_a_reward_service_must_be_allowed(kit: Kit) -> None:
    questions = kit.artifact("dataset", {"train.jsonl": '{"prompt": "1+1?"}\n'})
    for url in (SERVICE, "https://elsewhere.example/"):
        service = {"name": "mine", "url": url}
        asked = {"recipe": "grpo", "training_dataset": questions, "recipe_options": {"reward_services": [service]}}
        if url == SERVICE:
            await kit.check(**asked)
            continue
        with pytest.raises(PermissionDenied, match="MARTLET_ALLOWED_REWARD_SERVICES"):
            await kit.check(**asked)
    assert kit.training.prepare(kit.job()).config["allowed_reward_services"] == [SERVICE]


GATEWAY = GatewayAccess("http://gateway:8000/v1", "internal")
BY_REPLICAS = {"recipe": "grpo", "recipe_options": {"rollouts": {"via": "inference"}}}


def test_a_job_that_asks_replicas_gets_a_token_for_its_tenant(kit: Kit) -> None:
    handler = kit.handler(GATEWAY)
    told = handler.prepare(kit.job(**BY_REPLICAS)).config["gateway"]
    assert told["base_url"] == "http://gateway:8000/v1"
    assert tenant_of_service_token(told["token"], "internal") == "acme"
    assert handler.prepare(kit.job()).config["gateway"] is None, "others ask for nothing there"


@pytest.mark.parametrize(
    ("access", "missing"),
    [
        (GatewayAccess(), "MARTLET_GATEWAY_URL"),
        (GatewayAccess(internal_token="internal"), "MARTLET_GATEWAY_URL"),
        (GatewayAccess("http://gateway:8000/v1"), "MARTLET_INTERNAL_TOKEN"),
    ],
)
def test_a_worker_that_knows_no_gateway_says_what_it_lacks(kit: Kit, access: GatewayAccess, missing: str) -> None:
    with pytest.raises(FailedPrecondition, match=f"{missing} isn't set") as caught:
        kit.handler(access).prepare(kit.job(**BY_REPLICAS))
    assert caught.value.reason == "WORKER_KNOWS_NO_GATEWAY"


def test_adapters_for_a_while_have_names_that_were_never_used(kit: Kit) -> None:
    tuner = {"lora_rank": 4, "init_weights": "pissa"}
    job = replace(kit.job(tuner=tuner, suffix="birds", **BY_REPLICAS), attempt=2)
    model = kit.training.temporary_model(job, 7, "x")
    assert model.name == f"ft:{BASE}:acme:birds:cdefghjk:rollouts-2-7"
    assert (model.kind, model.base_model, model.lora_rank, model.artifact_id) == ("adapter", BASE, 8, "x")
    check_plain_lora(model, model.metadata)
    continued = replace(kit.job(base_model=kit.adapter(), **BY_REPLICAS), attempt=1)
    assert kit.training.temporary_model(continued, 0, "y").base_model == BASE
    kit.stores.models.delete("ft:base:acme:x:12345678", tenant="acme")
    with pytest.raises(FailedPrecondition, match="deleted while"):
        kit.training.temporary_model(continued, 1, "z")


def test_inputs_of_a_merge(kit: Kit) -> None:
    prepared = kit.merge.prepare(kit.job(MERGE, adapter=kit.adapter()))
    assert set(prepared.inputs) == {"adapter"}
    assert prepared.config["base_model_name"] == BASE


def outputs(kind: str, **metadata: Any) -> dict[str, Artifact]:
    return {
        "model": Artifact("themodel", kind, "acme", (), metadata=metadata),
        "metrics": Artifact("themetrics", "report", "acme", ()),
    }


def test_result_of_a_training(kit: Kit) -> None:
    job = kit.job(suffix="mine")
    finished = kit.training.finish(job, {"trained_tokens": 5}, outputs("adapter", base_model=BASE, lora_rank=8))
    name = f"ft:{BASE}:acme:mine:cdefghjk"
    assert finished.result == {
        "trained_tokens": 5,
        "fine_tuned_model": name,
        "model_artifact": "artifacts/themodel",
        "metrics_artifact": "artifacts/themetrics",
    }
    assert finished.model is not None
    assert (finished.model.name, finished.model.kind, finished.model.base_model) == (name, "adapter", BASE)
    assert (finished.model.lora_rank, finished.model.source_job) == (8, job.id)


def test_result_of_a_full_training_is_a_whole_model(kit: Kit) -> None:
    finished = kit.training.finish(kit.job(tuner={"kind": "full"}), {}, outputs("model", base_model=BASE))
    assert finished.model is not None
    assert (finished.model.kind, finished.model.base_model) == ("whole", "")


def test_result_of_a_merge(kit: Kit) -> None:
    finished = kit.merge.finish(kit.job(MERGE, adapter="ft:x"), {}, outputs("merged_model", base_model=BASE))
    assert finished.result["merged_model"] == f"ft:{BASE}:acme::cdefghjk"
    named = kit.merge.finish(kit.job(MERGE, adapter="ft:x", suffix="m"), {}, outputs("merged_model", base_model=BASE))
    assert named.result["merged_model"] == f"ft:{BASE}:acme:m:cdefghjk"
    assert finished.model is not None
    assert finished.model.kind == "whole"


def test_checkpoints_of_adapters_are_named_and_those_of_whole_models_are_not(kit: Kit) -> None:
    checkpoint = {"step": 7, "artifact_id": "thecheckpoint"}
    model = kit.training.checkpoint_model(kit.job(), checkpoint)
    assert model is not None
    assert model.name == f"ft:{BASE}:acme::cdefghjk:ckpt-step-7"
    assert (model.base_model, model.lora_rank) == (BASE, 8)
    assert kit.training.checkpoint_model(kit.job(tuner={"kind": "full"}), checkpoint) is None
    going_on = kit.training.checkpoint_model(kit.job(base_model=kit.adapter()), checkpoint)
    assert going_on is not None
    assert (going_on.base_model, going_on.lora_rank) == (BASE, 16)


@pytest.mark.parametrize(
    ("tuner", "rank", "metadata"),
    [
        ({"lora_rank": 4, "init_weights": "pissa"}, 8, {}),  # it is written with both ends of the way
        ({"lora_rank": 4, "init_weights": "gaussian"}, 4, {}),
        ({"kind": "vera"}, 0, {"tuner": "vera"}),
    ],
)
def test_a_checkpoint_has_the_rank_that_is_written(
    kit: Kit, tuner: dict[str, Any], rank: int, metadata: dict[str, str]
) -> None:
    model = kit.training.checkpoint_model(kit.job(tuner=tuner), {"step": 7, "artifact_id": "thecheckpoint"})
    assert model is not None
    assert (model.lora_rank, model.metadata) == (rank, metadata)


def test_a_checkpoint_of_more_than_plain_lora_says_so_before_an_engine_downloads_it(kit: Kit) -> None:
    checkpoint = {"step": 7, "artifact_id": "thecheckpoint"}
    tuner = {"use_dora": True, "modules_to_save": ["lm_head"]}
    model = kit.training.checkpoint_model(kit.job(tuner=tuner), checkpoint)
    assert model is not None
    assert model.metadata == {"use_dora": True, "modules_to_save": ["lm_head"]}
    plain = kit.training.checkpoint_model(kit.job(), checkpoint)
    assert plain is not None
    assert plain.metadata == {}


@pytest.mark.parametrize(
    ("base_model", "short"),
    [
        ("smollm2-135m-instruct", "smollm2-135m-instruct"),
        ("org/model@0123abc", "model"),
        ("file:///models/llama/", "llama"),
        ("artifacts/0123", "0123"),
        ("ft:llama:acme:x:12345678", "llama"),
    ],
)
def test_fine_tuned_names(base_model: str, short: str) -> None:
    assert published_name(base_model, "acme", None, "0123456789abcdefghjk") == f"ft:{short}:acme::cdefghjk"


def test_spec_survives_the_record_as_it_was_asked(kit: Kit) -> None:
    spec = training_job_pb2.TrainingSpec(
        base_model=BASE,
        training_dataset=kit.dataset,
        hyperparameters=training_job_pb2.Hyperparameters(max_steps=12345678901, learning_rate=2e-4, weight_decay=0.0),
        data=training_job_pb2.DataConfig(on_bad_rows=training_job_pb2.ON_BAD_ROWS_SKIP, packing=False),
        seed=0,
    )
    spec.recipe_options.update({})
    request = training_service_pb2.CreateTrainingJobRequest(training_job=training_job_pb2.TrainingJob(spec=spec))
    config = parse_training_config(spec_to_dict(spec))
    new = convert.new_training_job(request, config, "trainer")
    draft = JobService("trainer", kit.stores, MemoryBell()).draft("acme", new)
    shown = convert.TRAINING_JOBS.to_proto(draft)
    assert shown.spec == spec
    assert shown.spec.hyperparameters.HasField("weight_decay"), "a zero that was asked for became unset"
    assert (config.data.on_bad_rows, config.hyperparameters.max_steps, config.seed) == ("skip", 12345678901, 0)


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (StringValue(value="a lot").SerializeToString(), "epoch_count (field 1) is of another type"),
        (b"\xf8\x07\x01", "field 127 isn't known"),
    ],
)
def test_fields_that_protobuf_would_ignore_are_refused(sent: bytes, told: str) -> None:
    numbers = training_job_pb2.Hyperparameters.FromString(sent)
    with pytest.raises(InvalidArgument) as caught:
        spec_to_dict(training_job_pb2.TrainingSpec(base_model=BASE, hyperparameters=numbers))
    assert caught.value.violations[0].field == "spec.hyperparameters"
    assert told in caught.value.message


def test_priority_and_attempts_reach_the_job(kit: Kit) -> None:
    resources = training_job_pb2.ResourceConfig(priority=8, max_attempts=2)
    spec = training_job_pb2.TrainingSpec(base_model=BASE, training_dataset=kit.dataset, resources=resources)
    request = training_service_pb2.CreateTrainingJobRequest(training_job=training_job_pb2.TrainingJob(spec=spec))
    new = convert.new_training_job(request, parse_training_config(spec_to_dict(spec)), "trainer")
    draft = JobService("trainer", kit.stores, MemoryBell()).draft("acme", new)
    assert (draft.priority, draft.max_attempts) == (8, 2)


def test_job_as_the_contract_shows_it(kit: Kit) -> None:
    job = Job(
        "0123456789abcdefghjk",
        "trainer",
        TRAINING,
        "acme",
        {"base_model": BASE, "training_dataset": kit.dataset},
        "trainer",
        state=JobState.FAILED,
        attempt=2,
        create_time=1.5,
        end_time=2.5,
        progress={"step": 5, "total_steps": 10, "metrics": {"loss": 1.5}, "eta_seconds": 3.0, "phase": "training"},
        result={
            "training_data": {"rows_read": 3, "issues": [{"line": 1, "field": "", "message": "m", "refused": True}]}
        },
        error={"code": "INVALID_ARGUMENT", "message": "no", "reason": "BAD_ROWS", "metadata": {}, "violations": []},
    )
    shown = convert.TRAINING_JOBS.to_proto(job)
    assert shown.name == "trainingJobs/0123456789abcdefghjk"
    assert shown.error.message == "no"
    assert shown.progress.fraction == 0.5
    assert shown.progress.phase == ""
    assert not shown.progress.HasField("eta")
    assert not shown.HasField("start_time")
    assert shown.end_time.ToMicroseconds() == 2_500_000
    assert shown.result.training_data.issues[0].line == 1


@pytest.mark.parametrize("name", ["", "trainingJobs/", "mergeJobs/0123", "trainingJobs/../x", "trainingJobs/0123/x"])
def test_malformed_job_names(name: str) -> None:
    with pytest.raises(InvalidArgument, match="trainingJobs/<id>"):
        convert.TRAINING_JOBS.job_id(name)


def test_checkpoint_name_of_a_published_base() -> None:
    spec = {"base_model": "ft:llama:acme:x:12345678", "training_dataset": "artifacts/0123"}
    job = Job("0123456789abcdefghjk", "trainer", TRAINING, "acme", spec, "trainer")
    assert checkpoint_model_name(job, 3) == "ft:llama:acme::cdefghjk:ckpt-step-3"


def test_a_training_needs_the_gpus_it_asks_for_and_a_merge_none(kit: Kit) -> None:
    needed = kit.training.gpus_needed
    spec = {"base_model": BASE, "training_dataset": kit.dataset}
    assert needed(kit.job(**spec)) == 1
    assert needed(kit.job(**spec, resources={"device_count": 4})) == 4
    assert needed(kit.job(**spec, resources={"device": "cpu", "device_count": 2})) == 0
    assert kit.merge.gpus_needed(kit.job(MERGE, adapter="ft:x")) == 0


def test_neither_process_imports_an_ml_library() -> None:
    code = (
        "import sys, martlet_trainer.service, martlet_trainer.worker, martlet_trainer.__main__\n"
        "sys.exit(bool({'torch', 'transformers', 'peft'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


async def test_large_json_is_sent_on_to_jsonl(kit: Kit) -> None:
    rows = "[" + ",".join([ROW.strip()] * 20) + "]"
    with pytest.raises(InvalidArgument, match=r"rows\.json: .* larger than 1000 bytes .*\.jsonl") as caught:
        await kit.check(training_dataset=kit.artifact("dataset", {"rows.json": rows}))
    assert (caught.value.reason, caught.value.violations[0].field) == ("FILE_TOO_LARGE", "spec.training_dataset")
    await kit.check(training_dataset=kit.artifact("dataset", {"rows.jsonl": ROW * 20}))


async def test_text_that_no_encoding_has_is_refused(kit: Kit) -> None:
    row = ROW.replace("yo", "\\ud83d")
    with pytest.raises(InvalidArgument, match="half of a surrogate pair"):
        await kit.check(training_dataset=kit.artifact("dataset", {"rows.jsonl": row}))
