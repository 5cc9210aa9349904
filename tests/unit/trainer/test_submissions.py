"""What is checked at submission: on in-memory stores, without an ML library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from martlet_core.errors import FailedPrecondition, InvalidArgument, NotFound, PermissionDenied
from martlet_trainer.config import parse_merge_config
from martlet_trainer.testing_jobs import BASE, ROW, SERVICE, distillation
from martlet_trainer.testing_jobs import JobKit as Kit


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


async def test_a_tracker_that_is_not_offered_is_refused(kit: Kit) -> None:
    await kit.check(trackers=[{"kind": "tensorboard"}])
    with pytest.raises(
        InvalidArgument, match=r"trackers\.1\.kind: is mlflow, .* \(offered are tensorboard\); leave it out"
    ):
        await kit.check(trackers=[{"kind": "tensorboard"}, {"kind": "mlflow"}])


def vocabulary(*tokens: str) -> str:
    model = {"type": "BPE", "vocab": {token: index for index, token in enumerate(tokens)}}
    return json.dumps({"model": model, "added_tokens": [{"id": len(tokens), "content": "<end>"}]})


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


@pytest.mark.parametrize("named", [True, False])
async def test_what_goes_on_from_bottlenecks_has_their_options(kit: Kit, named: bool) -> None:
    """By the model's name, or by the artifact's."""
    facts = {"tuner": "adapter", "options": {"adapter_length": 64, "adapter_act": "gelu"}}
    adapter = kit.artifact("adapter", {"adapter_config.json": "{}"}, base_model=BASE, **facts)
    if named:
        adapter = kit.publish("ft:b", "adapter", adapter, base_model=BASE, metadata={"tuner": "adapter"})
    await kit.check(base_model=adapter)
    await kit.check(base_model=adapter, tuner={"kind": "adapter", "options": {"adapter_length": 64}})
    for tuner, message in (
        ({"kind": "lora"}, r"tuner\.kind: is lora, but .* is an adapter of kind adapter; leave it out"),
        (
            {"kind": "adapter", "options": {"adapter_length": 8}},
            r"tuner\.options\.adapter_length: is 8, but .* has 64, which",
        ),
        ({"lora_rank": 4}, r"tuner\.lora_rank: is LoRA's"),
    ):
        with pytest.raises(InvalidArgument, match=message):
            await kit.check(base_model=adapter, tuner=tuner)
    with pytest.raises(FailedPrecondition, match="is of kind adapter, maps with an activation between them"):
        await kit.submissions.check_merge("acme", parse_merge_config({"adapter": adapter}))
