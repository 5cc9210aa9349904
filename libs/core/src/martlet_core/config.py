"""What every stage's config is built from: frozen values that mirror a spec of the contract, and one way to refuse a wrong one.

A config says what the user asked of one job; settings (``martlet_core.settings``) say where a process is deployed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, TypeVar

from annotated_types import Ge, Le
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, model_validator

from martlet_core.config_errors import violations_of
from martlet_core.errors import FieldViolation, InvalidArgument

ARTIFACT_PATTERN = re.compile(r"artifacts/[a-z0-9]{1,64}")
SUFFIX_PATTERN = re.compile(r"[A-Za-z0-9._-]{1,64}")
MODEL_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,255}|file:///.+")
#: What a model may be called, for messages.
MODEL_FORMS = "a registered name, org/model@revision, artifacts/<id>, a fine-tuned model's name or file:///path"


def _refuse_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")  # noqa: TRY004  pydantic turns it into a violation
    return value


def plain_enum(prefix: str) -> Callable[[Any], Any]:
    """Reads ``ON_BAD_ROWS_FAIL`` as ``fail``, so that a proto enum's name is taken as well as the plain word."""

    def plain(value: Any) -> Any:
        return value.removeprefix(prefix).lower() if isinstance(value, str) else value

    return plain


Int = Annotated[int, BeforeValidator(_refuse_bool)]
Float = Annotated[float, BeforeValidator(_refuse_bool)]
#: Place in the queue, and executions before a job gives up.
Priority = Annotated[Int, Ge(0), Le(9)]
MaxAttempts = Annotated[Int, Ge(1), Le(100)]


class Config(BaseModel):
    """Base of all configs: frozen; unknown keys, NaN and infinity are refused; a proto's "not set" reads as absent."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    #: Fields in which an empty string says something of its own.
    keep_empty: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="before")
    @classmethod
    def _drop_unset(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        return {key: value for key, value in values.items() if not cls._is_unset(key, value)}

    @classmethod
    def _is_unset(cls, key: str, value: Any) -> bool:
        if isinstance(value, str):
            return (value == "" and key not in cls.keep_empty) or value.endswith("_UNSPECIFIED")
        return value is None


C = TypeVar("C", bound=Config)


class QueueConfig(Config):
    """Place in the queue and number of attempts."""

    priority: Priority = 5
    max_attempts: MaxAttempts = 5


def parse_config(model: type[C], values: Mapping[str, Any], prefix: str = "spec") -> C:
    """Read a config from plain values.

    Args:
        model: the config.
        values: keys as in the contract; enums by proto name or plain word; None and "" mean "not set".
        prefix: path put in front of field names in violations; empty for none.

    Raises:
        InvalidArgument: with one violation for every field at fault.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        refuse(violations_of(error, model, prefix))
        raise


def refuse(violations: Sequence[FieldViolation], prefix: str = "") -> None:
    """Raise InvalidArgument with these violations, their fields under ``prefix``; nothing if there are none."""
    if not violations:
        return
    placed = tuple(FieldViolation(f"{prefix}.{v.field}" if prefix else v.field, v.description) for v in violations)
    raise InvalidArgument("; ".join(f"{v.field}: {v.description}" for v in placed), violations=placed)


def suffix_violations(suffix: str | None) -> list[FieldViolation]:
    """What is wrong with the part of a model's name that a user chose."""
    if suffix is None or SUFFIX_PATTERN.fullmatch(suffix):
        return []
    return [FieldViolation("suffix", f"is {suffix!r}; use 1 to 64 letters, digits, dots, underscores or hyphens")]


def dataset_violations(field: str, name: str | None) -> list[FieldViolation]:
    """What is wrong with how a data set is named."""
    if name is None or ARTIFACT_PATTERN.fullmatch(name):
        return []
    return [FieldViolation(field, f"is {name!r}; give artifacts/<id> of an uploaded data set")]


def model_violations(field: str, name: str) -> list[FieldViolation]:
    """What is wrong with how a model is named."""
    if MODEL_PATTERN.fullmatch(name):
        return []
    return [FieldViolation(field, f"is {name!r}; give {MODEL_FORMS}")]
