"""SWIFT's argument names, as ``martlet train`` takes them, and what each becomes in a fine-tuning request.

A name that isn't in the table is refused with the nearest ones; nothing is ignored in silence.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from martlet_core.errors import InvalidArgument
from martlet_core.model_rules import parse_hub_id

from martlet_cli.swift_argument import Argument, boolean, sharding
from martlet_cli.swift_tuners import KIND_ARGUMENTS, TUNER_ARGUMENTS

SCHEDULES = ("linear", "cosine", "constant", "constant_with_warmup")
DTYPES = ("auto", "float32", "bfloat16", "float16")
#: SWIFT's word for what happens to rows that are too long -> ours.
LONG_ROWS = {"right": "TRUNCATE", "delete": "REFUSE"}
#: SWIFT's ``--rlhf_type`` -> our recipe.
PREFERENCES: Mapping[str, str] = {
    **{name: name for name in ("dpo", "orpo", "cpo", "simpo", "kto", "grpo", "rloo")},
    "gkd": "distill",
    "rm": "reward",
}
TRACKERS = ("tensorboard", "wandb", "mlflow", "none")
REWARDS = ("accuracy", "format", "regex", "length")
#: SWIFT's word for what a model ends in -> the recipe.
TASKS = {"causal_lm": None, "seq_cls": "sequence_classification", "embedding": "embedding", "reranker": "reranker"}
PROBLEMS = ("single_label_classification", "multi_label_classification", "regression")
LOSSES = (
    *("sigmoid", "hinge", "ipo"),
    *("infonce", "cosine_similarity", "contrastive"),
    *("pointwise", "listwise"),
)
_NUMBERS = "hyperparameters"
_OPTIONS = "recipe_options"


def loss_type(text: str) -> str:
    """A loss by SWIFT's name, which says of rerankers' losses whose they are."""
    return text.removesuffix("_reranker")


GROUPS: Mapping[str, tuple[Argument, ...]] = {
    "model and data": (
        Argument("--model", "", str, "base model: a registered name, a hub id, artifacts/<id>, or a fine-tuned model"),
        Argument(
            "--dataset",
            "",
            str,
            "rows to train on: local files, ids of uploaded ones, or data sets of a hub (hf:org/name@commit); FILE#500 draws 500 rows",
            many=True,
        ),
        Argument("--use_hf", "", boolean, "true (default): hub ids are Hugging Face's; false: ModelScope's"),
        Argument("--val_dataset", "", str, "rows to validate on: a local file or an id", many=True),
        Argument("--split_dataset_ratio", "data.validation_split", float, "share of the rows to validate on, 0 to 0.5"),
        Argument("--system", "data.system", str, "system message for rows that have none"),
        Argument("--max_length", "data.max_length", int, "longest row in tokens (default: the context, at most 2048)"),
        Argument(
            "--truncation_strategy",
            "",
            str,
            "rows beyond --max_length: right (default) cuts them, delete makes bad rows of them (see --strict)",
            choices=tuple(LONG_ROWS),
        ),
        Argument("--packing", "data.packing", boolean, "several rows in one sequence; they don't see one another"),
        Argument("--strict", "", boolean, "true (default): a bad row fails the job; false: it is left out and counted"),
        Argument(
            "--loss_scale",
            "",
            str,
            "loss on the assistant's turns (default), on those behind the user's last turn, or on all tokens",
            choices=("default", "last_round", "all"),
        ),
    ),
    "tuner": TUNER_ARGUMENTS,
    "tuners of one kind": KIND_ARGUMENTS,
    "training": (
        Argument("--num_train_epochs", f"{_NUMBERS}.epoch_count", float, "passes over the data (default 3)"),
        Argument("--max_steps", f"{_NUMBERS}.max_steps", int, "optimizer steps; goes before --num_train_epochs"),
        Argument("--learning_rate", f"{_NUMBERS}.learning_rate", float, "peak (default 2e-4; full training 1e-5)"),
        Argument("--per_device_train_batch_size", f"{_NUMBERS}.per_device_batch_size", int, "rows a step (default 8)"),
        Argument(
            "--gradient_accumulation_steps",
            f"{_NUMBERS}.gradient_accumulation_steps",
            int,
            "micro-batches in one step (default 1)",
        ),
        Argument("--lr_scheduler_type", f"{_NUMBERS}.learning_rate_schedule", str, "default cosine", choices=SCHEDULES),
        Argument("--warmup_ratio", f"{_NUMBERS}.warmup_ratio", float, "share of the steps warming up (default 0.03)"),
        Argument("--weight_decay", f"{_NUMBERS}.weight_decay", float, "AdamW's weight decay (default 0)"),
        Argument("--max_grad_norm", f"{_NUMBERS}.max_grad_norm", float, "gradient norm to clip at (default 1)"),
        Argument("--optim", f"{_NUMBERS}.optimizer", str, "by its transformers name (default adamw_torch)"),
        Argument("--torch_dtype", f"{_NUMBERS}.precision", str, "default: what the device is fast at", choices=DTYPES),
        Argument("--gradient_checkpointing", f"{_NUMBERS}.gradient_checkpointing", boolean, "saves memory, costs time"),
        Argument("--neftune_noise_alpha", f"{_NUMBERS}.neftune_noise_alpha", float, "noise on embeddings (NEFTune)"),
        Argument("--eval_steps", f"{_NUMBERS}.eval_steps", int, "steps between validations (default: each epoch)"),
        Argument(
            "--early_stopping_patience",
            f"{_NUMBERS}.early_stopping_patience",
            int,
            "validations without gain before it stops",
        ),
        Argument("--save_steps", "checkpoints.interval_steps", int, "steps between checkpoints (default: every 300 s)"),
        Argument("--seed", "", int, "random seed (default 42)"),
    ),
    "preferences": (
        Argument(
            "--rlhf_type",
            "",
            str,
            "learn from pairs of answers, from verdicts (kto), from rewards (grpo, rloo), or from a teacher (gkd); rm: a reward model, from pairs",
            choices=tuple(PREFERENCES),
        ),
        Argument(
            "--beta",
            f"{_OPTIONS}.beta",
            float,
            "width of the loss's slope (default 0.1; simpo 2.0; grpo, rloo: 0, no divergence); gkd: 0 forward KL to 1 reverse (0.5)",
        ),
        Argument(
            "--loss_type",
            f"{_OPTIONS}.loss",
            loss_type,
            "of dpo (default sigmoid), embedding (default infonce) or reranker (default pointwise)",
            choices=LOSSES,
        ),
        Argument(
            "--label_smoothing",
            f"{_OPTIONS}.label_smoothing",
            float,
            "share of dpo's pairs that are the wrong way round",
        ),
        Argument(
            "--rpo_alpha", f"{_OPTIONS}.sft_weight", float, "weight of the chosen answer's own loss, dpo (default 0)"
        ),
        Argument("--cpo_alpha", "", float, "the same, cpo (default 1) and simpo (default 0)"),
        Argument("--simpo_gamma", f"{_OPTIONS}.margin", float, "lead that simpo asks for (default 1)"),
        Argument(
            "--desirable_weight", f"{_OPTIONS}.desirable_weight", float, "weight of kto's good answers (default 1)"
        ),
        Argument("--undesirable_weight", f"{_OPTIONS}.undesirable_weight", float, "weight of its bad ones (default 1)"),
    ),
    "distillation": (
        Argument("--teacher_model", f"{_OPTIONS}.teacher_model", str, "whom gkd learns from; named as --model"),
        Argument("--lmbda", f"{_OPTIONS}.lmbda", float, "share of batches that the model answers itself (default 0.5)"),
        Argument("--seq_kd", f"{_OPTIONS}.seq_kd", boolean, "the teacher answers the other batches (default false)"),
    ),
    "rewards": (
        Argument(
            "--reward_funcs", "", str, "rewards of grpo and rloo by name (default accuracy)", many=True, choices=REWARDS
        ),
        Argument("--reward_weights", "", float, "their weights, in the same order (default 1 each)", many=True),
        Argument("--reward_pattern", "", str, "what the reward regex looks for"),
        Argument("--reward_length", "", int, "tokens that the reward length wants"),
        Argument("--num_generations", f"{_OPTIONS}.num_generations", int, "answers to each question (default 8)"),
        Argument(
            "--max_completion_length", f"{_OPTIONS}.max_completion_length", int, "tokens of an answer (default 256)"
        ),
        Argument("--temperature", f"{_OPTIONS}.temperature", float, "of answers (default 0.9), or of infonce (0.05)"),
        Argument(
            "--scale_rewards", f"{_OPTIONS}.scale_rewards", boolean, "divide by their spread, grpo (default true)"
        ),
    ),
    "tracking": (
        Argument(
            "--report_to",
            "",
            str,
            "tools that are told of the training (default none); those that the deployment offers",
            many=True,
            choices=TRACKERS,
        ),
        Argument("--project", "", str, "their project, experiment or folder (default martlet)"),
        Argument("--run_name", "", str, "name of the run there (default: the job's id)"),
    ),
    "heads": (
        Argument("--task_type", "", str, "what the model ends in (default causal_lm)", choices=tuple(TASKS)),
        Argument(
            "--problem_type", f"{_OPTIONS}.problem_type", str, "of seq_cls (default: one class)", choices=PROBLEMS
        ),
        Argument("--num_labels", f"{_OPTIONS}.num_labels", int, "classes, or numbers (default: as the rows have)"),
        Argument("--labels", f"{_OPTIONS}.labels", str, "names of the classes, in order", many=True),
        Argument(
            "--center_rewards_coefficient",
            f"{_OPTIONS}.center_rewards_coefficient",
            float,
            "of rm: keeps rewards near 0 (default 0)",
        ),
        Argument(
            "--pooling",
            f"{_OPTIONS}.pooling",
            str,
            "of embedding: which tokens' states (default: the model's own)",
            choices=("auto", "mean", "last", "cls"),
        ),
    ),
    "job": (
        Argument("--recipe", "recipe", str, "algorithm (default sft); pretrain for plain texts"),
        Argument("--suffix", "", str, "part of the fine-tuned model's name, up to 64 of A-Z a-z 0-9 . _ -"),
        Argument("--device_count", "resources.device_count", int, "devices in one training (default 1)"),
        Argument("--deepspeed", "resources.sharding", sharding, "zero2 or zero3: what is spread over the devices"),
        Argument("--fsdp", "resources.sharding", sharding, "fsdp2: as --deepspeed zero3"),
        Argument("--priority", "resources.priority", int, "place in the queue, 0 (low) to 9 (high)"),
    ),
}
ARGUMENTS: tuple[Argument, ...] = tuple(argument for group in GROUPS.values() for argument in group)

#: Names that SWIFT's users type and that mean nothing here; what to do instead.
NOT_NEEDED: Mapping[str, str] = {
    "--output_dir": "results are artifacts: `martlet artifacts list`, `martlet artifacts download`",
    "--add_version": "each job has its own id",
    "--save_total_limit": "the last two checkpoints and the best are kept",
    "--resume_from_checkpoint": "a job resumes by itself, or with `martlet jobs resume ID`",
    "--logging_steps": "every step is reported",
    "--adapters": "give the fine-tuned model's name as --model",
    "--model_type": "it is read from the model's own config",
    "--template": "the model's own chat template is used",
    "--use_liger_kernel": "the trainer's own loss needs no logits, and its attention no padding; Liger's kernels aren't there yet",
    "--merge_lora": "`martlet merge MODEL`, when the job has succeeded",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a parser all the training arguments, in groups."""
    for title, arguments in GROUPS.items():
        group = parser.add_argument_group(title)
        for argument in arguments:
            group.add_argument(argument.name, *argument.older, **_options(argument))


def _options(argument: Argument) -> dict[str, Any]:
    options: dict[str, Any] = {"help": argument.help, "type": argument.kind, "dest": argument.attribute}
    if argument.many:
        return options | {"nargs": "+", "metavar": "VALUE", "choices": argument.choices}
    if argument.kind is boolean:
        return options | {"nargs": "?", "const": True, "metavar": "true|false"}
    if argument.choices:
        return options | {"choices": argument.choices}
    return options | {"metavar": {int: "N", float: "X"}.get(argument.kind, "TEXT")}


def request(arguments: argparse.Namespace) -> dict[str, Any]:
    """The body of ``POST /v1/fine_tuning/jobs`` without its files.

    Raises:
        InvalidArgument: for arguments that contradict one another or are missing.
    """
    if not arguments.model:
        raise InvalidArgument.field("--model", "is required, for example --model smollm2-135m-instruct")
    extension: dict[str, Any] = {}
    for argument in ARGUMENTS:
        value = getattr(arguments, argument.attribute)
        if argument.target and value is not None:
            _put(extension, argument.target, value)
    _put_quantization(extension, arguments)
    _put_recipe(extension, arguments)
    _put_preferences(extension, arguments)
    _put_rewards(extension, arguments)
    _put_galore(extension, arguments)
    _put_trackers(extension, arguments)
    for option in arguments.tuner_options or ():
        _put_tuner_option(extension, option)
    if arguments.strict is not None:
        _put(extension, "data.on_bad_rows", "FAIL" if arguments.strict else "SKIP")
    if arguments.truncation_strategy is not None:
        _put(extension, "data.on_long_rows", LONG_ROWS[arguments.truncation_strategy])
    if arguments.loss_scale is not None:
        _put(extension, "data.assistant_only_loss", arguments.loss_scale != "all")
        _put(extension, "data.last_round_only", arguments.loss_scale == "last_round")
    if arguments.split_dataset_ratio and arguments.val_dataset:
        raise InvalidArgument.field("--split_dataset_ratio", "can't be used together with --val_dataset; leave one out")
    body: dict[str, Any] = {"model": hub_id(arguments.model, arguments.use_hf)}
    body |= {name: value for name in ("seed", "suffix") if (value := getattr(arguments, name)) is not None}
    return body | ({"martlet": extension} if extension else {})


def hub_id(name: str, use_hf: bool | None) -> str:
    """A name with SWIFT's ``--use_hf false`` in it: ``org/model`` without a hub's prefix is ModelScope's then."""
    plain = parse_hub_id(name) is not None and not name.startswith(("hf:", "ms:"))
    return f"ms:{name}" if plain and use_hf is False and not Path(name).exists() else name


def one_dataset(flag: str, values: list[str]) -> str:
    """The one data set that is taken there, whole.

    Raises:
        InvalidArgument: for several, or SWIFT's ``path#count`` form.
    """
    if len(values) != 1:
        raise InvalidArgument.field(flag, f"takes one data set, {len(values)} were given; join the files first")
    name, count = sampled(values[0])
    if count is not None:
        raise InvalidArgument.field(
            flag, f"samples (#{count}) can't be taken here; write the rows to a file of their own"
        )
    return name


def sampled(value: str) -> tuple[str, int | None]:
    """SWIFT's ``path#count``: the data set, and how many of its rows; None for all."""
    path, hash_mark, count = value.rpartition("#")
    return (path, int(count)) if hash_mark and path and count.isdigit() else (value, None)


def _put_quantization(extension: dict[str, Any], arguments: argparse.Namespace) -> None:
    """``--quant_method bnb --quant_bits 4`` is SWIFT's way to say QLoRA."""
    if arguments.quant_bits is None and arguments.quant_method is None:
        return
    if arguments.tuner_type == "full":
        raise InvalidArgument.field("--quant_bits", "a quantized base can't be trained in full; use --tuner_type lora")
    bits = 4 if arguments.quant_bits is None else arguments.quant_bits
    if bits not in (4, 8):
        raise InvalidArgument.field("--quant_bits", f"is {bits}; it must be 4 or 8")
    _put(extension, "tuner.kind", "qlora")
    _put(extension, "tuner.quantization", "nf4" if bits == 4 else "int8")


def _put_recipe(extension: dict[str, Any], arguments: argparse.Namespace) -> None:
    """``--rlhf_type`` and ``--task_type`` are SWIFT's words for the recipe."""
    words = {"--rlhf_type": PREFERENCES.get(arguments.rlhf_type), "--task_type": TASKS.get(arguments.task_type)}
    chosen = {"--recipe": arguments.recipe} | words
    given = {flag: recipe for flag, recipe in chosen.items() if recipe is not None}
    (first, recipe), *others = given.items() or [("", None)]
    for flag, other in others:
        if other != recipe:
            raise InvalidArgument.field(flag, f"contradicts {first} {getattr(arguments, first[2:])}; give one of them")
    if recipe is not None:
        _put(extension, "recipe", recipe)


def _put_preferences(extension: dict[str, Any], arguments: argparse.Namespace) -> None:
    """``--cpo_alpha`` is one word for a weight that has two in SWIFT."""
    if arguments.cpo_alpha is not None:
        if arguments.rpo_alpha is not None:
            raise InvalidArgument.field("--cpo_alpha", "can't be used together with --rpo_alpha; give the recipe's own")
        _put(extension, f"{_OPTIONS}.sft_weight", arguments.cpo_alpha)


def _put_rewards(extension: dict[str, Any], arguments: argparse.Namespace) -> None:
    """SWIFT's lists of names and of weights are one list of rewards here."""
    names, weights = arguments.reward_funcs or [], arguments.reward_weights or []
    if weights and len(weights) != len(names):
        raise InvalidArgument.field("--reward_weights", f"has {len(weights)} values for {len(names)} of --reward_funcs")
    own = {"regex": ("--reward_pattern", "pattern"), "length": ("--reward_length", "target")}
    for reward, (flag, _) in own.items():
        if getattr(arguments, flag.removeprefix("--")) is not None and reward not in names:
            raise InvalidArgument.field(flag, f"belongs to the reward {reward}; add it to --reward_funcs")
    rewards = []
    for index, name in enumerate(names):
        reward = {"name": name} | ({"weight": weights[index]} if weights else {})
        if name in own:
            flag, field = own[name]
            reward[field] = getattr(arguments, flag.removeprefix("--"))
        rewards.append({key: value for key, value in reward.items() if value is not None})
    if rewards:
        _put(extension, f"{_OPTIONS}.rewards", rewards)


def _put_galore(extension: dict[str, Any], arguments: argparse.Namespace) -> None:
    """SWIFT's way to say which optimizer."""
    if not arguments.use_galore:
        return
    if arguments.optim not in (None, "galore_adamw"):
        raise InvalidArgument.field("--use_galore", f"contradicts --optim {arguments.optim}; give one of them")
    _put(extension, f"{_NUMBERS}.optimizer", "galore_adamw")


def _put_trackers(extension: dict[str, Any], arguments: argparse.Namespace) -> None:
    """``--report_to`` names tools; what else is said of a run holds for each of them."""
    kinds = [kind for kind in arguments.report_to or () if kind != "none"]
    own = {"project": arguments.project, "run_name": arguments.run_name}
    own = {name: value for name, value in own.items() if value is not None}
    if own and not kinds:
        raise InvalidArgument.field(f"--{next(iter(own))}", "is of a tracker; name one with --report_to")
    if kinds:
        _put(extension, "trackers", [{"kind": kind, **own} for kind in kinds])


def _put_tuner_option(extension: dict[str, Any], text: str) -> None:
    """``NAME=VALUE``; a value is JSON where it is that, else text."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise InvalidArgument.field("--tuner_options", f"{text!r} isn't NAME=VALUE, such as r=16")
    try:
        parsed = json.loads(value)
    except ValueError:
        parsed = value
    _put(extension, f"tuner.options.{name}", parsed)


def _put(target: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for parent in parents:
        target = target.setdefault(parent, {})
    target[last] = value
