"""What a quantization job asks for, as frozen values that mirror ``QuantizationSpec``.

Everything about a request that can be known without opening its data or its model is checked here. This module imports no
ML library: the ``serve`` process uses it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Len
from martlet_core.config import (
    Config,
    Float,
    Int,
    QueueConfig,
    dataset_violations,
    model_violations,
    refuse,
    suffix_violations,
)
from martlet_core.config import parse_config as parse
from martlet_core.errors import FieldViolation
from pydantic import Field

from martlet_quantizer.methods import DEFAULT_GGUF_TYPE, MAX_PERPLEXITY_RATIO, Method, find

#: Fewest calibration rows that a method with calibration takes.
MIN_CALIBRATION_ROWS = 16
#: The one built-in calibration set.
BUILTIN = "texts"


class CalibrationConfig(Config):
    """Which texts a method looks at while it quantizes."""

    dataset: str | None = None
    builtin: str | None = Field(default=None, description=f"Default, where no dataset is named: {BUILTIN}.")
    max_rows: Annotated[Int, Ge(MIN_CALIBRATION_ROWS), Le(4096)] = 128
    sequence_length: Annotated[Int, Ge(32), Le(8192)] = 512


class MethodOptions(Config):
    """Options of methods; each method takes some of them."""

    bits: Literal[4, 8] | None = None
    group_size: Literal[32, 64, 128] | None = None
    symmetric: bool | None = None
    ignore: tuple[Annotated[str, Len(1, 256)], ...] = ()
    gguf_type: Literal["q8_0", "q4_0", "q4_1"] | None = None
    double_quantization: bool | None = None

    def given(self) -> list[str]:
        """Names of the options that were set."""
        return [name for name in type(self).model_fields if getattr(self, name) not in (None, ())]


class QuantizationConfig(Config):
    """One quantization, as asked for; mirrors ``martlet.quantizer.v1.QuantizationSpec``."""

    model: str
    method: str
    calibration: CalibrationConfig = Field(default_factory=CalibrationConfig)
    evaluation_dataset: str | None = None
    options: MethodOptions = Field(default_factory=MethodOptions)
    max_perplexity_ratio: Annotated[Float, Gt(1), Le(1e6)] | None = Field(
        default=None, description="Default: 1.05 for 8 bit, 1.35 for 4 bit."
    )
    sample_prompts: Annotated[tuple[Annotated[str, Len(1, 4000)], ...], Len(0, 16)] = ()
    suffix: str | None = None
    seed: Annotated[Int, Ge(0), Le(2**31 - 1)] = 42
    resources: QueueConfig = Field(default_factory=QueueConfig)
    check_serving: bool = True

    @property
    def bits(self) -> int:
        """Bits a weight, of the method or as asked for."""
        return find(self.method).bits_of(self.options.bits, self.options.gguf_type)

    @property
    def gguf_type(self) -> str:
        """Kind of GGUF block."""
        return self.options.gguf_type or DEFAULT_GGUF_TYPE

    @property
    def ratio_limit(self) -> float:
        """Largest perplexity ratio that the job passes with."""
        return self.max_perplexity_ratio or MAX_PERPLEXITY_RATIO[self.bits]


def parse_config(values: Mapping[str, Any], prefix: str = "spec") -> QuantizationConfig:
    """Read a config from plain values.

    Args:
        values: keys as in ``QuantizationSpec``; None and "" mean "not set".
        prefix: path put in front of field names in violations.

    Raises:
        InvalidArgument: with one violation for every field at fault.
    """
    config = parse(QuantizationConfig, values, prefix)
    method = find(config.method, f"{prefix}.method")
    refuse([violation for check in _CHECKS for violation in check(config, method)], prefix)
    return config


def _references(config: QuantizationConfig, _: Method) -> list[FieldViolation]:
    return [
        *model_violations("model", config.model),
        *dataset_violations("calibration.dataset", config.calibration.dataset),
        *dataset_violations("evaluation_dataset", config.evaluation_dataset),
        *suffix_violations(config.suffix),
    ]


def _calibration(config: QuantizationConfig, method: Method) -> list[FieldViolation]:
    asked = config.calibration
    found = []
    if not method.needs_calibration and (asked.dataset or asked.builtin):
        field = "calibration.dataset" if asked.dataset else "calibration.builtin"
        found.append(FieldViolation(field, f"{method.name} looks at no texts; leave the field out"))
    if asked.dataset and asked.builtin:
        found.append(FieldViolation("calibration.builtin", "name either a dataset or a built-in set, not both"))
    if asked.builtin and asked.builtin != BUILTIN:
        found.append(FieldViolation("calibration.builtin", f"is {asked.builtin!r}; there is only {BUILTIN}"))
    if asked.dataset and asked.dataset == config.evaluation_dataset:
        found.append(
            FieldViolation(
                "evaluation_dataset",
                "is the calibration set; a model isn't measured on the texts it was calibrated with. Name another one,"
                " or none for the built-in texts",
            )
        )
    return found


def _options(config: QuantizationConfig, method: Method) -> list[FieldViolation]:
    found = [
        FieldViolation(
            f"options.{name}", f"{method.name} doesn't take it; it takes {', '.join(sorted(method.options))}"
        )
        for name in config.options.given()
        if name not in method.options
    ]
    if "bits" in method.options and config.bits not in method.bits:
        allowed = " or ".join(map(str, method.bits))
        found.append(FieldViolation("options.bits", f"is {config.bits}; {method.name} takes {allowed}"))
    return found


_Check = Callable[[QuantizationConfig, Method], list[FieldViolation]]
_CHECKS: tuple[_Check, ...] = (_references, _calibration, _options)
