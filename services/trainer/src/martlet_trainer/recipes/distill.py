"""Generalized knowledge distillation (GKD, arXiv 2306.13649): the model learns its teacher's distributions, on given answers and on its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from martlet_core.errors import InvalidArgument

from martlet_trainer.config import parse_recipe_options
from martlet_trainer.data.encode import EncodedRow
from martlet_trainer.data.examples import EncodedExchange, encode_exchange
from martlet_trainer.recipes.answers import answering
from martlet_trainer.recipes.method import Lesson, Method, MethodInputs, computation_on_rows
from martlet_trainer.recipes.options import DistillOptions
from martlet_trainer.training.distillation import Distillation, distillation_computation
from martlet_trainer.training.teacher import load_teacher


def _prepare(inputs: MethodInputs) -> Lesson:
    options = parse_recipe_options(inputs.config)
    assert isinstance(options, DistillOptions)
    _require_answers(inputs, options)
    probes = [_probe(example) for example in inputs.examples]
    length, temperature = options.max_completion_length, options.temperature
    student = answering(inputs, options.rollouts, length, temperature)
    inputs.report.phase("loading teacher")
    teacher = load_teacher(inputs.given, inputs.tokenizer, inputs.placement, probes, length, temperature)
    what = Distillation(options.beta, options.lmbda, options.seq_kd)
    computation = distillation_computation(computation_on_rows(inputs, probes), student, teacher, what)
    return Lesson(computation, inputs.examples, inputs.validation)


def _require_answers(inputs: MethodInputs, options: DistillOptions) -> None:
    """Raises InvalidArgument where rows are to be learned from, or measured on, that have no answer."""
    sets: dict[str, Sequence[EncodedExchange]] = {"spec.validation_dataset": inputs.validation}
    if not options.draws_all:
        sets["spec.training_dataset"] = inputs.examples
    for field, examples in sets.items():
        lacking = sum(1 for example in examples if example.answered is None)
        if not lacking:
            continue
        if field == "spec.validation_dataset":
            raise InvalidArgument.field(
                field, f"{lacking} of {len(examples)} rows have no answer to measure on; add it"
            )
        raise InvalidArgument.field(
            field,
            f"{lacking} of {len(examples)} rows have no answer; add it, or have all answers drawn: recipe_options.lmbda 1 by the model"
            " that is trained, or recipe_options.seq_kd true by the teacher",
        )


def _probe(example: EncodedExchange) -> EncodedRow:
    """A row of the example's length, to try computations with."""
    ids = example.question.input_ids
    return example.answered or EncodedRow(ids, np.ones(len(ids), dtype=bool))


METHOD = Method(encode_exchange, _prepare)
