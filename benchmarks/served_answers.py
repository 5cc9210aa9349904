"""What transformers says of a model that vLLM is to serve, in the trainer's environment: what vLLM's answers are compared with.

Causal language models say the log-probability of each token of a few texts, and the tokens that they go on with; models that end in a head
say what the head makes of the texts, before its activation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from martlet_trainer.recipes.merge_probes import PROBES
from martlet_trainer.training.head_batches import pooled
from martlet_trainer.training.heads import CAUSAL_LM, Head, head_in
from martlet_trainer.training.models import load_model, load_tokenizer

#: Tokens of a text, and tokens that the first one is gone on with.
TEXT_TOKENS, NEW_TOKENS = 48, 8
_TEXTS = PROBES[:5]
#: What is asked of vLLM, by what a model ends in.
_KINDS: Mapping[str, str] = {
    "causal_lm": "causal",
    "embedding": "embed",
    "sequence_classification": "classify",
    "token_classification": "token_classify",
}


def expected(model: Any, directory: Path, base: Path, recipe: str = "") -> dict[str, Any]:
    """What a result says, and its base model (``base_values``; of one that ends in a head, with a random head like the result's).

    Args:
        model: the result, loaded.
        directory: of the result; says what it ends in.
        base: directory of its base model.
        recipe: that made it; rerankers are asked for pairs.
    """
    head = head_in(directory)
    tokenizer = load_tokenizer(base)
    kind = "score" if recipe == "reranker" else _KINDS[head.task]
    prompts = _prompts(kind, tokenizer)
    torch.manual_seed(0)  # of a head that the base model lacks
    bare = load_model(base, torch.float32, torch.device("cpu"), head=head)
    found: dict[str, Any] = {"kind": kind, "prompts": prompts}
    found |= {
        "values": _values(model, prompts, head, tokenizer),
        "base_values": _values(bare, prompts, head, tokenizer),
    }
    if kind == "causal":
        found["tokens"] = _go_on(model, prompts[0])
    return found


def loaded(directory: Path, base: Path) -> Any:
    """A result: a whole model, or an adapter on its base model."""
    from peft import PeftModel

    head = head_in(directory)
    if not (directory / "adapter_config.json").is_file():
        return load_model(directory, torch.float32, torch.device("cpu"), head=head)
    return PeftModel.from_pretrained(load_model(base, torch.float32, torch.device("cpu"), head=head), str(directory))


def _prompts(kind: str, tokenizer: Any) -> list[Any]:
    if kind == "causal":  # as tokens, and all others as vLLM's own tokenizer reads them
        return [tokenizer(text)["input_ids"][:TEXT_TOKENS] for text in _TEXTS]
    texts = [text[:TEXT_TOKENS] for text in _TEXTS]
    return [[texts[0], text] for text in texts[1:]] if kind == "score" else texts


@torch.no_grad()
def _values(model: Any, prompts: Sequence[Any], head: Head, tokenizer: Any) -> list[float]:
    model.eval()
    found = []
    for prompt in prompts:
        if head == CAUSAL_LM:
            tokens = torch.tensor([prompt])
            scores = model(input_ids=tokens, use_cache=False).logits[0, :-1].float().log_softmax(-1)
            found.append(scores.gather(-1, tokens[0, 1:, None]).flatten())
            continue
        inputs = tokenizer(*([prompt] if isinstance(prompt, str) else prompt), return_tensors="pt")
        said = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        embeds = head.task == "embedding"
        shown = pooled(said.last_hidden_state, inputs["attention_mask"], head.pooling) if embeds else said.logits
        found.append(shown.float().flatten())
    return torch.cat(found).tolist()


@torch.no_grad()
def _go_on(model: Any, prompt: Sequence[int]) -> list[int]:
    """The likeliest tokens, one after the other, without a cache of the text so far."""
    tokens = torch.tensor([list(prompt)])
    for _ in range(NEW_TOKENS):
        logits = model(input_ids=tokens, use_cache=False).logits[:, -1]
        tokens = torch.cat([tokens, logits.argmax(-1, keepdim=True)], dim=1)
    return tokens[0, len(prompt) :].tolist()
