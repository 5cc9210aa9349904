"""What each word is (sequence labelling): the first token of a word says its class, the others say nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from martlet_trainer.data.head_examples import HeadExample, encode_tagged
from martlet_trainer.labels import label_id
from martlet_trainer.recipes.heads import head_lesson
from martlet_trainer.recipes.method import HeadInputs, Lesson, Method, MethodInputs
from martlet_trainer.training.head_batches import HeadBatch
from martlet_trainer.training.heads import Head
from martlet_trainer.training.loss import Loss
from martlet_trainer.training.scores import entity_scores

#: Class of tokens that say nothing, as transformers has it.
_NONE = -100


def _head(inputs: HeadInputs) -> Head:
    return Head("token_classification", inputs.labels)


def _prepare(inputs: MethodInputs) -> Lesson:
    names = inputs.head.labels

    def ids(example: HeadExample, length: int) -> list[int]:
        found = [_NONE if tag is None else label_id(names, tag) for tag in example.target]
        return found + [_NONE] * (length - len(found))

    def objective(outputs: Any, batch: HeadBatch) -> Loss:
        logits = outputs.logits.float()
        length = logits.shape[1]
        targets = torch.tensor([ids(example, length) for example in batch.examples], device=logits.device)
        counted = targets != _NONE
        losses = functional.cross_entropy(logits[counted], targets[counted], reduction="sum")
        found = logits.detach().argmax(dim=-1)
        right = ((found == targets) & counted).sum()

        def records() -> Sequence[Any]:
            rows = zip(found, targets, counted, strict=True)
            return [(one[words].tolist(), known[words].tolist()) for one, known, words in rows]

        return Loss(losses, {"accuracy": right}, records)

    def score(records: Sequence[Any]) -> dict[str, float]:
        chosen, actual = ([[names[tag] for tag in record[side]] for record in records] for side in (0, 1))
        return entity_scores(chosen, actual)

    return head_lesson(inputs, objective, ("accuracy",), score)


METHOD = Method(encode_tagged, _prepare, _head)
