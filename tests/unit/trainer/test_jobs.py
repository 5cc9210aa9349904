"""What the worker makes of a job, and of what comes of it: on in-memory stores, without an ML library."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from martlet_core.artifacts.types import Artifact
from martlet_core.errors import FailedPrecondition
from martlet_core.model_rules import check_plain_lora
from martlet_core.service_tokens import tenant_of_service_token
from martlet_trainer.config import parse_training_config
from martlet_trainer.handlers import GatewayAccess
from martlet_trainer.naming import MERGE
from martlet_trainer.testing_jobs import BASE, distillation
from martlet_trainer.testing_jobs import JobKit as Kit


@pytest.fixture
def kit(tmp_path: Path) -> Kit:
    return Kit(tmp_path)


def test_what_goes_on_from_an_adapter_names_the_base_underneath(kit: Kit) -> None:
    finished = kit.training.finish(
        kit.job(base_model=kit.adapter()), {}, outputs("adapter", base_model=BASE, lora_rank=16)
    )
    assert finished.model is not None
    assert (finished.model.base_model, finished.model.lora_rank) == (BASE, 16)
    assert finished.model.name == "ft:base:acme::cdefghjk"


def test_inputs_of_a_training_from_the_catalogue(kit: Kit) -> None:
    prepared = kit.training.prepare(kit.job(validation_dataset=kit.dataset))
    dataset = kit.dataset.removeprefix("artifacts/")
    assert prepared.inputs == {"training_dataset": dataset, "validation_dataset": dataset}
    assert (prepared.config["base_model"]["kind"], prepared.config["base_model"]["value"]) == ("catalog", BASE)
    assert parse_training_config(prepared.config["spec"]).base_model == BASE


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


def test_inputs_of_a_distillation(kit: Kit) -> None:
    prepared = kit.training.prepare(kit.job(**distillation(kit.artifact("model", {"config.json": "{}"}))))
    assert set(prepared.inputs) == {"training_dataset", "teacher_model"}
    prepared = kit.training.prepare(kit.job(**distillation(kit.adapter())))
    assert set(prepared.inputs) == {"training_dataset", "teacher_adapter"}
    assert prepared.config["teacher_model"]["value"] == prepared.config["base_model"]["value"] == BASE
    assert "teacher_model" not in kit.training.prepare(kit.job()).config


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
