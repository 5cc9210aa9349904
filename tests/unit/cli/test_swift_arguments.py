"""SWIFT's argument names: what they become, and that nothing is ignored."""

from __future__ import annotations

import argparse
import ast
import json
from pathlib import Path
from typing import Any

import pytest
from martlet.trainer.v1.training_job_pb2 import TrainingSpec
from martlet_cli import swift_arguments, swift_table, swift_tuners
from martlet_cli.__main__ import build_parser, main
from martlet_core.errors import InvalidArgument

ROOT = Path(__file__).parents[3]


def parse(*argv: str) -> argparse.Namespace:
    """The arguments of ``martlet train``."""
    return build_parser().parse_args(["train", *argv])


def request(*argv: str) -> dict[str, Any]:
    """The request that the arguments make."""
    return swift_arguments.request(parse("--model", "m", "--dataset", "d.jsonl", *argv))


def test_a_swift_command_line() -> None:
    line = """
        --train_type lora --lora_rank 16 --lora_alpha 32 --lora_dropout 0.1 --target_modules q_proj v_proj
        --learning_rate 1e-4 --num_train_epochs 2 --max_steps 30 --per_device_train_batch_size 4
        --gradient_accumulation_steps 2 --warmup_ratio 0.05 --lr_scheduler_type linear --eval_steps 10 --save_steps 20
        --max_length 512 --packing true --system Hi --split_dataset_ratio 0.1 --seed 7 --suffix news
    """
    body = request(*line.split())
    assert body == {
        "model": "m",
        "seed": 7,
        "suffix": "news",
        "martlet": {
            "tuner": {
                "kind": "lora",
                "lora_rank": 16,
                "lora_alpha": 32.0,
                "lora_dropout": 0.1,
                "target_modules": ["q_proj", "v_proj"],
            },
            "hyperparameters": {
                "epoch_count": 2.0,
                "max_steps": 30,
                "per_device_batch_size": 4,
                "gradient_accumulation_steps": 2,
                "learning_rate": 1e-4,
                "learning_rate_schedule": "linear",
                "warmup_ratio": 0.05,
                "eval_steps": 10,
            },
            "data": {"max_length": 512, "packing": True, "system": "Hi", "validation_split": 0.1},
            "checkpoints": {"interval_steps": 20},
        },
    }


@pytest.mark.parametrize(
    ("argv", "recipe", "options"),
    [
        (["--rlhf_type", "dpo", "--beta", "0.2", "--rpo_alpha", "1"], "dpo", {"beta": 0.2, "sft_weight": 1.0}),
        (
            ["--rlhf_type", "simpo", "--simpo_gamma", "0.5", "--cpo_alpha", "1"],
            "simpo",
            {"margin": 0.5, "sft_weight": 1.0},
        ),
        (["--rlhf_type", "kto", "--desirable_weight", "2"], "kto", {"desirable_weight": 2.0}),
        (["--rlhf_type", "orpo", "--recipe", "orpo"], "orpo", None),
        (["--rlhf_type", "rm", "--center_rewards_coefficient", "0.01"], "reward", {"center_rewards_coefficient": 0.01}),
        (["--task_type", "seq_cls", "--num_labels", "3"], "sequence_classification", {"num_labels": 3}),
        (
            ["--task_type", "seq_cls", "--problem_type", "multi_label_classification", "--labels", "a", "b"],
            "sequence_classification",
            {"problem_type": "multi_label_classification", "labels": ["a", "b"]},
        ),
        (["--task_type", "embedding", "--loss_type", "cosine_similarity"], "embedding", {"loss": "cosine_similarity"}),
        (["--task_type", "reranker", "--loss_type", "listwise_reranker"], "reranker", {"loss": "listwise"}),
        (
            ["--rlhf_type", "gkd", "--teacher_model", "t", "--lmbda", "1", "--seq_kd", "--beta", "0.9"],
            "distill",
            {"teacher_model": "t", "lmbda": 1.0, "seq_kd": True, "beta": 0.9},
        ),
        (
            [
                "--rlhf_type",
                "grpo",
                "--reward_funcs",
                "accuracy",
                "length",
                "--reward_weights",
                "1",
                "0.5",
                "--reward_length",
                "9",
            ],
            "grpo",
            {"rewards": [{"name": "accuracy", "weight": 1.0}, {"name": "length", "weight": 0.5, "target": 9}]},
        ),
        (
            [
                "--rlhf_type",
                "rloo",
                "--use_vllm",
                "true",
                "--vllm_mode",
                "server",
                "--sync_steps",
                "4",
                "--epsilon",
                "0.1",
            ],
            "rloo",
            {"rollouts": {"sync_steps": 4, "epsilon": 0.1, "via": "inference"}},
        ),
        (["--rlhf_type", "gkd", "--use_vllm"], "distill", {"rollouts": {"via": "inference"}}),
        (["--rlhf_type", "grpo", "--use_vllm", "false"], "grpo", None),
    ],
)
def test_preferences(argv: list[str], recipe: str, options: dict[str, Any] | None) -> None:
    found = request(*argv)["martlet"]
    assert (found["recipe"], found.get("recipe_options")) == (recipe, options)


def test_every_tuner_can_be_chosen() -> None:
    """The trainer isn't installed here, so its table is read as text."""
    source = (ROOT / "services/trainer/src/martlet_trainer/tuners/kinds.py").read_text()
    (table,) = (
        n.value for n in ast.parse(source).body if isinstance(n, ast.AnnAssign) and isinstance(n.value, ast.Dict)
    )
    assert tuple(ast.literal_eval(key) for key in table.keys if key is not None) == swift_tuners.TUNERS
    found = request("--tuner_type", "vera", "--tuner_options", "r=64", "d_initial=0.2")["martlet"]
    assert found["tuner"] == {"kind": "vera", "options": {"r": 64, "d_initial": 0.2}}


@pytest.mark.parametrize(
    ("argv", "wanted"),
    [
        (["adalora", "--adalora_target_r", "4", "--adalora_deltaT", "2"], {"options": {"target_r": 4, "deltaT": 2}}),
        (["lisa", "--lisa_activated_layers", "3"], {"options": {"activated_layers": 3}}),
        (["llamapro", "--llamapro_num_new_blocks", "2"], {"options": {"num_new_blocks": 2}}),
        (
            ["adapter", "--adapter_length", "64", "--adapter_act", "relu"],
            {"options": {"adapter_length": 64, "adapter_act": "relu"}},
        ),
        (
            ["full", "--freeze_parameters", "model.a", "model.b"],
            {"options": {"freeze_parameters": ["model.a", "model.b"]}},
        ),
        (["lora", "--target_regex", ".*q_proj"], {"target_regex": ".*q_proj"}),
        (["lora", "--init_weights", "lora-ga"], {"init_weights": "lora_ga"}),
    ],
)
def test_what_belongs_to_one_tuner(argv: list[str], wanted: dict[str, Any]) -> None:
    assert request("--tuner_type", *argv)["martlet"]["tuner"] == {"kind": argv[0], **wanted}


def test_galore() -> None:
    numbers = request("--tuner_type", "full", "--use_galore", "true", "--galore_rank", "64")["martlet"][
        "hyperparameters"
    ]
    assert numbers == {"optimizer": "galore_adamw", "projection_rank": 64}
    with pytest.raises(InvalidArgument, match="contradicts --optim sgd"):
        request("--use_galore", "--optim", "sgd")


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("default", {"assistant_only_loss": True, "last_round_only": False}),
        ("last_round", {"assistant_only_loss": True, "last_round_only": True}),
        ("all", {"assistant_only_loss": False, "last_round_only": False}),
    ],
)
def test_loss_scale(value: str, wanted: dict[str, bool]) -> None:
    assert request("--loss_scale", value)["martlet"]["data"] == wanted


@pytest.mark.parametrize("flag", ["--tuner_type", "--train_type", "--sft_type"])
def test_three_generations_of_the_tuners_name(flag: str) -> None:
    assert request(flag, "full")["martlet"] == {"tuner": {"kind": "full"}}


@pytest.mark.parametrize(
    ("argv", "tuner"),
    [
        (["--quant_method", "bnb", "--quant_bits", "4"], {"kind": "qlora", "quantization": "nf4"}),
        (["--quant_bits", "8"], {"kind": "qlora", "quantization": "int8"}),
        (["--tuner_type", "qlora"], {"kind": "qlora"}),
    ],
)
def test_quantized_base(argv: list[str], tuner: dict[str, str]) -> None:
    assert request(*argv)["martlet"]["tuner"] == tuner


@pytest.mark.parametrize(
    ("argv", "trackers"),
    [
        (["tensorboard"], [{"kind": "tensorboard"}]),
        (
            ["wandb", "mlflow", "--project", "birds", "--run_name", "one"],
            [{"kind": kind, "project": "birds", "run_name": "one"} for kind in ("wandb", "mlflow")],
        ),
    ],
)
def test_report_to_names_trackers(argv: list[str], trackers: list[dict[str, str]]) -> None:
    assert request("--report_to", *argv)["martlet"] == {"trackers": trackers}


def test_report_to_none_is_no_tracker() -> None:
    assert request("--report_to", "none") == request()


@pytest.mark.parametrize(("word", "value"), [("right", "TRUNCATE"), ("delete", "REFUSE")])
def test_long_rows(word: str, value: str) -> None:
    assert request("--truncation_strategy", word)["martlet"] == {"data": {"on_long_rows": value}}


def test_nothing_asked_for_means_the_services_defaults() -> None:
    assert request() == {"model": "m"}


@pytest.mark.parametrize(("argv", "value"), [(["--packing"], True), (["--packing", "false"], False)])
def test_booleans_stand_alone_or_with_a_value(argv: list[str], value: bool) -> None:
    assert request(*argv)["martlet"]["data"]["packing"] is value


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--quant_bits", "3"], "must be 4 or 8"),
        (["--tuner_type", "full", "--quant_bits", "4"], "can't be trained in full"),
        (["--val_dataset", "v", "--split_dataset_ratio", "0.1"], "leave one out"),
        (["--recipe", "sft", "--rlhf_type", "dpo"], "contradicts --recipe sft"),
        (["--project", "birds"], "name one with --report_to"),
        (["--rlhf_type", "dpo", "--task_type", "seq_cls"], "contradicts --rlhf_type dpo"),
        (["--tuner_options", "r"], "isn't NAME=VALUE"),
        (["--reward_funcs", "format", "--reward_weights", "1", "2"], "has 2 values for 1"),
        (["--reward_funcs", "format", "--reward_length", "9"], "add it to --reward_funcs"),
        (["--use_vllm", "true", "--vllm_mode", "colocate"], "use server"),
        (["--vllm_mode", "server"], "of --use_vllm true"),
        (["--rlhf_type", "cpo", "--cpo_alpha", "1", "--rpo_alpha", "1"], "can't be used together with --rpo_alpha"),
    ],
)
def test_contradictions_are_refused(argv: list[str], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        request(*argv)


def test_one_dataset_and_no_samples() -> None:
    assert swift_arguments.one_dataset("--dataset", ["a#b.jsonl"]) == "a#b.jsonl"
    with pytest.raises(InvalidArgument, match="2 were given"):
        swift_arguments.one_dataset("--dataset", ["a", "b"])
    with pytest.raises(InvalidArgument, match="#500"):
        swift_arguments.one_dataset("--dataset", ["a.jsonl#500"])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--lora_rnk", "8"], "did you mean --lora_rank"),
        (["--lora", "8"], "--lora isn't known"),
        (["--output_dir", "x"], "results are artifacts"),
        (["--deepspeed=zero9"], "none of zero2, zero3, fsdp2"),
    ],
)
def test_unknown_flags_are_refused_with_what_to_do(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--model", "m", "--dataset", "d", "--json", *argv]) == 2
    assert message in json.loads(capsys.readouterr().out)["error"]["message"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["train", "--num_train_epochs", "three"], "--num_train_epochs: invalid float value: 'three'"),
        (["train", "--tuner_type", "prefix"], "--sft_type: invalid choice: 'prefix'"),
        (["jobs", "show"], "the following arguments are required: id"),
        (["jobs", "lsit"], "invalid choice: 'lsit'"),
        (["nothing"], "invalid choice: 'nothing'"),
    ],
)
def test_wrong_arguments_are_said_as_they_were_asked_for(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*argv, "--json"]) == 2
    assert message in json.loads(capsys.readouterr().out)["error"]["message"]
    assert main(argv) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err.replace("\n", "")


@pytest.mark.parametrize("argument", [a for a in swift_table.ARGUMENTS if a.target], ids=lambda a: a.name)
def test_every_target_is_a_field_of_the_contract(argument: swift_table.Argument) -> None:
    message = TrainingSpec.DESCRIPTOR
    *parents, last = argument.target.split(".")
    if parents[:1] == ["recipe_options"]:  # the recipes' own, which the trainer judges
        assert "recipe_options" in message.fields_by_name
        return
    if parents == [
        "tuner",
        "options",
    ]:  # the tuners' own: the trainer isn't installed here, so its options are read as text
        options = (ROOT / "services/trainer/src/martlet_trainer/tuners/options.py").read_text()
        assert f"\n    {last}: " in options
        return
    for parent in parents:
        message = message.fields_by_name[parent].message_type
    assert last in message.fields_by_name
