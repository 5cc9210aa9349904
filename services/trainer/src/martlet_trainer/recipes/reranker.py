"""Reranker: a number for a query beside a document, higher where the document answers it (a cross-encoder, arXiv 1901.04085)."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from martlet_trainer.config import parse_recipe_options
from martlet_trainer.data.head_examples import encode_documents
from martlet_trainer.recipes.heads import head_lesson, score_head
from martlet_trainer.recipes.method import Lesson, Method, MethodInputs
from martlet_trainer.recipes.options import RerankerOptions
from martlet_trainer.training.head_batches import HeadBatch
from martlet_trainer.training.loss import Loss

_MEASURES = ("accuracy", "mrr")


def _prepare(inputs: MethodInputs) -> Lesson:
    options = parse_recipe_options(inputs.config)
    assert isinstance(options, RerankerOptions)
    loss_of = _pointwise if options.loss == "pointwise" else _listwise

    def objective(outputs: Any, batch: HeadBatch) -> Loss:
        scores = outputs.logits.float()[:, 0]
        lists = [scores[place] for place in batch.places()]
        places = torch.stack([(one[1:] >= one[0]).sum() for one in lists]).float()
        measured = {"accuracy": (places == 0).float().sum(), "mrr": (1.0 / (1.0 + places)).sum()}
        return Loss(torch.stack([loss_of(one) for one in lists]).sum(), measured)

    return head_lesson(inputs, objective, _MEASURES)


def _pointwise(scores: torch.Tensor) -> torch.Tensor:
    """Is the document relevant? A mean over the list, whose first document is. Shape (documents,)."""
    relevant = torch.zeros_like(scores)
    relevant[0] = 1.0
    return functional.binary_cross_entropy_with_logits(scores, relevant)


def _listwise(scores: torch.Tensor) -> torch.Tensor:
    """Which of the documents is relevant (ListNet's top one, Cao et al. 2007)? The first is. Shape (documents,)."""
    return -scores.log_softmax(dim=0)[0]


METHOD = Method(encode_documents, _prepare, score_head)
