"""What a recipe is: a ``METHOD``, what it is given, and what it makes of that."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from martlet_core.recipe import Report
from transformers import PreTrainedTokenizerBase

from martlet_trainer.config import TrainingConfig
from martlet_trainer.data.encode import EncodedRow, RowEncoder
from martlet_trainer.data.examples import Encode
from martlet_trainer.recipes import RECIPES
from martlet_trainer.replicas import Replica
from martlet_trainer.rewards import Rewards
from martlet_trainer.training.computation import Computation, choose_computation
from martlet_trainer.training.devices import Placement
from martlet_trainer.training.heads import CAUSAL_LM, Head
from martlet_trainer.training.neftune import with_noise
from martlet_trainer.training.processes import Processes
from martlet_trainer.tuners.base import Tuner
from martlet_trainer.tuners.fused_lora import fuse


@dataclass(frozen=True)
class MethodInputs:
    """What a method builds its computation from.

    Attributes:
        config: the resolved config.
        tuner: the model and its trainable part.
        tokenizer: the base model's.
        given: directory of the job's inputs, one a name.
        examples: training examples.
        validation: validation examples.
        placement: device and arithmetic.
        processes: this process among the training's.
        continues_adapter: whether the training goes on with an adapter that was trained before.
        resume: the checkpoint that the training goes on from; None for a fresh start.
        rewards: those that were made outside, by name.
        replica: replicas that answer for the model; None where there are none.
        head: what the model ends in.
        report: told about phases.
        check_stop: called now and then; raises StopRequested.
    """

    config: TrainingConfig
    tuner: Tuner
    tokenizer: PreTrainedTokenizerBase
    given: Path
    examples: Sequence[Any]
    validation: Sequence[Any]
    placement: Placement
    processes: Processes
    continues_adapter: bool
    resume: Path | None
    rewards: Mapping[str, Rewards]
    replica: Replica | None
    head: Head
    report: Report
    check_stop: Callable[[], None]


@dataclass(frozen=True)
class Lesson:
    """How a training computes, and what it computes on.

    Attributes:
        computation: how batches are made and what their loss is.
        examples: training examples, with all that the computation needs.
        validation: validation examples alike.
        state: what of them must be found again when the training goes on.
    """

    computation: Computation
    examples: Sequence[Any]
    validation: Sequence[Any]
    state: Mapping[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class HeadInputs:
    """What a method chooses a head by.

    Attributes:
        config: the config, with ``max_length`` filled in.
        base_model: directory of the base model.
        labels: names of the classes, of recipes that have any.
    """

    config: TrainingConfig
    base_model: Path
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Method:
    """What tells one recipe from another.

    Attributes:
        encode: makes examples of rows, given a row encoder.
        prepare: chooses the computation.
        head: chooses what the model ends in.
    """

    encode: Callable[[RowEncoder], Encode]
    prepare: Callable[[MethodInputs], Lesson]
    head: Callable[[HeadInputs], Head] = lambda inputs: CAUSAL_LM


def computation_on_rows(inputs: MethodInputs, rows: Sequence[EncodedRow], *, packing: bool = False) -> Computation:
    """How the model computes on rows, with its LoRA layers fused and the noise that the request asks for."""
    model, alpha = inputs.tuner.model, inputs.config.hyperparameters.neftune_noise_alpha
    computation = choose_computation(model, rows, inputs.placement.device, packing, noisy=alpha is not None)
    fuse(model)
    return with_noise(computation, model, alpha)


def load_method(recipe: str) -> Method:
    """The method of a recipe by name."""
    return importlib.import_module(RECIPES[recipe].module).METHOD
