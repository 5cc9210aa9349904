"""Answers to questions, drawn from a model: the one that is being trained, or its teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from martlet_trainer.data.encode import EncodedRow
from martlet_trainer.data.examples import EncodedPrompt
from martlet_trainer.rewards import Answer


@dataclass(frozen=True)
class Drawn:
    """An answer behind its question.

    Attributes:
        row: both as tokens; the answer's are learned.
        answer: for rewards.
        log_probs: of the answer's tokens, under the weights that drew it; None where those are the weights that learn. Shape (tokens,).
    """

    row: EncodedRow
    answer: Answer
    log_probs: np.ndarray | None = None


class Answering(Protocol):
    """Draws answers of a model.

    Attributes:
        model: the one that answers, here or in a replica.
    """

    @property
    def model(self) -> Any: ...

    def begin(self, step: int, *, validating: bool) -> None:
        """Before the answers of a step or a validation; called in all processes alike.

        Args:
            step: steps done so far.
            validating: whether a validation begins.
        """
        ...

    def answer(
        self, prompts: Sequence[EncodedPrompt], device: torch.device, *, count: int = 1, likeliest: bool = False
    ) -> list[Drawn]:
        """Each question's answers, one after the other; see ``Sampler.answer``."""
        ...


@dataclass(frozen=True)
class Sampler:
    """How a model draws answers in this process.

    Attributes:
        model: answers.
        tokenizer: its tokenizer.
        attention: the attention that it generates with; training may have replaced it.
        max_tokens: longest answer.
        temperature: of sampling.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    attention: str
    max_tokens: int
    temperature: float

    def begin(self, step: int, *, validating: bool) -> None:
        """Nothing: the model answers as it is."""

    @torch.no_grad()
    def answer(
        self, prompts: Sequence[EncodedPrompt], device: torch.device, *, count: int = 1, likeliest: bool = False
    ) -> list[Drawn]:
        """Each question's answers, one after the other.

        Args:
            prompts: the questions.
            device: where the model is.
            count: answers to each question.
            likeliest: takes the likeliest token each time instead of drawing one.
        """
        longest = max(len(prompt.input_ids) for prompt in prompts)
        own: Any = self.tokenizer.pad_token_id
        pad: Any = self.tokenizer.eos_token_id if own is None else own
        ids = torch.full((len(prompts), longest), pad or 0, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for index, prompt in enumerate(prompts):
            ids[index, longest - len(prompt.input_ids) :] = torch.from_numpy(prompt.input_ids.astype(np.int64))
            mask[index, longest - len(prompt.input_ids) :] = 1
        ends = ends_of(self.model, self.tokenizer)
        drawing = {} if likeliest else {"do_sample": True, "temperature": self.temperature, "top_k": 0, "top_p": 1.0}
        config = GenerationConfig(
            max_new_tokens=self.max_tokens, num_return_sequences=count, eos_token_id=ends, pad_token_id=pad, **drawing
        )
        found = self._generate(ids.to(device), mask.to(device), config)
        said = found[:, longest:].cpu().numpy().astype(np.int32)
        return [drawn(prompts[index // count], tokens, self.tokenizer, ends) for index, tokens in enumerate(said)]

    def _generate(self, ids: torch.Tensor, mask: torch.Tensor, config: GenerationConfig) -> torch.Tensor:
        """Questions and answers as tokens, out of training mode and with the model's own attention."""
        model, training, attention = self.model, self.model.training, self.model.config._attn_implementation
        model.set_attn_implementation(self.attention)
        model.eval()
        try:
            return model.generate(input_ids=ids, attention_mask=mask, generation_config=config, use_cache=True)
        finally:
            model.set_attn_implementation(attention)
            model.train(training)


def drawn(
    prompt: EncodedPrompt,
    said: np.ndarray,
    tokenizer: PreTrainedTokenizerBase,
    ends: Sequence[int],
    log_probs: np.ndarray | None = None,
) -> Drawn:
    """A question and an answer up to its end, which is learned too."""
    places = np.flatnonzero(np.isin(said, list(ends)))
    length = int(places[0]) + 1 if len(places) else len(said)
    said = said[:length]
    ids = np.concatenate([prompt.input_ids, said])
    targets = np.arange(len(ids)) >= len(prompt.input_ids)
    text = str(tokenizer.decode(said.tolist(), skip_special_tokens=True))
    answer = Answer(text, length, prompt.columns, prompt.turns)
    return Drawn(EncodedRow(ids, targets), answer, None if log_probs is None else log_probs[:length])


def ends_of(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens that end a model's answers."""
    found: Any = model.generation_config.eos_token_id
    found = tokenizer.eos_token_id if found is None else found
    return [int(end) for end in found] if isinstance(found, list) else [int(found)]
