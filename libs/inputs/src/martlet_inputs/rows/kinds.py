"""Kinds of rows: what a recipe learns from. Each reads one row of a data set, whichever of its formats the row has."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from martlet_inputs.rows.formats import (
    OPTIONAL_FIELDS,
    REQUIRED_FIELDS,
    Conversation,
    RowError,
    describe_formats,
    recognise,
    to_messages,
)
from martlet_inputs.rows.report import DataReport
from martlet_inputs.rows.turns import check_conversation

T = TypeVar("T")

#: Fields that say for which kind of training a row was made -> that kind, and who trains on it. Leaving them out of a row of another
#: kind would train on the wrong thing.
TELLING_FIELDS: Mapping[str, tuple[str, str]] = {
    **dict.fromkeys(
        (
            "rejected_response",
            "rejected_messages",
            "rejected",
            "chosen",
            "preferred_output",
            "non_preferred_output",
        ),
        ("preferences", "preference pairs (recipes dpo, orpo, cpo, simpo)"),
    ),
    **dict.fromkeys(("positive_messages", "negative_messages"), ("ranking", "embedding or reranker training")),
    **dict.fromkeys(("images", "videos", "audios"), ("multimodal", "multimodal training")),
}


@dataclass(frozen=True)
class RowKind(Generic[T]):
    """What the rows of a training are.

    Attributes:
        name: for messages and ``TELLING_FIELDS``.
        formats: the formats and their fields, for people.
        recognise: the format of a row that has these fields; None if it has none.
        convert: reads a row of a format. Raises RowError.
        known_fields: fields that a format reads; None where whoever trains is given all of them.
        texts: the texts of a row, of which tokens are made.
        labels: classes that a row names; of rows with numbers, how many it has.
    """

    name: str
    formats: str
    recognise: Callable[[Mapping[str, Any]], str | None]
    convert: Callable[[Mapping[str, Any], str], T]
    known_fields: Callable[[str], Iterable[str]] | None
    texts: Callable[[T], Iterable[str]]
    labels: Callable[[T], Iterable[str | int]] = lambda content: ()

    def read(self, values: Mapping[str, Any], report: DataReport) -> T:
        """Read a row; its format, and fields that nobody reads, are noted in the report.

        Raises:
            RowError: it is of no format, of another than the rows before, or at fault.
        """
        values = _without_empty_alias(values)
        for field, (kind, purpose) in TELLING_FIELDS.items():
            if values.get(field) and kind != self.name:
                raise RowError(
                    field,
                    f"belongs to {purpose}; this training takes {self.name}: remove the field, or choose another recipe",
                )
        name = self.recognise(values)
        if name is None:
            found = ", ".join(map(str, values)) or "none"
            raise RowError("", f"has no known format (fields: {found}); use one of: {self.formats}")
        if report.format and name != report.format:
            raise RowError(
                "", f"is of format {name}, but the rows before are {report.format}; keep one format in a data set"
            )
        report.format = report.format or name
        content = self.convert(values, name)
        known = set(values if self.known_fields is None else self.known_fields(name))
        report.ignored_fields += [f for f in values if f not in known and f not in report.ignored_fields]
        return content

    def text_bytes(self, content: T) -> int:
        """Bytes of a row's texts in UTF-8."""
        return sum(len(text.encode("utf-8", "replace")) for text in self.texts(content))


def conversation_texts(conversation: Conversation) -> Iterable[str]:
    """All texts of a conversation, tools among them."""
    values = [value for message in conversation.messages for value in message.values()]
    return map(str, (*values, *conversation.tools))


def read_conversation(values: Mapping[str, Any], format_name: str) -> Conversation:
    """The conversation of a row of a format. Raises RowError."""
    field = "messages" if format_name != "sharegpt" else "conversations"
    return check_conversation(to_messages(values, format_name), field, values, weighted=True)


def _without_empty_alias(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """ShareGPT's list is called ``conversations``; ``conversation`` is met too."""
    if "conversation" in values and "conversations" not in values and isinstance(values["conversation"], list):
        return {("conversations" if key == "conversation" else key): value for key, value in values.items()}
    return values


CONVERSATIONS: RowKind[Conversation] = RowKind(
    "conversations",
    describe_formats(),
    recognise,
    read_conversation,
    lambda name: [*REQUIRED_FIELDS[name], *OPTIONAL_FIELDS[name]],
    conversation_texts,
)
