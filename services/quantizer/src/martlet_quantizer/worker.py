"""A worker of one family of methods: a thin supervisor without torch, in the family's environment."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from martlet_core.errors import InvalidArgument
from martlet_core.job_handler import JobHandler
from martlet_core.stage_worker import work_until_told
from martlet_core.stores import Stores
from martlet_inputs.base_models.locate import ModelDirs

from martlet_quantizer.handlers import QuantizationHandler
from martlet_quantizer.methods import FAMILIES
from martlet_quantizer.serving_check import ServingCheck
from martlet_quantizer.settings import QuantizerSettings

STAGE = "quantizer"


def build_handlers(stores: Stores, settings: QuantizerSettings) -> Sequence[JobHandler]:
    """The handler of the one kind of job."""
    dirs = ModelDirs(settings.models_dir, settings.cache_dir, settings.allowed_roots)
    serving = ServingCheck(
        settings.gateway_url, settings.internal_token, settings.serving_check_seconds, settings.serving_checks
    )
    return [QuantizationHandler(stores, dirs, engine_pythons(settings), serving)]


def engine_pythons(settings: QuantizerSettings) -> dict[str, str]:
    """Interpreters of the families' environments on this machine, by family."""
    named = settings.quantizer_environments
    directory = Path(named) if named else Path(sys.prefix).parent
    found = {family: directory / f"quantizer-{family}" / "bin" / "python" for family in FAMILIES}
    return {family: str(python) for family, python in found.items() if python.is_file()}


def work(settings: QuantizerSettings, family: str) -> int:
    """Serve a family's queue until SIGTERM; returns the exit code.

    Raises:
        InvalidArgument: no family was named.
    """
    if not family:
        raise InvalidArgument.field(
            "--family", f"is required (or MARTLET_QUANTIZER_FAMILY): one of {', '.join(FAMILIES)}"
        )
    return work_until_told(
        STAGE, settings, settings.family_queue(family), lambda stores: build_handlers(stores, settings)
    )
