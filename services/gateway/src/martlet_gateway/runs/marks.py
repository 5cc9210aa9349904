"""YAML (or JSON, which is YAML) as plain values that remember where they stood, so that a mistake is named by its line.

Scalars are read by YAML 1.2's core rules: ``2e-4`` is a number, ``yes`` is text. Duplicate keys, anchors, tags and more
than one document are refused, and so are texts that are too large or too deep to be a run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml
from martlet_core.errors import FieldViolation, InvalidArgument

MAX_BYTES = 256 * 1024
_MAX_DEPTH = 32
_MOST_SHOWN = 30
_MAX_NODES = 20_000
_NULL = re.compile(r"~|null|Null|NULL|")
_TRUE, _FALSE = re.compile(r"true|True|TRUE"), re.compile(r"false|False|FALSE")
_INTEGER = re.compile(r"[-+]?[0-9]{1,18}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]{1,3})?")
_CORE = "tag:yaml.org,2002:"
#: Tags that plain text gets by itself; an explicit tag of another kind asks for something that isn't done here.
_TAGS = frozenset(
    _CORE + n for n in ("map", "seq", "str", "int", "float", "bool", "null", "timestamp", "merge", "value")
)


@dataclass(frozen=True, order=True)
class Mark:
    """A place in the text; lines and columns are counted from 1."""

    line: int
    column: int

    def __str__(self) -> str:
        return f"line {self.line}, column {self.column}"


@dataclass
class Document:
    """What a text says, and where.

    Attributes:
        values: dicts, lists, strings, numbers, booleans and None.
        keys: place of each key by its path (``steps.train.with.tuner.lora_rank``, ``steps.gate.with.require[0]``).
        marks: place of each value by its path.
    """

    values: Any = None
    keys: dict[str, Mark] = field(default_factory=dict)
    marks: dict[str, Mark] = field(default_factory=dict)

    def place(self, path: str, *, of_key: bool = False) -> Mark:
        """Where a path stands; of one that isn't there, where its nearest parent stands."""
        first, second = (self.keys, self.marks) if of_key else (self.marks, self.keys)
        while path:
            if found := first.get(path) or second.get(path):
                return found
            path = _parent(path)
        return self.marks.get("", Mark(1, 1))


class Mistakes:
    """Collects what is wrong with a document; ``refuse`` raises it all at once, by line."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._found: list[tuple[Mark, str, str]] = []

    def __bool__(self) -> bool:
        return bool(self._found)

    def add(self, path: str, text: str, *, of_key: bool = False) -> None:
        """Note a mistake at a path; ``of_key``: the key itself is the mistake."""
        self._found.append((self._document.place(path, of_key=of_key), path, text))

    def refuse(self) -> None:
        """InvalidArgument with one violation a mistake, if there are any."""
        if not self._found:
            return
        violations = [FieldViolation(path, f"{mark}: {text}") for mark, path, text in sorted(self._found)]
        lines = [f"{v.description} ({v.field})" if v.field else v.description for v in violations]
        text = lines[0] if len(lines) == 1 else "\n".join([f"{len(lines)} mistakes:", *lines[:_MOST_SHOWN]])
        more = f"\nand {len(lines) - _MOST_SHOWN} more" if len(lines) > _MOST_SHOWN else ""
        raise InvalidArgument(text + more, reason="INVALID_RUN", violations=violations)


def read(text: str) -> Document:
    """Read a text.

    Raises:
        InvalidArgument: reason ``INVALID_RUN``; it is no YAML, or uses what is refused here.
    """
    if len(text.encode()) > MAX_BYTES:
        raise InvalidArgument.field("source", f"has more than {MAX_BYTES // 1024} KiB; a run is a small text")
    try:
        _check_events(text)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        lines = text.splitlines()
        quotes = bool(mark and mark.line < len(lines) and "${" in lines[mark.line])
        hint = ' Between { } and [ ], a reference stands in quotes: "${step.output}".' if quotes else ""
        raise _refused(f"{where}this isn't YAML: {error.problem or error.context}.{hint}") from error
    except yaml.YAMLError as error:  # characters that YAML doesn't allow
        raise _refused(f"this isn't YAML: {' '.join(str(error).split())}.") from error
    if node is None:
        raise _refused("line 1, column 1: the text is empty; a run has `name` and `steps`.")
    document = Document()
    mistakes = Mistakes(document)
    document.values = _value(node, "", document, mistakes)
    mistakes.refuse()
    return document


def _check_events(text: str) -> None:
    """Refuse what would be costly or surprising, before nodes are made of it."""
    depth = documents = 0
    for count, event in enumerate(yaml.parse(text, Loader=yaml.SafeLoader)):
        if isinstance(event, yaml.AliasEvent):
            raise _at(event, f"`*{event.anchor}`: aliases aren't taken; write it out, or make it an input.")
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise _at(event, "a second document begins here; a run is one.")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > _MAX_DEPTH:
                raise _at(event, f"nested more than {_MAX_DEPTH} levels deep.")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if count > _MAX_NODES:
            raise _at(event, f"more than {_MAX_NODES} values; a run is a small text.")


def _value(node: yaml.Node, path: str, document: Document, mistakes: Mistakes) -> Any:
    document.marks[path] = _mark(node)
    if node.tag not in _TAGS:
        mistakes.add(path, f"the tag `{node.tag.replace(_CORE, '!!')}` isn't taken.")
        return None
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, path, document, mistakes)
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, f"{path}[{i}]", document, mistakes) for i, item in enumerate(node.value)]
    assert isinstance(node, yaml.ScalarNode)
    return node.value if node.style in ("'", '"', "|", ">") else _scalar(node.value)


def _mapping(node: yaml.MappingNode, path: str, document: Document, mistakes: Mistakes) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            mistakes.add(path, "a key must be a word, not a list or a mapping.")
            continue
        key = key_node.value
        where = f"{path}.{key}" if path else key
        mark = _mark(key_node)
        if key in values:
            first = document.keys[where]
            document.keys[where] = mark
            mistakes.add(where, f"`{key}` stands here a second time; the first is at {first}.", of_key=True)
            continue
        document.keys[where] = mark
        values[key] = _value(value_node, where, document, mistakes)
    return values


def _scalar(text: str) -> Any:
    if _NULL.fullmatch(text):
        return None
    if _TRUE.fullmatch(text):
        return True
    if _FALSE.fullmatch(text):
        return False
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text


def scalar(text: str) -> Any:
    """A word of a command line as YAML would read it."""
    return _scalar(text)


def shown(value: Any) -> str:
    """A value for an error message."""
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if value is None:
        return "nothing"
    text = {True: "true", False: "false"}.get(value, repr(value)) if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _mark(node: yaml.Node) -> Mark:
    return Mark(node.start_mark.line + 1, node.start_mark.column + 1)


def _at(event: yaml.Event, text: str) -> InvalidArgument:
    mark = event.start_mark
    return _refused(f"line {mark.line + 1}, column {mark.column + 1}: {text}")


def _refused(text: str) -> InvalidArgument:
    return InvalidArgument(text, reason="INVALID_RUN", violations=[FieldViolation("source", text)])


def _parent(path: str) -> str:
    cut = max(path.rfind("."), path.rfind("["))
    return path[:cut] if cut > 0 else ""
