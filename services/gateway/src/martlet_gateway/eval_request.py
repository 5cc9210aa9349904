"""OpenAI's requests of evals -> definitions and evaluation jobs, and the evaluator's words for its fields -> the client's.

How the evaluator is asked is in docs/evals.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
from martlet.evaluator.v1 import evaluation_job_pb2
from martlet_core.errors import FieldViolation, InvalidArgument, MartletError, NotFound
from martlet_core.grader_rules import (
    ITEM_REFERENCE,
    Namespace,
    check_criteria,
    check_messages,
    check_sampling,
    is_default,
    prompt_namespace,
    sample_fields,
    suggest,
)

from martlet_gateway import proto_json

SUITE = "graders"
#: The target where no model is asked: the answers are in the rows.
ROWS_TARGET = "rows"
#: What a generated answer has for graders to look at; answers that come with the rows may have anything.
GENERATED = ("output_text", "output_tools")
UNSUPPORTED_SOURCE = "UNSUPPORTED_DATA_SOURCE"
_SAMPLE_SCHEMA = {
    "type": "object",
    "properties": {"output_text": {"type": "string"}, "output_tools": {"type": "array", "items": {"type": "object"}}},
    "required": ["output_text"],
}
_SOURCES = ("completions", "responses", "jsonl")
_SOURCE_FIELDS = ("type", "source", "model", "input_messages", "sampling_params")
_EXTENSION = ("max_rows", "concurrency", "category_field", "resources")
_MAX_DEPTH = 64
_FIELD = re.compile(r"\bspec\.[a-z_]+(?:[.\[][A-Za-z0-9_\]]+)*")


@dataclass(frozen=True)
class DataSource:
    """A run's data source, checked.

    Attributes:
        kind: ``completions``, ``responses`` or ``jsonl``.
        model: that is asked; empty for ``jsonl``.
        file_id: of the rows; None where they are in the request.
        content: the rows of the request.
        messages: template of the prompt; empty where there is none.
        item_reference: path of the prompt in each row (``item.messages``); empty where there is none.
        sampling: ``max_tokens``, ``temperature``, ``seed`` as far as they were given.
    """

    kind: str
    model: str = ""
    file_id: str | None = None
    content: Sequence[Mapping[str, Any]] = ()
    messages: Sequence[Mapping[str, Any]] = ()
    item_reference: str = ""
    sampling: Mapping[str, Any] = field(default_factory=dict)

    @property
    def asks(self) -> bool:
        """Whether a model is asked."""
        return self.kind != "jsonl"


def strict_json(raw: bytes) -> Any:
    """A body as JSON; what Python's reader lets pass and stores can't take is refused: NaN, broken surrogates, deep nests."""
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise InvalidArgument(f"The body is not valid JSON: {error}.", reason="INVALID_JSON") from error
    level, depth = [value], 0
    while level:
        level = [
            child
            for parent in level
            if isinstance(parent, (dict, list))
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, (dict, list))
        ]
        depth += 1
        if depth > _MAX_DEPTH:
            raise InvalidArgument(f"The body is nested more than {_MAX_DEPTH} deep.", reason="INVALID_JSON")
    return value


def read_config(config: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """An eval's item schema, and whether there are samples beside the items.

    Raises:
        InvalidArgument: a type that isn't offered, unknown fields, or no schema.
    """
    kind = config.get("type")
    if kind in ("logs", "stored_completions"):
        text = f"`{kind}` is not offered: this deployment keeps no completions. Use `custom` and give the rows to the runs."
        raise InvalidArgument.field("data_source_config.type", text, reason=UNSUPPORTED_SOURCE)
    if kind != "custom":
        raise InvalidArgument.field("data_source_config.type", f"must be `custom`; got {kind!r:.60}.")
    _refuse_unknown(config, ("type", "item_schema", "include_sample_schema"), "data_source_config")
    schema, has_sample = config.get("item_schema"), config.get("include_sample_schema")
    if not isinstance(schema, dict) or schema.get("type", "object") != "object":
        text = f"must be a JSON schema of type object; got {schema!r:.60}."
        raise InvalidArgument.field("data_source_config.item_schema", text)
    for key, shape in (("properties", dict), ("required", list)):
        if not isinstance(schema.get(key, shape()), shape):
            word = "an object" if shape is dict else "a list"
            text = f"must be {word}; got {schema[key]!r:.60}."
            raise InvalidArgument.field(f"data_source_config.item_schema.{key}", text)
    if not all(isinstance(name, str) for name in schema.get("required", [])):
        text = f"must be a list of names; got {schema['required']!r:.60}."
        raise InvalidArgument.field("data_source_config.item_schema.required", text)
    if has_sample not in (None, True, False):
        text = f"must be true or false; got {has_sample!r:.60}."
        raise InvalidArgument.field("data_source_config.include_sample_schema", text)
    return schema, bool(has_sample)


def wrapped_schema(item_schema: Mapping[str, Any], has_sample: bool) -> dict[str, Any]:
    """The schema of a whole row, as evals show it."""
    properties: dict[str, Any] = {"item": item_schema}
    if has_sample:
        properties["sample"] = _SAMPLE_SCHEMA
    return {"type": "object", "properties": properties, "required": list(properties)}


def check_eval(criteria: Sequence[Mapping[str, Any]], item_schema: Mapping[str, Any], has_sample: bool) -> None:
    """Check an eval's graders. InvalidArgument with a violation for each fault; ``UNSUPPORTED_GRADER`` for the python grader."""
    namespace = Namespace(item_schema, has_sample)
    check_criteria(criteria, namespace)
    python = any(grader.get("type") == "python" for grader in criteria)
    _refuse(namespace.found, "UNSUPPORTED_GRADER" if python else None)


def read_source(
    values: Mapping[str, Any], criteria: Sequence[Mapping[str, Any]], item_schema: Mapping[str, Any]
) -> DataSource:
    """Check a run's data source.

    Raises:
        InvalidArgument: a type that isn't offered, or fields that are missing, unknown or wrong.
    """
    kind = values.get("type")
    if kind not in _SOURCES:
        text = f"{kind!r:.60} is not one of: {', '.join(_SOURCES)}.{suggest(kind, _SOURCES)}"
        raise InvalidArgument.field("data_source.type", text)
    asks = kind != "jsonl"
    _refuse_unknown(values, _SOURCE_FIELDS if asks else ("type", "source"), "data_source")
    file_id, content = _rows_of(values.get("source"))
    if not asks:
        return DataSource(kind, file_id=file_id, content=content)
    model = values.get("model")
    if not model or not isinstance(model, str):
        text = "is required: the model that is asked." if not model else f"must be a string; got {model!r:.60}."
        raise InvalidArgument.field("data_source.model", text, reason=None if model else "MISSING_REQUIRED_PARAMETER")
    unknown = [name for name in sample_fields(criteria) if name not in GENERATED]
    if unknown:
        text = f"a grader names `sample.{unknown[0]:.80}`, which an answer to `{kind}` hasn't got; it has: {', '.join(GENERATED)}."
        raise InvalidArgument.field("data_source.type", text + suggest(unknown[0], GENERATED))
    namespace = prompt_namespace(item_schema)
    messages, reference = _prompt(values.get("input_messages"), file_id is not None, namespace)
    sampling = values.get("sampling_params")
    if sampling is not None:
        check_sampling(sampling, "data_source.sampling_params", "max_completion_tokens", namespace)
    _refuse(namespace.found)
    numbers = {
        key: value for key, value in (sampling or {}).items() if value is not None and not is_default(key, value)
    }
    if "max_completion_tokens" in numbers:
        numbers["max_tokens"] = numbers.pop("max_completion_tokens")
    return DataSource(kind, model, file_id, content, messages, reference, numbers)


def _rows_of(source: Any) -> tuple[str | None, list[Mapping[str, Any]]]:
    at = "data_source.source"
    if not isinstance(source, dict):
        raise InvalidArgument.field(at, f"must be an object with a type; got {source!r:.60}.")
    kind = source.get("type")
    if kind in ("stored_completions", "responses"):
        text = f"`{kind}` is not offered: this deployment keeps no completions. Use `file_id` or `file_content`."
        raise InvalidArgument.field(f"{at}.type", text, reason=UNSUPPORTED_SOURCE)
    if kind == "file_id":
        _refuse_unknown(source, ("type", "id"), at)
        if not isinstance(source.get("id"), str):
            raise InvalidArgument.field(f"{at}.id", f"must be the id of a file; got {source.get('id')!r:.60}.")
        return source["id"], []
    if kind != "file_content":
        raise InvalidArgument.field(f"{at}.type", f"must be `file_id` or `file_content`; got {kind!r:.60}.")
    _refuse_unknown(source, ("type", "content"), at)
    content = source.get("content")
    if not isinstance(content, list) or not content:
        raise InvalidArgument.field(f"{at}.content", f"must be a list of rows, at least one; got {content!r:.60}.")
    for index, row in enumerate(content):
        if not isinstance(row, dict):
            raise InvalidArgument.field(f"{at}.content[{index}]", f"must be an object with `item`; got {row!r:.60}.")
        _refuse_unknown(row, ("item", "sample"), f"{at}.content[{index}]")
    return None, content


def _prompt(given: Any, is_file: bool, namespace: Namespace) -> tuple[list[Mapping[str, Any]], str]:
    """Template or reference."""
    at = "data_source.input_messages"
    if given is None:
        if not is_file:
            raise InvalidArgument.field(
                at, "is required: what the model is asked.", reason="MISSING_REQUIRED_PARAMETER"
            )
        return [], ""  # rows of chats ask for themselves; other files are refused once they are read
    if not isinstance(given, dict) or given.get("type") not in ("template", "item_reference"):
        text = f"must be an object of type `template` or `item_reference`; got {given!r:.80}."
        raise InvalidArgument.field(at, text)
    if given["type"] == "template":
        _refuse_unknown(given, ("type", "template"), at)
        check_messages(given.get("template"), f"{at}.template", namespace)
        return given.get("template") or [], ""
    _refuse_unknown(given, ("type", "item_reference"), at)
    reference = given.get("item_reference")
    if not isinstance(reference, str) or not ITEM_REFERENCE.fullmatch(reference):
        text = f"must be the path of a row's messages, such as `item.messages`; got {reference!r:.60}."
        raise InvalidArgument.field(f"{at}.item_reference", text)
    namespace.check_path(reference, f"{at}.item_reference")
    return [], reference


def build_spec(
    source: DataSource,
    criteria: Sequence[Mapping[str, Any]],
    dataset: str,
    rows: int,
    extension: Mapping[str, Any] | None,
) -> evaluation_job_pb2.EvaluationSpec:
    """The evaluation of a run.

    Args:
        source: the run's.
        criteria: the eval's.
        dataset: ``artifacts/{id}`` of the rows.
        rows: in the data set: so many may stay without an answer, as they are counted and not the run's end.
        extension: the body's ``martlet``.
    """
    spec = evaluation_job_pb2.EvaluationSpec(dataset=dataset, max_failed_rows=rows)
    target = spec.targets.add(model=source.model) if source.asks else spec.targets.add(model=ROWS_TARGET)
    target.name, target.engine = target.model, evaluation_job_pb2.TARGET_ENGINE_GATEWAY
    options: dict[str, Any] = {"testing_criteria": [dict(grader) for grader in criteria], "sample": source.asks}
    if source.messages:
        options["input_messages"] = [dict(message) for message in source.messages]
    if source.item_reference:
        options["item_reference"] = source.item_reference
    proto_json.fill(spec, {"suites": [{"suite": SUITE, "options": options}]}, "data_source")
    proto_json.fill(spec.sampling, source.sampling, "data_source.sampling_params")
    _refuse_unknown(extension or {}, _EXTENSION, "martlet")
    proto_json.fill(spec, extension or {}, "martlet")
    return spec


@contextmanager
def rest_names() -> Iterator[None]:
    """Errors of the evaluator leave the block with the names of fields that bodies use."""
    try:
        yield
    except MartletError as error:
        raise renamed(error) from error


def renamed(error: MartletError) -> MartletError:
    """The error with its fields as a REST client knows them; changed in place."""
    named = _FIELD.search(error.message)
    error.message = _FIELD.sub(lambda found: rest_name(found[0]), error.message)
    error.violations = tuple(FieldViolation(rest_name(v.field), v.description) for v in error.violations)
    if "param" in error.metadata:
        error.metadata["param"] = rest_name(error.metadata["param"])
    elif named is not None and not error.violations:
        error.metadata["param"] = rest_name(named[0])
    if isinstance(error, NotFound) and "MODEL" in error.reason:
        error.metadata.setdefault("param", "data_source.model")
        error.metadata["code"] = "model_not_found"
    return error


def rest_name(path: str) -> str:
    """``spec.targets.0.model`` -> ``data_source.model``."""
    path = path.removeprefix("evaluation_job.").removeprefix("spec.").replace("[", ".").replace("]", "")
    head, *rest = path.split(".")
    if head == "dataset":
        return "data_source.source"
    if head == "targets":
        return "data_source.model"
    if head == "sampling":
        name = "max_completion_tokens" if rest == ["max_tokens"] else ".".join(rest)
        return f"data_source.sampling_params.{name}".rstrip(".")
    if head == "suites":
        return _option_name(rest[2:])
    return f"martlet.{path}" if head in _EXTENSION else path


def _option_name(parts: Sequence[str]) -> str:
    """``testing_criteria.0.model`` -> ``testing_criteria[0].model``."""
    if not parts:
        return "testing_criteria"
    path = parts[0] + "".join(f"[{part}]" if part.isdigit() else f".{part}" for part in parts[1:])
    if parts[0] == "input_messages":
        return path.replace("input_messages", "data_source.input_messages.template", 1)
    return f"data_source.input_messages.{path}" if parts[0] == "item_reference" else path


def _refuse_unknown(values: Mapping[str, Any], known: Sequence[str], at: str) -> None:
    for key in values:
        if key not in known:
            text = f"is not known; there are: {', '.join(known)}.{suggest(key, known)}"
            raise InvalidArgument.field(f"{at}.{key}", text, reason="UNKNOWN_PARAMETER")


def _refuse(found: Sequence[FieldViolation], reason: str | None = None) -> None:
    if found:
        text = "; ".join(f"{v.field}: {v.description}" for v in found)
        raise InvalidArgument(text, reason=reason, violations=list(found))
