"""What an evaluation job asks for, as frozen values that mirror ``EvaluationSpec``.

Everything about a request that can be known without asking a target or reading a row is checked here, so that a wrong request is refused
at submission. The ``serve`` process uses this module: it imports no ML library.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, TypeVar
from urllib.parse import urlsplit

from annotated_types import Ge, Le, MaxLen, MinLen
from martlet_core.errors import FieldViolation, InvalidArgument
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from martlet_evaluator.config_errors import violations_of

ARTIFACT_PATTERN = re.compile(r"artifacts/[a-z0-9]{1,64}")
NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
MODEL_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,255}|file:///.+")
#: Only such variables of the worker may hold keys of external targets: else a request could name any secret of the
#: deployment and have it sent away.
KEY_PREFIX = "MARTLET_EVALUATION_KEY_"
KEY_PATTERN = re.compile(KEY_PREFIX + r"[A-Z0-9_]{1,64}")


def _refuse_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")  # noqa: TRY004  pydantic turns it into a violation
    return value


def _whole_float(value: Any) -> Any:
    """A Struct has only doubles: 5.0 is read as 5 where a whole number is asked for."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def plain_enum(prefix: str) -> BeforeValidator:
    """Reads ``ENGINE_GATEWAY`` as ``gateway``, so that a proto enum's name is taken as well as the plain word."""

    def plain(value: Any) -> Any:
        return value.removeprefix(prefix).lower() if isinstance(value, str) else value

    return BeforeValidator(plain)


Int = Annotated[int, BeforeValidator(_whole_float), BeforeValidator(_refuse_bool)]
Float = Annotated[float, BeforeValidator(_refuse_bool)]
Engine = Annotated[Literal["gateway", "transformers", "external"], plain_enum("ENGINE_")]


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


class TargetConfig(Config):
    """Whom to ask."""

    name: str
    model: str
    engine: Engine = "gateway"
    base_url: str | None = Field(default=None, description="Of an external target, as OpenAI's clients take it.")
    api_key_env: str | None = Field(default=None, description=f"Variable of the worker; begins with {KEY_PREFIX}.")


class SuiteConfig(Config):
    """What to measure; the options are typed by ``suite_options``."""

    suite: str
    options: dict[str, Any] = Field(default_factory=dict)


class SamplingConfig(Config):
    """How targets answer."""

    max_tokens: Annotated[Int, Ge(1), Le(1 << 20)] = 256
    temperature: Annotated[Float, Ge(0), Le(2)] = 0.0
    seed: Annotated[Int, Ge(0), Le(2**31 - 1)] | None = Field(default=None, description="Default: the job's seed.")


class ResourceConfig(Config):
    """Where an evaluation runs."""

    priority: Annotated[Int, Ge(0), Le(9)] = 5
    max_attempts: Annotated[Int, Ge(1), Le(100)] = 5


class EvaluationConfig(Config):
    """One evaluation, as asked for; mirrors ``martlet.evaluator.v1.EvaluationSpec``."""

    targets: Annotated[tuple[TargetConfig, ...], MinLen(1), MaxLen(16)]
    dataset: str | None = Field(default=None, description="Not needed where every suite brings its own data.")
    suites: Annotated[tuple[SuiteConfig, ...], MinLen(1), MaxLen(16)]
    max_rows: Annotated[Int, Ge(1)] | None = Field(default=None, description="Default: all; drawn by the seed.")
    concurrency: Annotated[Int, Ge(1), Le(1024)] = 16
    max_failed_rows: Annotated[Int, Ge(0)] = 0
    sampling: SamplingConfig = Field(default_factory=SamplingConfig)
    baseline: str | None = Field(default=None, description="Name of a target. Default: the first.")
    category_field: str | None = None
    seed: Annotated[Int, Ge(0), Le(2**31 - 1)] = 42
    resources: ResourceConfig = Field(default_factory=ResourceConfig)

    @property
    def baseline_name(self) -> str:
        """The target that the others are compared with."""
        return self.baseline or self.targets[0].name

    @property
    def needs_dataset(self) -> bool:
        """Whether a suite reads the job's own rows."""
        from martlet_evaluator.suite_options import parse_suite_options

        return any(parse_suite_options(entry).needs_rows for entry in self.suites)


def parse_evaluation_config(values: Mapping[str, Any], prefix: str = "spec") -> EvaluationConfig:
    """Read an evaluation's config from plain values.

    Args:
        values: keys as in ``EvaluationSpec``; enums by proto name or plain word; None and "" mean "not set".
        prefix: path put in front of field names in violations; empty for none.

    Raises:
        InvalidArgument: with one violation for every field at fault.
    """
    config = parse(EvaluationConfig, values, prefix)
    raise_if_any([FieldViolation(join(prefix, v.field), v.description) for v in _violations(config)])
    return config


def parse(model: type[C], values: Mapping[str, Any], prefix: str) -> C:
    """Validate plain values; see ``parse_evaluation_config``."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise_if_any(violations_of(error, model, prefix))
        raise


def join(prefix: str, field: str) -> str:
    """The path of a field."""
    return f"{prefix}.{field}" if prefix else field


def raise_if_any(violations: Sequence[FieldViolation]) -> None:
    """InvalidArgument with these violations, if there are any."""
    if violations:
        raise InvalidArgument(
            "; ".join(f"{v.field}: {v.description}" for v in violations), violations=tuple(violations)
        )


def close_to(word: str, known: Sequence[str]) -> str:
    """``did you mean …?`` or the list of what is known."""
    close = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {close[0]}?" if close else f"must be one of: {', '.join(known)}"


def _violations(config: EvaluationConfig) -> list[FieldViolation]:
    found = [*_target_violations(config), *_suite_violations(config)]
    names = [target.name for target in config.targets]
    if config.baseline is not None and config.baseline not in names:
        found.append(FieldViolation("baseline", f"is {config.baseline!r}; {close_to(config.baseline, names)}"))
    if config.dataset is not None and not ARTIFACT_PATTERN.fullmatch(config.dataset):
        found.append(
            FieldViolation("dataset", f"is {config.dataset!r}; give artifacts/<id> of an uploaded data set")
        )
    if config.dataset is None and not found and config.needs_dataset:
        found.append(FieldViolation("dataset", "is required: at least one of the suites reads rows"))
    return found


def _target_violations(config: EvaluationConfig) -> list[FieldViolation]:
    found: list[FieldViolation] = []
    seen: set[str] = set()
    for index, target in enumerate(config.targets):
        at = f"targets.{index}"
        if not NAME_PATTERN.fullmatch(target.name):
            found.append(FieldViolation(f"{at}.name", f"is {target.name!r}; use letters, digits, dots, _ and -"))
        if target.name in seen:
            found.append(FieldViolation(f"{at}.name", f"is {target.name!r}, as another target's; names must differ"))
        seen.add(target.name)
        if not MODEL_PATTERN.fullmatch(target.model):
            found.append(FieldViolation(f"{at}.model", f"is {target.model!r}; give a model's name"))
        found += _url_violations(at, target)
    return found


def _url_violations(at: str, target: TargetConfig) -> list[FieldViolation]:
    found: list[FieldViolation] = []
    if target.engine != "external":
        for name in ("base_url", "api_key_env"):
            if getattr(target, name) is not None:
                found.append(FieldViolation(f"{at}.{name}", f"is for external targets; engine is {target.engine}"))
        return found
    if target.base_url is None:
        found.append(FieldViolation(f"{at}.base_url", "is required for an external target"))
    elif not _is_plain_url(target.base_url):
        found.append(
            FieldViolation(f"{at}.base_url", f"is {target.base_url!r}; give http(s)://host[:port]/path and nothing more")
        )
    if target.api_key_env is not None and not KEY_PATTERN.fullmatch(target.api_key_env):
        found.append(
            FieldViolation(f"{at}.api_key_env", f"is {target.api_key_env!r}; such variables begin with {KEY_PREFIX}")
        )
    return found


def _is_plain_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        port_is_right = parts.port is None or parts.port > 0
    except ValueError:
        return False
    extras = parts.username or parts.password or parts.query or parts.fragment
    return parts.scheme in ("http", "https") and bool(parts.hostname) and port_is_right and not extras


def _suite_violations(config: EvaluationConfig) -> list[FieldViolation]:
    from martlet_evaluator.suite_options import parse_suite_options

    found: list[FieldViolation] = []
    for index, entry in enumerate(config.suites):
        try:
            options = parse_suite_options(entry)
        except InvalidArgument as error:
            found += [FieldViolation(f"suites.{index}.{v.field}", v.description) for v in error.violations]
            continue
        found += [FieldViolation(f"suites.{index}.options.{v.field}", v.description) for v in options.check(config)]
    return found


def is_allowed(base_url: str, allowed: Sequence[str]) -> bool:
    """Whether the operator allowed an address: equal to one of the allowed, but for a slash at the end."""
    return base_url.rstrip("/") in {entry.rstrip("/") for entry in allowed}
