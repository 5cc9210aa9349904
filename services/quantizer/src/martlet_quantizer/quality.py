"""How good a model is on text it was not calibrated with, and how far the quantized one is from the unquantized one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from martlet_core.errors import InvalidArgument

#: Tokens of a window that is measured, and windows measured at most.
WINDOW_TOKENS = 256
MAX_WINDOWS = 64
#: Shorter windows tell nothing.
_SHORTEST = 8
#: Scores held in memory at once: about 256 MB of float32.
_SCORES = 2**26
#: Tokens of a greedy sample.
SAMPLE_TOKENS = 32

#: Prompts whose greedy answers are shown side by side, where the job names none.
PROMPTS = (
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "List three uses of a brick.",
)


@dataclass(frozen=True)
class Measurement:
    """One model on the held-out windows.

    Attributes:
        nll: negative log-likelihood of all measured tokens together, in nats.
        top1: the most likely token at each measured position.
        samples: greedy answers to the prompts.
        positions: positions measured.
        generate_seconds: time for all samples.
    """

    nll: float
    top1: Sequence[int]
    samples: Sequence[str]
    positions: int
    generate_seconds: float

    @property
    def perplexity(self) -> float:
        """exp(mean negative log-likelihood); infinite or NaN for a broken model."""
        mean = self.nll / self.positions
        return math.exp(mean) if mean < 700 else math.inf


@dataclass(frozen=True)
class Difference:
    """The quantized model against the unquantized one.

    Attributes:
        perplexity: of the quantized model.
        base_perplexity: of the unquantized one.
        perplexity_ratio: the first by the second.
        top1_agreement: share of positions with the same most likely token, 0.0 to 1.0.
        positions: positions compared.
    """

    perplexity: float
    base_perplexity: float
    perplexity_ratio: float
    top1_agreement: float
    positions: int


def windows(pieces: Sequence[Sequence[int]], prefix: Sequence[int] = ()) -> list[list[int]]:
    """The windows to measure on, spread evenly over the texts where there are more than ``MAX_WINDOWS``.

    Args:
        pieces: pieces of texts as token ids.
        prefix: tokens put in front of a window that doesn't begin with them.

    Raises:
        InvalidArgument: no window is long enough.
    """
    found = [list(piece) for piece in pieces if len(piece) >= _SHORTEST]
    if not found:
        raise InvalidArgument.field(
            "spec.evaluation_dataset", f"has no text of at least {_SHORTEST} tokens; bring longer rows"
        )
    if len(found) > MAX_WINDOWS:
        found = [found[index * len(found) // MAX_WINDOWS] for index in range(MAX_WINDOWS)]
    return [window if window[: len(prefix)] == list(prefix) else [*prefix, *window] for window in found]


def measure(
    model: Any,
    tokenizer: Any,
    texts: Sequence[Sequence[int]],
    prompts: Sequence[str],
    progress: Callable[[int, int], None],
) -> Measurement:
    """Score every window and answer every prompt.

    Args:
        model: a causal language model of transformers.
        tokenizer: its tokenizer.
        texts: windows of token ids.
        prompts: put to the model as a user's message, in its chat template where it has one.
        progress: takes (windows done, windows).
    """
    import time

    nll, top1, done = 0.0, [], 0
    for batch in _batches(texts, _vocabulary(model)):
        batch_nll, batch_top1 = _score(model, batch)
        nll += batch_nll
        top1 += batch_top1
        done += len(batch)
        progress(done, len(texts))
    begun = time.monotonic()
    samples = [answer(model, tokenizer, prompt, SAMPLE_TOKENS) for prompt in prompts]
    return Measurement(nll, top1, samples, len(top1), time.monotonic() - begun)


def _vocabulary(model: Any) -> int:
    return int(model.config.get_text_config().vocab_size)


def _batches(texts: Sequence[Sequence[int]], vocabulary: int) -> list[list[Sequence[int]]]:
    """Windows of the same length together, the longest first; both models get the same batches."""
    batches = []
    for length, same in groupby(sorted(texts, key=len, reverse=True), key=len):
        group = list(same)
        size = max(1, _SCORES // (length * vocabulary))
        batches += [group[start : start + size] for start in range(0, len(group), size)]
    return batches


def _score(model: Any, batch: Sequence[Sequence[int]]) -> tuple[float, list[int]]:
    import torch

    with torch.inference_mode():
        tokens = torch.tensor([list(window) for window in batch], device=model.device)
        scores = model(input_ids=tokens, use_cache=False).logits[:, :-1].float()
        nll = torch.nn.functional.cross_entropy(scores.flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum")
        return float(nll), scores.argmax(-1).flatten().tolist()


def answer(model: Any, tokenizer: Any, prompt: str, max_new_tokens: int) -> str:
    """A greedy answer."""
    import torch

    if tokenizer.chat_template:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    else:
        ids = tokenizer(prompt)["input_ids"]
    tokens = torch.tensor([ids], device=model.device)
    with torch.inference_mode():
        out = model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        )
    return tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True).strip()


def compare(base: Measurement, quantized: Measurement) -> Difference:
    """How far the quantized model is from the unquantized one; both saw the same windows in the same order."""
    if base.positions != quantized.positions:
        raise ValueError(f"{base.positions} positions against {quantized.positions}")
    same = sum(one == other for one, other in zip(base.top1, quantized.top1, strict=True))
    return Difference(
        perplexity=quantized.perplexity,
        base_perplexity=base.perplexity,
        perplexity_ratio=quantized.perplexity / base.perplexity,
        top1_agreement=same / base.positions,
        positions=base.positions,
    )


def to_json(measurement: Measurement) -> dict[str, Any]:
    """As plain values; ``from_json`` is the inverse."""
    return asdict(measurement)


def from_json(values: Mapping[str, Any]) -> Measurement:
    """The inverse of ``to_json``; NaN comes back from its word."""
    return Measurement(**{**values, "nll": float(values["nll"])})
