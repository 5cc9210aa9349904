"""Turns validated rows into tokens with the model's own chat template, and marks the tokens that carry loss.

The template is applied to growing parts of a conversation; what a turn adds to the text is that turn's span. This needs no special marks
in the template, only that it never rewrites earlier text when a turn is added: a row for which it does is refused, never mislabelled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jinja2 import TemplateError
from martlet_core.errors import InvalidArgument
from martlet_inputs.rows.formats import Conversation, RowError
from transformers import PreTrainedTokenizerBase

#: Format that a base model without a chat template can be trained on: its text is taken as it is.
PLAIN_FORMAT = "prompt_completion"
#: Start, end and weight of a trained turn in a row's text.
_Span = tuple[int, int, float]


@dataclass(frozen=True)
class EncodedRow:
    """A row as tokens.

    Attributes:
        input_ids: token ids. Shape (length,), int32. Ends with the last token that carries loss.
        is_target: whether the model is to learn to predict the token at that place. Shape (length,).
        truncated: the row was cut at the longest length.
        weights: weight of the loss at each place, 0 where there is none. Shape (length,), float32. None where all targets weigh 1.
    """

    input_ids: np.ndarray
    is_target: np.ndarray
    truncated: bool = False
    weights: np.ndarray | None = None

    @property
    def target_count(self) -> int:
        """Tokens that carry loss; the first token of a row never does, as nothing precedes it."""
        return int(self.is_target[1:].sum())

    @property
    def token_count(self) -> int:
        """All its tokens."""
        return len(self.input_ids)

    @property
    def weight(self) -> float:
        """The loss is a mean over targets."""
        return self.target_count if self.weights is None else float(self.weights[1:].sum())


@dataclass(frozen=True)
class EncodedInput:
    """A text as tokens, for a model that reads it as a whole.

    Attributes:
        input_ids: token ids. Shape (length,), int32.
        type_ids: which of two texts each token is of, for models that want to know; else None. Shape (length,), int32.
        offsets: begin and end of each token in its text, both 0 for tokens that are of none. Shape (length, 2).
        truncated: it was cut at the longest length.
    """

    input_ids: np.ndarray
    type_ids: np.ndarray | None
    offsets: np.ndarray
    truncated: bool

    @property
    def token_count(self) -> int:
        """All its tokens."""
        return len(self.input_ids)


class RowEncoder:
    """Encodes conversations for one model and one data config."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int,
        on_long_rows: str = "truncate",
        assistant_only_loss: bool = True,
        last_round_only: bool = False,
        system: str | None = None,
    ) -> None:
        """Args: see ``DataConfig``. Raises InvalidArgument if the tokenizer can't say where its tokens lie in the text."""
        if not tokenizer.is_fast:
            description = "its tokenizer has no tokenizer.json, which is needed to find the assistant's tokens; convert it or choose another model"
            raise InvalidArgument.field("base_model", description)
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._on_long_rows = on_long_rows
        self._assistant_only_loss = assistant_only_loss
        self._last_round_only = last_round_only
        self._system = system
        self._special_ids = frozenset(tokenizer.all_special_ids) | {
            token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special
        }
        #: Rows to which the end-of-sequence token was added, since the template ends the last turn with no special token.
        self.rows_with_added_eos = 0

    def encode(self, conversation: Conversation, format_name: str) -> EncodedRow:
        """Tokens of one row.

        Raises:
            RowError: the template refuses or rewrites the row, or the row is too long.
        """
        if self._last_round_only:
            conversation = _last_round(conversation)
        if self._tokenizer.chat_template:
            text, spans = self._render(conversation)
            ids, weights = self._tokenize(text, spans, add_special_tokens=False)
        else:
            text, spans = self._plain(conversation, format_name)
            ids, weights = self._tokenize(text, spans, add_special_tokens=True)
        if conversation.trained[-1]:
            ids, weights = self._with_end(ids, weights)
        if not self._assistant_only_loss:
            weights = np.where(weights > 0, weights, np.float32(1))
        return self._fit(ids, weights)

    def encode_prompt(self, conversation: Conversation) -> np.ndarray:
        """Tokens of a conversation that the model is to go on with. Shape (length,), int32.

        Raises:
            RowError: the template refuses the row, or it is longer than ``max_length``: a question that is cut is another question.
        """
        messages = list(conversation.messages)
        if self._system is not None and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self._system}, *messages]
        if self._tokenizer.chat_template:
            text, special = self._apply(messages, conversation.tools, add_generation_prompt=True), False
        elif [message["role"] for message in messages] == ["user"]:
            text, special = str(messages[0]["content"]), True
        else:
            raise RowError(
                "", "the base model has no chat template; choose an instruct model, or write prompts as text"
            )
        encoded = self._tokenizer(text, add_special_tokens=special, return_attention_mask=False, verbose=False)
        ids = np.asarray(encoded["input_ids"], dtype=np.int32)
        if not 0 < len(ids) <= self._max_length:
            raise RowError(
                "", f"has {len(ids)} tokens, more than data.max_length {self._max_length}; shorten it, or raise that"
            )
        return ids

    def encode_whole(self, conversation: Conversation) -> EncodedInput:
        """Tokens of a conversation that a model is to judge, by the chat template. Without one, a question alone is a text, and a
        question with its answer two texts.

        Raises:
            RowError: the template refuses the row, or it is too long.
        """
        messages = list(conversation.messages)
        if self._tokenizer.chat_template:
            if self._system is not None and messages[0]["role"] != "system":
                messages = [{"role": "system", "content": self._system}, *messages]
            text = self._apply(messages, conversation.tools)
            self._check_tools(conversation, text)
            return self._input(text, add_special_tokens=False)
        if [message["role"] for message in messages] not in (
            ["user"],
            ["user", "assistant"],
        ) or self._system is not None:
            advice = "choose an instruct model, or write rows of a question, or of a question and its answer, without a system message"
            raise RowError("", f"the base model has no chat template; {advice}")
        return self.encode_input(*(str(message["content"]) for message in messages))

    def encode_input(self, text: str, second: str | None = None) -> EncodedInput:
        """Tokens of a text, or of two beside one another, as the tokenizer does it by itself. Raises RowError if it is too long."""
        return self._input(text, second)

    def encode_words(self, words: Sequence[str]) -> tuple[EncodedInput, np.ndarray]:
        """Tokens of words with a blank between them, as whoever asks the model will write them, and which word each token is of: -1 for
        none. Shape (length,).

        Raises:
            RowError: they are too long.
        """
        found = self._input(" ".join(words))
        word_of = np.concatenate([[index] * len(word) + [-1] for index, word in enumerate(words)])
        last = found.offsets[:, 1] - 1  # a token may begin with the blank before its word
        of_text = found.offsets[:, 1] > found.offsets[:, 0]
        return found, np.where(of_text, word_of[last], -1)

    def _input(self, *texts: str | None, **options: Any) -> EncodedInput:
        tokenize: Any = self._tokenizer
        options |= {"return_attention_mask": False, "return_offsets_mapping": True, "verbose": False}
        encoded = tokenize(*texts, **options)
        length = len(encoded["input_ids"])
        if length > self._max_length:
            self._refuse_long(length)
            encoded = tokenize(*texts, truncation=True, max_length=self._max_length, **options)
        ids = np.asarray(encoded["input_ids"], dtype=np.int32)
        pad: Any = self._tokenizer.pad_token_id
        end = len(ids)
        while end and ids[end - 1] == pad:  # classifiers of transformers take the last token that isn't padding
            end -= 1
        if not end:
            raise RowError("", "has no tokens but padding; every row needs text")
        types = encoded.get("token_type_ids")
        return EncodedInput(
            ids[:end],
            None if types is None else np.asarray(types, dtype=np.int32)[:end],
            np.asarray(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2)[:end],
            truncated=length > self._max_length,
        )

    def encode_text(self, text: str) -> list[EncodedRow]:
        """Tokens of a plain text and of its end, every one a target, in pieces that overlap by a token: each is predicted once.

        Raises:
            RowError: it is longer than allowed, where it must not be cut.
        """
        encoded = self._tokenizer(text, return_attention_mask=False, verbose=False)
        ids = np.asarray(encoded["input_ids"], dtype=np.int32)
        eos: Any = self._tokenizer.eos_token_id
        if eos is not None and (len(ids) == 0 or ids[-1] != eos):
            ids = np.append(ids, np.int32(eos))
        if len(ids) > self._max_length and self._on_long_rows == "refuse":
            advice = (
                "shorten it, raise data.max_length, or set data.on_long_rows to truncate, which trains on it in pieces"
            )
            raise RowError("", f"has {len(ids)} tokens, more than data.max_length {self._max_length}; {advice}")
        if len(ids) < 2:
            raise RowError("", "is one token, of which nothing can be predicted; join it with another row")
        starts = range(0, len(ids) - 1, self._max_length - 1)
        pieces = [ids[start : start + self._max_length] for start in starts]
        return [EncodedRow(piece.copy(), np.ones(len(piece), dtype=bool)) for piece in pieces]

    def _render(self, conversation: Conversation) -> tuple[str, list[_Span]]:
        """The whole text, and each trained turn in it."""
        messages, weights = list(conversation.messages), _weights(conversation)
        if self._system is not None and messages[0]["role"] != "system":
            messages, weights = [{"role": "system", "content": self._system}, *messages], [0.0, *weights]
        whole = self._apply(messages, conversation.tools)
        self._check_tools(conversation, whole)
        spans = []
        for index, message in enumerate(messages):
            if weights[index]:
                start, end = self._span(messages, index, whole, conversation.tools, str(message["content"]))
                spans.append((start, end, weights[index]))
        return whole, spans

    def _span(
        self,
        messages: Sequence[Mapping[str, Any]],
        index: int,
        whole: str,
        tools: Sequence[Mapping[str, Any]],
        content: str,
    ) -> tuple[int, int]:
        after = whole if index == len(messages) - 1 else self._apply(messages[: index + 1], tools)
        before = (
            self._apply(messages[:index], tools, add_generation_prompt=True)
            if index
            else after[: max(after.find(content), 0)]
        )
        if not (whole.startswith(after) and after.startswith(before)):
            advice = "train on the last turn alone (weight 0 for the others), or set data.assistant_only_loss to false"
            raise RowError(
                f"messages[{index}]",
                f"the model's chat template rewrites earlier turns, so its tokens can't be told apart; {advice}",
            )
        return len(before), len(after)

    def _apply(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = False,
    ) -> str:
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    [dict(message) for message in messages],
                    tools=[dict(tool) for tool in tools] or None,
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                )
            )
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            raise RowError("messages", f"the model's chat template refuses the row: {error}") from error

    def _check_tools(self, conversation: Conversation, text: str) -> None:
        """A template without tools leaves them out without a word; the row would then teach something else than it says."""
        names = [
            (f"messages[{i}].tool_calls", call["function"]["name"])
            for i, message in enumerate(conversation.messages)
            for call in message.get("tool_calls", ())
        ]
        names += [("tools", str(tool.get("function", tool).get("name", ""))) for tool in conversation.tools]
        for field, name in names:
            if name not in text:
                raise RowError(
                    field,
                    "the model's chat template doesn't render tools; choose a model whose template does, or remove them",
                )

    def _plain(self, conversation: Conversation, format_name: str) -> tuple[str, list[_Span]]:
        roles = [message["role"] for message in conversation.messages]
        if format_name != PLAIN_FORMAT or roles != ["user", "assistant"] or self._system is not None:
            advice = "choose an instruct model, or write rows with prompt and completion as text"
            raise RowError("", f"the base model has no chat template; {advice}")
        prompt, completion = (str(message["content"]) for message in conversation.messages)
        return prompt + completion, [(len(prompt), len(prompt) + len(completion), 1.0)]

    def _tokenize(self, text: str, spans: Sequence[_Span], add_special_tokens: bool) -> tuple[np.ndarray, np.ndarray]:
        """Token ids, and the weight of the loss at each place."""
        encoded = self._tokenizer(
            text,
            add_special_tokens=add_special_tokens,
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,
        )
        ids = np.asarray(encoded["input_ids"], dtype=np.int32)
        offsets = np.asarray(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2)
        weights = np.zeros(len(ids), dtype=np.float32)
        for start, end, weight in spans:
            inside = (offsets[:, 0] >= start) & (offsets[:, 1] <= end) & (offsets[:, 1] > offsets[:, 0])
            self._drop_blanks_behind_end(ids, inside, text, offsets)
            weights[inside] = weight
        return ids, weights

    def _drop_blanks_behind_end(self, ids: np.ndarray, inside: np.ndarray, text: str, offsets: np.ndarray) -> None:
        """Take blanks that follow a turn's closing special token out of the loss: generation has stopped by then."""
        places = np.flatnonzero(inside)
        cut = len(places)
        while (
            cut and ids[places[cut - 1]] not in self._special_ids and not text[slice(*offsets[places[cut - 1]])].strip()
        ):
            cut -= 1
        if cut and ids[places[cut - 1]] in self._special_ids:
            inside[places[cut:]] = False

    def _with_end(self, ids: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Make sure that the model learns to stop: the last trained token must be a special one."""
        places = np.flatnonzero(weights)
        eos: Any = self._tokenizer.eos_token_id
        if len(places) == 0 or ids[places[-1]] in self._special_ids or eos is None:
            return ids, weights
        self.rows_with_added_eos += 1
        end = places[-1] + 1
        return np.append(ids[:end], np.int32(eos)), np.append(weights[:end], weights[end - 1])

    def _fit(self, ids: np.ndarray, weights: np.ndarray) -> EncodedRow:
        length = len(ids)
        if length > self._max_length:
            self._refuse_long(length)
            ids, weights = ids[: self._max_length], weights[: self._max_length]
        places = np.flatnonzero(weights[1:])
        if len(places) == 0:
            advice = "shorten what precedes them, or raise data.max_length"
            raise RowError(
                "", f"all its trained tokens lie behind data.max_length {self._max_length} ({length} tokens); {advice}"
            )
        end = int(places[-1]) + 2  # nothing behind the last target takes part in the loss
        weights = weights[:end].copy()
        plain = bool(np.isin(weights, (0, 1)).all())
        return EncodedRow(ids[:end].copy(), weights > 0, length > self._max_length, None if plain else weights)

    def _refuse_long(self, length: int) -> None:
        if self._on_long_rows == "refuse":
            advice = "shorten it, raise data.max_length, or set data.on_long_rows to truncate"
            raise RowError("", f"has {length} tokens, more than data.max_length {self._max_length}; {advice}")


def _weights(conversation: Conversation) -> list[float]:
    """Weight of each message's loss, 0 where it has none."""
    given = conversation.weights or (1.0,) * len(conversation.messages)
    return [weight if trained else 0.0 for weight, trained in zip(given, conversation.trained, strict=True)]


def _last_round(conversation: Conversation) -> Conversation:
    """The conversation with loss on what follows the user's last turn, and on nothing else.

    Raises:
        RowError: the row itself takes the loss off that.
    """
    asked = max((index for index, message in enumerate(conversation.messages) if message["role"] == "user"), default=-1)
    trained = tuple(index > asked and flag for index, flag in enumerate(conversation.trained))
    if not any(trained):
        raise RowError(
            "messages", "has no loss in its last round, which data.last_round_only asks for; leave the row out"
        )
    return replace(conversation, trained=trained)
