"""What the recipes share that learn from the model's own answers, and those that learn from rewards of them."""

from __future__ import annotations

import numpy as np
from martlet_core.errors import FailedPrecondition, InvalidArgument
from martlet_core.reward_graders import asks_models

from martlet_trainer.data.encode import EncodedRow
from martlet_trainer.recipes.method import Lesson, MethodInputs, computation_on_rows
from martlet_trainer.recipes.options import AnswersOptions, RolloutOptions
from martlet_trainer.rewards import build, by_grader, one_by_one, require_columns, require_items
from martlet_trainer.training.replica_sampling import ReplicaSampler
from martlet_trainer.training.rollouts import Advantages, Rollouts, rollout_computation
from martlet_trainer.training.sampling import Answering, Sampler


def rollout_lesson(inputs: MethodInputs, options: RolloutOptions, advantages: Advantages) -> Lesson:
    """A training on questions.

    Raises:
        InvalidArgument: rows lack what a reward needs, or there is nothing to measure a divergence from.
    """
    examples = [*inputs.examples, *inputs.validation]
    require_columns(options.rewards, [example.columns for example in examples])
    require_items(options.graders, [(example.columns, example.turns) for example in examples])
    _check_reference(inputs, options)
    sampler = answering(inputs, options.rollouts, options.max_completion_length, options.temperature)
    probes = [EncodedRow(example.input_ids, np.ones(example.token_count, dtype=bool)) for example in inputs.examples]
    computation = computation_on_rows(inputs, probes)
    rewards = {reward.name: (reward.weight, one_by_one(build(reward))) for reward in options.rewards}
    for grader in options.graders:
        name = grader["name"]
        own = inputs.rewards[name] if asks_models(grader) else one_by_one(by_grader(grader))
        rewards[name] = (1.0, own)
    rewards |= {service.name: (service.weight, inputs.rewards[service.name]) for service in options.reward_services}
    epsilon = options.rollouts.epsilon if options.rollouts.via == "inference" else None
    rollouts = Rollouts(sampler, rewards, options.num_generations, epsilon)
    computation = rollout_computation(computation, rollouts, advantages, options.beta)
    return Lesson(computation, inputs.examples, inputs.validation)


def answering(inputs: MethodInputs, answers: AnswersOptions, max_tokens: int, temperature: float) -> Answering:
    """Draws the model's answers where the request says. To be made before the model's attention is replaced.

    Raises:
        FailedPrecondition: replicas are to answer, and there are none.
    """
    model = inputs.tuner.model
    if answers.via == "training":
        return Sampler(model, inputs.tokenizer, model.config._attn_implementation, max_tokens, temperature)
    if inputs.replica is None:
        raise FailedPrecondition(
            "recipe_options.rollouts.via is inference, and this training knows no replicas; it must be run by the trainer's worker.",
            reason="ROLLOUTS_NOT_SERVED",
        )
    return ReplicaSampler(
        model=model,
        tokenizer=inputs.tokenizer,
        replica=inputs.replica,
        save=inputs.tuner.save_weights,
        processes=inputs.processes,
        seed=inputs.config.seed,
        sync_steps=answers.sync_steps,
        max_tokens=max_tokens,
        temperature=temperature,
    )


def _check_reference(inputs: MethodInputs, options: RolloutOptions) -> None:
    """The reference is the model without its adapter: that must be there, and be what the training starts from."""
    if not options.beta:
        return
    tuner = inputs.config.tuner
    no_reference = tuner.facts.whole_model or tuner.facts.virtual_tokens or tuner.starts_inside_base
    if no_reference or inputs.continues_adapter:
        raise InvalidArgument.field(
            "spec.recipe_options.beta",
            "needs a new adapter that starts as the base model does, to measure from the model without it; set it to 0, tuner.kind to lora,"
            " or tuner.init_weights to default",
        )
