"""Embeddings: texts that belong together come to lie near one another, by the cosine of the angle between them.

``infonce`` (arXiv 1807.03748) takes all other texts of the batch for negatives, those of a row's own among them: a row's loss depends on its
batch, so several processes don't train as one with the same global batch. ``cosine_similarity`` is the squared error of the cosine, and
``contrastive`` Hadsell et al.'s loss (2006) on the cosine distance, both as sentence-transformers computes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from martlet_core.errors import InvalidArgument
from martlet_inputs.base_models.model_files import files_in
from torch.nn import functional

from martlet_trainer.base_tasks import is_encoder
from martlet_trainer.config import parse_recipe_options
from martlet_trainer.data.head_examples import encode_neighbours
from martlet_trainer.recipes.heads import head_lesson
from martlet_trainer.recipes.method import HeadInputs, Lesson, Method, MethodInputs
from martlet_trainer.recipes.options import EmbeddingOptions
from martlet_trainer.training.head_batches import HeadBatch, pooled
from martlet_trainer.training.heads import Head, pooling_in
from martlet_trainer.training.loss import Loss
from martlet_trainer.training.scores import spearman


def _head(inputs: HeadInputs) -> Head:
    options = parse_recipe_options(inputs.config)
    assert isinstance(options, EmbeddingOptions)
    pooling = options.pooling
    if pooling == "auto":
        files = files_in(inputs.base_model)
        pooling = pooling_in(inputs.base_model) or ("mean" if is_encoder(files.config) else "last")
    return Head("embedding", pooling=pooling, max_length=inputs.config.data.max_length or 0)


def _prepare(inputs: MethodInputs) -> Lesson:
    options = parse_recipe_options(inputs.config)
    assert isinstance(options, EmbeddingOptions)
    _require_negatives(inputs, options)

    def objective(outputs: Any, batch: HeadBatch) -> Loss:
        vectors = pooled(outputs.last_hidden_state, batch.inputs["attention_mask"], inputs.head.pooling)
        places = list(batch.places())
        anchors = torch.stack([vectors[place.start] for place in places])
        positives = torch.stack([vectors[place.start + 1] for place in places])
        cosines = (anchors * positives).sum(dim=1)
        measured = {"cosine": cosines.detach().sum()}
        if options.loss != "infonce":
            scores = torch.tensor([example.target for example in batch.examples], device=cosines.device)
            losses = _scored(cosines, scores, options)

            def told() -> Sequence[Any]:
                return list(zip(cosines.tolist(), scores.tolist(), strict=True))

            return Loss(losses.sum(), measured, told)
        candidates = torch.cat([positives, *(vectors[place.start + 2 : place.stop] for place in places)])
        own = torch.arange(len(anchors), device=anchors.device)
        logits = anchors @ candidates.t() / options.temperature
        losses = functional.cross_entropy(logits, own, reduction="none")

        def neighbours() -> Sequence[Any]:
            return [(vectors[place.start].tolist(), vectors[place.start + 1 : place.stop].tolist()) for place in places]

        return Loss(losses.sum(), measured, neighbours)

    score = _recall if options.loss == "infonce" else _correlation
    return head_lesson(inputs, objective, ("cosine",), score)


def _scored(cosines: torch.Tensor, scores: torch.Tensor, options: EmbeddingOptions) -> torch.Tensor:
    """Losses of pairs with a score. Shapes (examples,)."""
    if options.loss == "cosine_similarity":
        return (cosines - scores) ** 2
    distance = 1.0 - cosines
    return 0.5 * (scores * distance**2 + (1.0 - scores) * functional.relu(options.margin - distance) ** 2)


def _require_negatives(inputs: MethodInputs, options: EmbeddingOptions) -> None:
    alone = inputs.config.hyperparameters.per_device_batch_size < 2
    if options.loss == "infonce" and alone and any(len(example.inputs) < 3 for example in inputs.examples):
        raise InvalidArgument.field(
            "spec.hyperparameters.per_device_batch_size",
            "is 1, and a row without negatives has nothing to be told from; loss infonce needs at least 2, or a negative in each row",
        )


def _recall(records: Sequence[Any]) -> dict[str, float]:
    """Among all texts of the validation: how often the text that belongs to a row's comes first, and the mean of one by its place."""
    anchors = np.asarray([anchor for anchor, _ in records])
    texts = np.asarray([others[0] for _, others in records] + [one for _, others in records for one in others[1:]])
    cosines = anchors @ texts.T
    own = cosines[np.arange(len(anchors)), np.arange(len(anchors))]
    places = (cosines > own[:, None]).sum(axis=1)
    return {"recall_at_1": float((places == 0).mean()), "mrr": float((1.0 / (1 + places)).mean())}


def _correlation(records: Sequence[Any]) -> dict[str, float]:
    cosines, scores = (np.asarray(part) for part in zip(*records, strict=True))
    return {"spearman": spearman(cosines, scores)}


METHOD = Method(encode_neighbours, _prepare, _head)
