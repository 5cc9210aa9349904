"""Learning by the next token: the loss of ``sft`` and ``pretrain``."""

from __future__ import annotations

from martlet_trainer.recipes.method import Lesson, MethodInputs, computation_on_rows


def next_token_lesson(inputs: MethodInputs) -> Lesson:
    """Cross-entropy of the targets of each row."""
    computation = computation_on_rows(inputs, inputs.examples, packing=inputs.config.data.packing)
    return Lesson(computation, inputs.examples, inputs.validation)
