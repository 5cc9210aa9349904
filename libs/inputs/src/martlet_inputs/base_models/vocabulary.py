"""Vocabularies of models, compared: a model can learn another one's distributions only over the same tokens. Imports no ML library."""

from __future__ import annotations

import json
from collections.abc import Mapping

from martlet_core.errors import InvalidArgument

#: File that holds a fast tokenizer.
TOKENIZER = "tokenizer.json"


def read_vocabulary(tokenizer_json: bytes) -> Mapping[str, int] | None:
    """Token ids by token, as a ``tokenizer.json`` has them; None where it isn't one of the kinds known here."""
    try:
        found = json.loads(tokenizer_json)
        tokens = found["model"]["vocab"]
        if isinstance(tokens, list):  # Unigram: tokens with their scores
            tokens = {token: index for index, (token, _) in enumerate(tokens)}
        return {**tokens, **{added["content"]: added["id"] for added in found.get("added_tokens", ())}}
    except (ValueError, KeyError, TypeError):
        return None


def require_same(student: Mapping[str, int], teacher: Mapping[str, int], field: str) -> None:
    """Refuse a teacher whose tokens mean something else.

    Raises:
        InvalidArgument: naming ``field`` and how much is different.
    """
    if student == teacher:
        return
    different = sum(1 for token, index in student.items() if teacher.get(token) != index)
    different += sum(1 for token in teacher if token not in student)
    raise InvalidArgument.field(
        field,
        f"has another vocabulary than base_model: {different} tokens differ ({len(student)} there, {len(teacher)} here), so one's"
        " probabilities say nothing of the other's tokens; choose a teacher of the same family, or train on its answers with recipe sft",
        reason="OTHER_VOCABULARY",
    )
