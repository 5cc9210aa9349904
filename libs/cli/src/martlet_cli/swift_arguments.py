"""SWIFT's argument names, as ``martlet train`` takes them, and what each becomes in a fine-tuning request.

A name that isn't in the table is refused with the nearest ones; nothing is ignored in silence.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from martlet_core.errors import InvalidArgument
from martlet_core.model_rules import parse_hub_id

TUNERS = (
    *("lora", "qlora", "full", "loha", "lokr", "boft", "oft", "hra", "vera", "randlora", "vblora", "fourierft", "miss"),
    *("shira", "road", "delora", "ia3", "ln_tuning"),
)
STARTS = ("default", "gaussian", "orthogonal", "pissa", "olora")
SCHEDULES = ("linear", "cosine", "constant", "constant_with_warmup")
DTYPES = ("auto", "float32", "bfloat16", "float16")
#: SWIFT's word for what happens to rows that are too long -> ours.
LONG_ROWS = {"right": "TRUNCATE", "delete": "REFUSE"}
PREFERENCES = ("dpo", "orpo", "cpo", "simpo", "kto", "grpo", "rloo")
REWARDS = ("accuracy", "format", "regex", "length")
_NUMBERS = "hyperparameters"
_OPTIONS = "recipe_options"


def boolean(text: str) -> bool:
    """``true`` and ``false`` as SWIFT takes them."""
    if text.lower() in ("true", "1", "yes"):
        return True
    if text.lower() in ("false", "0", "no"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")


@dataclass(frozen=True)
class Argument:
    """One argument.

    Attributes:
        name: SWIFT's name.
        target: dotted place in the request's ``martlet`` object; empty for those that ``request`` treats by hand.
        kind: converts the text; ``boolean`` ones may stand without a value.
        help: what it does, with its unit and default.
        many: takes several values.
        older: names it had in earlier versions of SWIFT.
        choices: what is allowed; None: any.
    """

    name: str
    target: str
    kind: Any
    help: str
    many: bool = False
    older: tuple[str, ...] = ()
    choices: tuple[str, ...] | None = None

    @property
    def attribute(self) -> str:
        """Where the parser puts its value."""
        return self.name.removeprefix("--")


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
        Argument("--loss_scale", "", str, "loss on assistant tokens (default) or on all", choices=("default", "all")),
    ),
    "tuner": (
        Argument(
            "--tuner_type", "tuner.kind", str, "default lora", older=("--train_type", "--sft_type"), choices=TUNERS
        ),
        Argument("--lora_rank", "tuner.lora_rank", int, "rank of the LoRA matrices (default 8)"),
        Argument("--lora_alpha", "tuner.lora_alpha", float, "updates are scaled by alpha / rank (default 2 x rank)"),
        Argument("--lora_dropout", "tuner.lora_dropout", float, "dropout in front of LoRA (default 0)"),
        Argument("--target_modules", "tuner.target_modules", str, "modules to adapt (default all-linear)", many=True),
        Argument("--modules_to_save", "tuner.modules_to_save", str, "modules trained in full beside", many=True),
        Argument("--use_rslora", "tuner.use_rslora", boolean, "scale by alpha / sqrt(rank)"),
        Argument("--use_dora", "tuner.use_dora", boolean, "magnitude and direction apart (DoRA)"),
        Argument(
            "--tuner_options", "", str, "what only the chosen tuner knows, such as r=16 n_frequency=500", many=True
        ),
        Argument("--init_weights", "tuner.init_weights", str, "start of LoRA's matrices", choices=STARTS),
        Argument(
            "--lorap_lr_ratio", f"{_NUMBERS}.lora_plus_ratio", float, "learning rate of LoRA's B beside A's (LoRA+)"
        ),
        Argument("--quant_method", "", str, "keep the frozen base quantized (QLoRA)", choices=("bnb",)),
        Argument("--quant_bits", "", int, "4 (nf4) or 8 (int8), with --quant_method bnb"),
    ),
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
            "learn from pairs of answers, from verdicts (kto), or from rewards (grpo, rloo)",
            choices=PREFERENCES,
        ),
        Argument(
            "--beta",
            f"{_OPTIONS}.beta",
            float,
            "width of the loss's slope (default 0.1; simpo 2.0; grpo, rloo: 0, no divergence)",
        ),
        Argument(
            "--loss_type", f"{_OPTIONS}.loss", str, "of dpo (default sigmoid)", choices=("sigmoid", "hinge", "ipo")
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
        Argument("--temperature", f"{_OPTIONS}.temperature", float, "of sampling answers (default 0.9)"),
        Argument(
            "--scale_rewards", f"{_OPTIONS}.scale_rewards", boolean, "divide by their spread, grpo (default true)"
        ),
    ),
    "job": (
        Argument("--recipe", "recipe", str, "algorithm (default sft); pretrain for plain texts"),
        Argument("--suffix", "", str, "part of the fine-tuned model's name, up to 64 of A-Z a-z 0-9 . _ -"),
        Argument("--device_count", "resources.device_count", int, "devices in one training (default 1)"),
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
    "--report_to": "metrics are in `martlet jobs show ID` and in the job's metrics file",
    "--deepspeed": "use --device_count; the recipe chooses how to spread the work",
    "--adapters": "give the fine-tuned model's name as --model",
    "--model_type": "it is read from the model's own config",
    "--template": "the model's own chat template is used",
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
    return options | {"metavar": {int: "N", float: "X", str: "TEXT"}[argument.kind]}


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
    _put_preferences(extension, arguments)
    _put_rewards(extension, arguments)
    for option in arguments.tuner_options or ():
        _put_tuner_option(extension, option)
    if arguments.strict is not None:
        _put(extension, "data.on_bad_rows", "FAIL" if arguments.strict else "SKIP")
    if arguments.truncation_strategy is not None:
        _put(extension, "data.on_long_rows", LONG_ROWS[arguments.truncation_strategy])
    if arguments.loss_scale is not None:
        _put(extension, "data.assistant_only_loss", arguments.loss_scale == "default")
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


def _put_preferences(extension: dict[str, Any], arguments: argparse.Namespace) -> None:
    """``--rlhf_type`` is SWIFT's word for the recipe, and ``--cpo_alpha`` one for a weight that has two there."""
    if arguments.rlhf_type is not None:
        if arguments.recipe not in (None, arguments.rlhf_type):
            raise InvalidArgument.field("--rlhf_type", f"contradicts --recipe {arguments.recipe}; give one of them")
        _put(extension, "recipe", arguments.rlhf_type)
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
