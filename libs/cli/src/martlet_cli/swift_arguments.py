"""SWIFT's argument names, as ``martlet train`` takes them, and what each becomes in a fine-tuning request.

A name that isn't in the table is refused with the nearest ones; nothing is ignored in silence.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from martlet_core.errors import InvalidArgument
from martlet_core.model_rules import parse_hub_id

from martlet_cli.swift_argument import Argument, boolean
from martlet_cli.swift_table import ARGUMENTS, GROUPS, LONG_ROWS, NUMBERS, OPTIONS, PREFERENCES, TASKS


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
    _put_rollouts(extension, arguments)
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
        _put(extension, f"{OPTIONS}.sft_weight", arguments.cpo_alpha)


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
        _put(extension, f"{OPTIONS}.rewards", rewards)


def _put_rollouts(extension: dict[str, Any], arguments: argparse.Namespace) -> None:
    """``--use_vllm true --vllm_mode server`` is SWIFT's way to have answers drawn by a server of its own."""
    if arguments.vllm_mode == "colocate":
        text = "colocate isn't there: replicas are processes of their own; use server, or leave --use_vllm out"
        raise InvalidArgument.field("--vllm_mode", text)
    if arguments.vllm_mode is not None and not arguments.use_vllm:
        raise InvalidArgument.field("--vllm_mode", "is of --use_vllm true; give that too, or leave it out")
    if arguments.use_vllm:
        _put(extension, f"{OPTIONS}.rollouts.via", "inference")


def _put_galore(extension: dict[str, Any], arguments: argparse.Namespace) -> None:
    """SWIFT's way to say which optimizer."""
    if not arguments.use_galore:
        return
    if arguments.optim not in (None, "galore_adamw"):
        raise InvalidArgument.field("--use_galore", f"contradicts --optim {arguments.optim}; give one of them")
    _put(extension, f"{NUMBERS}.optimizer", "galore_adamw")


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
