"""Examples of models that end in a head: texts that are read as a whole, and what is known of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from martlet_inputs.rows.formats import RowError
from martlet_inputs.rows.labelled import Labelled, Tagged
from martlet_inputs.rows.preferences import Preference
from martlet_inputs.rows.ranking import Ranking

from martlet_trainer.data.encode import EncodedInput, RowEncoder
from martlet_trainer.data.examples import Encode


@dataclass(frozen=True)
class HeadExample:
    """Texts that are one example together.

    Attributes:
        inputs: in an order that the recipe knows.
        target: what the model is to say, as the recipe knows it.
        weight: what it adds to the number that a step's loss is divided by.
    """

    inputs: tuple[EncodedInput, ...]
    target: Any = None
    weight: int = 1

    @property
    def token_count(self) -> int:
        return sum(part.token_count for part in self.inputs)

    @property
    def target_count(self) -> int:
        return self.weight

    @property
    def truncated(self) -> bool:
        return any(part.truncated for part in self.inputs)


def encode_labelled(encoder: RowEncoder) -> Encode:
    """Texts with what they are: target is the row's labels."""

    def encode(content: Labelled, format_name: str) -> Sequence[HeadExample]:
        text = content.text
        found = encoder.encode_input(text) if isinstance(text, str) else encoder.encode_whole(text)
        return (HeadExample((found,), content.labels),)

    return encode


def encode_judged_pair(encoder: RowEncoder) -> Encode:
    """Conversations: the chosen one, then the rejected one."""

    def encode(content: Preference, format_name: str) -> Sequence[HeadExample]:
        chosen, rejected = encoder.encode_whole(content.chosen), encoder.encode_whole(content.rejected)
        if np.array_equal(chosen.input_ids, rejected.input_ids):
            raise RowError("", "its two answers are the same as far as data.max_length reaches; raise that")
        return (HeadExample((chosen, rejected)),)

    return encode


def encode_neighbours(encoder: RowEncoder) -> Encode:
    """A text, one that belongs to it, and those that don't, an example for each that does: target is the score, None without one."""

    def encode(content: Ranking, format_name: str) -> Sequence[HeadExample]:
        anchor = encoder.encode_input(content.anchor)
        negatives = tuple(encoder.encode_input(text) for text in content.negatives)
        return [
            HeadExample((anchor, encoder.encode_input(text), *negatives), content.score) for text in content.positives
        ]

    return encode


def encode_documents(encoder: RowEncoder) -> Encode:
    """A query beside one relevant document, then beside each that isn't; an example for each relevant one."""

    def encode(content: Ranking, format_name: str) -> Sequence[HeadExample]:
        negatives = tuple(encoder.encode_input(content.anchor, text) for text in content.negatives)
        return [HeadExample((encoder.encode_input(content.anchor, text), *negatives)) for text in content.positives]

    return encode


def encode_tagged(encoder: RowEncoder) -> Encode:
    """Words with tags: target is the tag of the word that begins at each token, None elsewhere."""

    def encode(content: Tagged, format_name: str) -> Sequence[HeadExample]:
        found, words = encoder.encode_words(content.words)
        begins = [np.flatnonzero(words == word)[0] for word in np.unique(words[words >= 0])]
        if not begins:
            raise RowError("tokens", "none of its words has tokens; remove the row")
        places = {int(place): content.tags[words[place]] for place in begins}
        target = tuple(places.get(place) for place in range(found.token_count))
        return (HeadExample((found,), target, weight=len(places)),)

    return encode
