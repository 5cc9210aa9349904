"""Learning by the next token: the loss of ``sft`` and ``pretrain``."""

from __future__ import annotations

from martlet_trainer.recipes.training import Lesson, MethodInputs
from martlet_trainer.training.computation import choose_computation
from martlet_trainer.training.neftune import with_noise
from martlet_trainer.tuners.fused_lora import fuse


def next_token_lesson(inputs: MethodInputs) -> Lesson:
    """Cross-entropy of the targets of each row."""
    model = inputs.tuner.model
    alpha = inputs.config.hyperparameters.neftune_noise_alpha
    computation = choose_computation(
        model, inputs.examples, inputs.placement.device, inputs.config.data.packing, noisy=alpha is not None
    )
    fuse(model)
    computation = with_noise(computation, model, alpha)
    return Lesson(computation, inputs.examples, inputs.validation, {})
