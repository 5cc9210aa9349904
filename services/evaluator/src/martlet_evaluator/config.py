"""What an evaluation job asks for, as frozen values that mirror ``EvaluationSpec``.

Everything about a request that can be known without asking a target or reading a row is checked here, so that a wrong request is refused
at submission. The ``serve`` process uses this module: it imports no ML library.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from annotated_types import Ge, Le
from martlet_core.config import (
    Config,
    Float,
    Int,
    QueueConfig,
    dataset_violations,
    model_violations,
    parse_config,
    plain_enum,
    refuse,
)
from martlet_core.errors import FieldViolation, InvalidArgument
from martlet_core.model_tasks import CHAT_COMPLETIONS
from pydantic import BeforeValidator, Field, model_validator

#: Only such variables of the worker may hold keys of external targets: else a request could name any secret of the
#: deployment and have it sent away.
KEY_PREFIX = "MARTLET_EVALUATION_KEY_"
KEY_PATTERN = re.compile(KEY_PREFIX + r"[A-Z0-9_]{1,64}")
MAX_CONCURRENCY = 512
#: Targets, and suites, of a job.
MAX_ITEMS = 16

Engine = Annotated[Literal["gateway", "transformers", "external"], BeforeValidator(plain_enum("TARGET_ENGINE_"))]


class TargetConfig(Config):
    """Whom to ask."""

    name: str = Field(default="", max_length=256, description="In tables. Default: the model's.")
    model: str
    engine: Engine = "gateway"
    base_url: str | None = Field(default=None, description="Of an external target, as OpenAI's clients take it.")
    api_key_env: str | None = Field(default=None, description=f"Variable of the worker; begins with {KEY_PREFIX}.")

    @model_validator(mode="before")
    @classmethod
    def _name_is_models(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and not values.get("name"):
            return {**values, "name": values.get("model", "")}
        return values


class SuiteConfig(Config):
    """What to measure; the options are typed by ``suite_options``."""

    suite: str
    options: dict[str, Any] = Field(default_factory=dict)


class SamplingConfig(Config):
    """How targets answer."""

    max_tokens: Annotated[Int, Ge(1), Le(1 << 20)] = 256
    temperature: Annotated[Float, Ge(0), Le(2)] = 0.0
    seed: Annotated[Int, Ge(0), Le(2**31 - 1)] | None = Field(default=None, description="Default: the job's seed.")


class EvaluationConfig(Config):
    """One evaluation, as asked for; mirrors ``martlet.evaluator.v1.EvaluationSpec``."""

    targets: tuple[TargetConfig, ...] = ()
    dataset: str | None = Field(default=None, description="Not needed where every suite brings its own data.")
    suites: tuple[SuiteConfig, ...] = ()
    max_rows: Annotated[Int, Ge(1)] | None = Field(default=None, description="From the start. Default: all.")
    concurrency: Annotated[Int, Ge(1), Le(MAX_CONCURRENCY)] = 8
    max_failed_rows: Annotated[Int, Ge(0)] = 0
    sampling: SamplingConfig = Field(default_factory=SamplingConfig)
    baseline: str | None = Field(default=None, description="Name of a target. Default: the first.")
    category_field: str | None = None
    seed: Annotated[Int, Ge(0), Le(2**31 - 1)] = 42
    resources: QueueConfig = Field(default_factory=QueueConfig)

    @property
    def baseline_name(self) -> str:
        """The target that the others are compared with."""
        return self.baseline or self.targets[0].name

    @property
    def needs_dataset(self) -> bool:
        """Whether a suite reads the job's own rows."""
        from martlet_evaluator.suite_options import parse_suite_options

        return any(parse_suite_options(entry).needs_rows for entry in self.suites)

    @property
    def needs_conversations(self) -> bool:
        """Whether every row must be a conversation with an answer at its end."""
        from martlet_evaluator.suite_options import parse_suite_options

        return any(parse_suite_options(entry).needs_conversations for entry in self.suites)

    @property
    def row_checks(self) -> tuple[Any, ...]:
        """What the suites ask of every row, beside being a conversation."""
        from martlet_evaluator.suite_options import parse_suite_options

        checks = (parse_suite_options(entry).row_check for entry in self.suites)
        return tuple(dict.fromkeys(check for check in checks if check is not None))

    @property
    def routes(self) -> tuple[str, ...]:
        """Routes that every target must answer on."""
        from martlet_evaluator.suite_options import parse_suite_options

        return tuple(dict.fromkeys(filter(None, (parse_suite_options(entry).route for entry in self.suites))))

    @property
    def asks_targets(self) -> bool:
        """Whether a suite asks the targets; if none does, their names are all there is to them."""
        from martlet_evaluator.suite_options import parse_suite_options

        return any(parse_suite_options(entry).asks_targets for entry in self.suites)


def parse_evaluation_config(values: Mapping[str, Any], prefix: str = "spec") -> EvaluationConfig:
    """Read an evaluation's config from plain values.

    Args:
        values: keys as in ``EvaluationSpec``; enums by proto name or plain word; None and "" mean "not set".
        prefix: path put in front of field names in violations; empty for none.

    Raises:
        InvalidArgument: with one violation for every field at fault.
    """
    config = parse_config(EvaluationConfig, values, prefix)
    refuse(_violations(config), prefix)
    return config


def close_to(word: str, known: Sequence[str]) -> str:
    """``did you mean …?`` or the list of what is known."""
    close = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {close[0]}?" if close else f"must be one of: {', '.join(known)}"


def _violations(config: EvaluationConfig) -> list[FieldViolation]:
    # Not the field's own bounds: pydantic would count only the items that are right.
    found = [
        FieldViolation(name, f"has {len(values)}; give 1 to {MAX_ITEMS}")
        for name, values in (("targets", config.targets), ("suites", config.suites))
        if not 1 <= len(values) <= MAX_ITEMS
    ]
    if found:
        return found
    found = [*_target_violations(config), *_suite_violations(config)]
    names = [target.name for target in config.targets]
    if config.baseline is not None and config.baseline not in names:
        found.append(FieldViolation("baseline", f"is {config.baseline!r}; {close_to(config.baseline, names)}"))
    found += dataset_violations("dataset", config.dataset)
    if config.dataset is None and not found and config.needs_dataset:
        found.append(FieldViolation("dataset", "is required: at least one of the suites reads rows"))
    return found


def _target_violations(config: EvaluationConfig) -> list[FieldViolation]:
    found: list[FieldViolation] = []
    seen: set[str] = set()
    for index, target in enumerate(config.targets):
        at = f"targets.{index}"
        if target.name in seen:
            found.append(FieldViolation(f"{at}.name", f"is {target.name!r}, as another target's; names must differ"))
        seen.add(target.name)
        found += model_violations(f"{at}.model", target.model)
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
            FieldViolation(
                f"{at}.base_url", f"is {target.base_url!r}; give http(s)://host[:port]/path and nothing more"
            )
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
        if options.route not in ("", CHAT_COMPLETIONS) and any(
            target.engine == "transformers" for target in config.targets
        ):
            text = (
                f"asks targets on {options.route}, and engine transformers writes text alone; leave engine at gateway"
            )
            found.append(FieldViolation(f"suites.{index}.suite", text))
    return found
