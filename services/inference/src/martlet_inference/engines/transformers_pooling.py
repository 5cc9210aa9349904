"""A model that doesn't generate, in this process: texts in, and what its head makes of them out.

Embeddings are pooled as ``sentence_config`` says (Sentence-BERT, arXiv 1908.10084). Classes, scores and rewards are the logits of
transformers' own heads with the activation that vLLM gives them (``vllm/model_executor/layers/pooler/activations.py``), so that both
engines say the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from martlet_core.errors import FailedPrecondition
from martlet_core.loading_info import check_loading_info
from martlet_core.model_tasks import ModelTask
from torch.nn import functional
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from martlet_inference.engines.sentence_config import sentence_config
from martlet_inference.engines.transformers_pooling_request import Input, PoolingRequest
from martlet_inference.engines.transformers_request import BadRequest
from martlet_inference.model_use import CROSS_ENCODER_KEYS

_HEADS: dict[ModelTask, Any] = {
    ModelTask.EMBEDDING: AutoModel,
    ModelTask.TOKEN_CLASSIFICATION: AutoModelForTokenClassification,
}
#: vLLM's names of what /pooling gives.
_POOLING_TASKS = {ModelTask.EMBEDDING: "embed", ModelTask.TOKEN_CLASSIFICATION: "token_classify"}
#: Weights that only heads of other tasks need; files of embedding models lack them.
_UNUSED_BY_EMBEDDINGS = "pooler."

Activation = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Tokens:
    """One input as the model reads it; ``types`` tells the two texts of a pair apart, for models that have them."""

    ids: list[int]
    types: list[int] | None = None


class PoolingModel:
    """A whole model with its head.

    Args:
        directory: an ordinary Hugging Face or sentence-transformers model; code in it is not run, and only safetensors are read.
        name: what it is called in requests.
        task: what it is for.
        device: ``cpu`` or ``cuda``.
        dtype: by torch's name, or ``auto`` for the model's own.
        max_model_len: longest input in tokens; less where the model's own is.
        gpu_memory_share: most of a GPU's memory that it takes.

    Raises:
        FailedPrecondition: weights are missing, or it pools or activates in a way that isn't supported.
    """

    def __init__(
        self,
        directory: Path,
        name: str,
        task: ModelTask,
        *,
        device: str,
        dtype: str,
        max_model_len: int,
        gpu_memory_share: float = 1.0,
    ) -> None:
        if device == "cuda":
            torch.cuda.set_per_process_memory_fraction(gpu_memory_share)
        self.name = name
        self.task = task
        self._sentence = sentence_config(directory) if task is ModelTask.EMBEDDING else None
        self.tokenizer: Any = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
        loaded: Any = _HEADS.get(task, AutoModelForSequenceClassification).from_pretrained(
            directory,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            device_map=device,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
        model, info = loaded
        if self._sentence:
            missing = [key for key in info["missing_keys"] if not key.startswith(_UNUSED_BY_EMBEDDINGS)]
            info = {**info, "missing_keys": missing}
        check_loading_info(info, f"{name}: its files")
        self._model = model.eval().requires_grad_(False)
        self._device = device
        self._config: Any = model.config
        self._activation = activation_of(self._config)
        self.labels = {int(index): str(label) for index, label in self._config.id2label.items()}
        longest = [max_model_len, getattr(self._config.get_text_config(), "max_position_embeddings", None)]
        longest += [self._sentence.max_tokens if self._sentence else None, self.tokenizer.model_max_length]
        self.context_length = min(length for length in longest if length)

    @property
    def pads(self) -> bool:
        """Whether inputs of different lengths can be computed together: a decoder's head finds the last token by the padding."""
        classifies = self.task not in _POOLING_TASKS
        return not classifies or self._config.pad_token_id is not None

    def tokens(self, request: PoolingRequest, texts: Sequence[Input]) -> list[Tokens]:
        """Inputs as the model reads them. BadRequest for one that is too long, empty, or no token of the vocabulary."""
        special = True if request.special_tokens is None else request.special_tokens
        if request.messages and self.tokenizer.chat_template:
            texts, special = [self._written(request)], bool(request.special_tokens)
        elif request.messages:
            texts = [_as_texts(request.messages)]
        limit = None
        if request.truncate is not None:
            limit = self.context_length if request.truncate < 0 else min(request.truncate, self.context_length)
        return [self._tokens(text, index, special, limit) for index, text in enumerate(texts)]

    def check(self, request: PoolingRequest) -> None:
        """Refuse what this model has no answer for. BadRequest names the field."""
        if request.model != self.name:
            raise BadRequest(f"The model `{request.model}` does not exist.", "model", 404)
        own = _POOLING_TASKS.get(self.task, "classify")
        if request.task not in ("", own):
            raise BadRequest(f"task is {request.task!r}; this model's is {own!r}.", "task")
        if request.dimensions is None:
            return
        trained = getattr(self._config, "matryoshka_dimensions", None)
        if not trained and not getattr(self._config, "is_matryoshka", False):
            raise BadRequest(
                "dimensions must be left out: the model was not trained to have its vectors cut (Matryoshka, arXiv 2205.13147).",
                "dimensions",
            )
        if (trained and request.dimensions not in trained) or request.dimensions > self._config.hidden_size:
            known = trained or f"1 to {self._config.hidden_size}"
            raise BadRequest(f"dimensions is {request.dimensions}; the model has {known}.", "dimensions")

    @torch.inference_mode()
    def compute(self, batch: Sequence[Tokens], request: PoolingRequest) -> list[torch.Tensor]:
        """What the head makes of each input, in float32 on the CPU.

        Returns:
            A vector (dimensions,), the labels' numbers (labels,), or for a token classifier (tokens, labels).
        """
        inputs, mask = self._padded(batch)
        if self._sentence:
            states = self._model(**inputs).last_hidden_state.float()
            vectors = pooled(states, mask, self._sentence.pooling)[:, : request.dimensions]
            scaled = self._sentence.normalize if request.activation is None else request.activation
            return list((functional.normalize(vectors, dim=-1) if scaled else vectors).cpu())
        logits = self._model(**inputs).logits.float()
        values = (logits if request.activation is False else self._activation(logits)).cpu()
        if self.task is ModelTask.TOKEN_CLASSIFICATION:
            return [row[: len(tokens.ids)] for row, tokens in zip(values, batch, strict=True)]
        return list(values)

    def _written(self, request: PoolingRequest) -> str:
        try:
            return self.tokenizer.apply_chat_template(
                list(request.messages),
                tokenize=False,
                add_generation_prompt=request.new_turn,
                continue_final_message=request.open_turn,
            )
        except Exception as exc:  # a template raises what it likes about messages it doesn't take
            raise BadRequest(f"The model's chat template refuses the messages: {exc}", "messages") from exc

    def _tokens(self, text: Input, index: int, special: bool, limit: int | None) -> Tokens:
        if isinstance(text, list):
            vocabulary = self._model.get_input_embeddings().num_embeddings
            if not all(0 <= token < vocabulary for token in text):
                raise BadRequest(f"input {index} holds a token outside 0 to {vocabulary - 1}.", "input")
            made = Tokens(text[:limit] if self.tokenizer.truncation_side == "right" else text[-(limit or 0) :])
        else:
            first, second = text if isinstance(text, tuple) else (text, None)
            if self._sentence and self._sentence.lower_case:
                first, second = first.lower(), second and second.lower()
            cut: dict[str, Any] = {} if limit is None else {"truncation": True, "max_length": limit}
            encoded = self.tokenizer(first, second, add_special_tokens=special, **cut)
            made = Tokens(encoded["input_ids"], encoded.get("token_type_ids"))
        if not made.ids:
            raise BadRequest(f"input {index} is empty.", "input")
        if len(made.ids) > self.context_length:
            raise BadRequest(
                f"input {index} has {len(made.ids)} tokens; the model reads {self.context_length}. Shorten it, or have it cut "
                "with truncate_prompt_tokens -1.",
                "input",
            )
        return made

    def _padded(self, batch: Sequence[Tokens]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        longest = max(len(tokens.ids) for tokens in batch)

        def rows(values: Sequence[Sequence[int]], fill: int) -> torch.Tensor:
            return torch.tensor([[*row, *[fill] * (longest - len(row))] for row in values], device=self._device)

        mask = rows([[1] * len(tokens.ids) for tokens in batch], 0)
        inputs = {"input_ids": rows([tokens.ids for tokens in batch], self._config.pad_token_id or 0)}
        if batch[0].types is not None:
            inputs["token_type_ids"] = rows([tokens.types or () for tokens in batch], 0)
        return {**inputs, "attention_mask": mask}, mask


def _as_texts(messages: Sequence[Mapping[str, Any]]) -> Input:
    """A conversation for a model without a chat template, as the trainer writes it: a question is a text, and with its answer two."""
    roles = [message["role"] for message in messages]
    if roles == ["user"]:
        return messages[0]["content"]
    if roles == ["user", "assistant"]:
        return messages[0]["content"], messages[1]["content"]
    raise BadRequest(
        "The model has no chat template, so it reads a user's message, or that and one answer; give other texts as input.",
        "messages",
    )


def pooled(states: torch.Tensor, mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """One vector a text (batch, hidden) of its tokens' states (batch, tokens, hidden); the mask is 0 at the padding behind them."""
    if pooling == "cls":
        return states[:, 0]
    lengths = mask.sum(dim=1)
    if pooling == "lasttoken":
        return states[torch.arange(len(states), device=states.device), lengths - 1]
    return (states * mask[..., None]).sum(dim=1) / lengths[:, None]


def activation_of(config: Any) -> Activation:
    """What turns logits (..., labels) into what a client gets: probabilities, or the numbers of a regression as they are.

    Raises:
        FailedPrecondition: the configuration names a function that isn't supported.
    """
    by_problem: dict[str | None, Activation] = {"regression": _same, "multi_label_classification": torch.sigmoid}
    problem = getattr(config, "problem_type", None)
    if problem in by_problem:
        return by_problem[problem]
    named = [getattr(config, key, None) for key in CROSS_ENCODER_KEYS] if problem is None else []
    names = [value.get("activation_fn") if isinstance(value, dict) else value for value in named]
    name = str(next(filter(None, names), "")).rpartition(".")[2]
    if name == "Identity":
        return _same
    if name not in ("", "Sigmoid", "Softmax"):
        raise FailedPrecondition(
            f"config.json names the activation {name}; Identity, Sigmoid and Softmax are supported.",
            reason="POOLING_NOT_SUPPORTED",
        )
    return _probabilities


def _same(logits: torch.Tensor) -> torch.Tensor:
    return logits


def _probabilities(logits: torch.Tensor) -> torch.Tensor:
    return torch.sigmoid(logits) if logits.shape[-1] == 1 else torch.softmax(logits, dim=-1)
