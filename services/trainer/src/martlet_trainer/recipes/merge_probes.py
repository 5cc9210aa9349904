"""What a model says of a few texts: what a merge compares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from martlet_trainer.training.head_batches import pooled
from martlet_trainer.training.heads import Head

#: Texts of several kinds; each is probed plain and as a user's message in the model's chat template.
PROBES = (
    "The harbour was quiet that morning, and the boats moved only when the tide told them to.",
    "Photosynthesis turns light, water and carbon dioxide into sugar and oxygen.",
    "def median(values):\n    ordered = sorted(values)\n    return ordered[len(ordered) // 2]",
    "What is the capital of Portugal? The capital of Portugal is Lisbon.",
    "Seven times eight is fifty-six, and fifty-six minus nine is forty-seven.",
    'Answer in JSON: {"name": "Ada", "born": 1815, "fields": ["mathematics", "computing"]}',
    "Dear Ms Okafor, thank you for your letter of 3 May; we will send the parts next week.",
    "Le chat dort sur la chaise pendant que la pluie tombe sur le jardin.",
    "First, heat the oil. Then add the onions and stir until they are soft and golden.",
    "Is this a question? Yes. Is this an answer? Also yes, though a short one.",
)


@dataclass(frozen=True)
class Probe:
    """A model's view of the probe texts.

    Attributes:
        values: log-probability of each next token; of models that end in a head, its outputs, or the cosines between the texts.
        top1: the likeliest token or class at each place; each text's place by its score, or its nearest text.
    """

    values: torch.Tensor
    top1: torch.Tensor


def encode_probes(tokenizer: Any) -> list[list[int]]:
    """The probe texts as tokens, plain and in the chat template if there is one."""
    texts = [tokenizer(text)["input_ids"] for text in PROBES]
    if tokenizer.chat_template:
        for text in PROBES:
            rendered = tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False)
            texts.append(tokenizer(rendered, add_special_tokens=False)["input_ids"])
    return [ids for ids in texts if len(ids) > 1]


@torch.no_grad()
def probe(model: Any, texts: Sequence[Sequence[int]], head: Head) -> Probe:
    """What a model that ends in a head says of texts."""
    model.eval()
    inputs = [torch.tensor([list(ids)]) for ids in texts]
    if head.task == "embedding":
        return _embeddings(model, inputs, head)
    if head.task == "causal_lm":
        found = [_next_tokens(model, tokens) for tokens in inputs]
        return Probe(torch.cat([one.values for one in found]), torch.cat([one.top1 for one in found]))
    logits = torch.cat([model(input_ids=tokens).logits.float().flatten(0, -2) for tokens in inputs])
    top1 = logits.argmax(-1) if logits.shape[-1] > 1 else logits[:, 0].argsort().argsort()
    return Probe(logits.flatten(), top1)


def _next_tokens(model: Any, tokens: torch.Tensor) -> Probe:
    scores = model(input_ids=tokens, use_cache=False).logits[0, :-1].float().log_softmax(-1)
    return Probe(scores.gather(-1, tokens[0, 1:, None])[:, 0], scores.argmax(-1))


def _embeddings(model: Any, inputs: Sequence[torch.Tensor], head: Head) -> Probe:
    rows = [
        pooled(model(input_ids=tokens).last_hidden_state, torch.ones_like(tokens), head.pooling) for tokens in inputs
    ]
    vectors = torch.cat(rows)
    cosines = vectors @ vectors.t()
    return Probe(cosines.flatten(), cosines.clone().fill_diagonal_(-torch.inf).argmax(-1))
