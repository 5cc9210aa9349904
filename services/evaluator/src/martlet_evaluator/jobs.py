"""What is checked before a job asks anyone a question: targets answer by name or may be asked, data sets exist, belong to
the caller, and fit the suites.

Reading a data set may take long, so that has threads of its own: other calls go on meanwhile. Imports no ML library.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from martlet_core.addresses import is_allowed
from martlet_core.errors import FailedPrecondition, FieldViolation, InvalidArgument, PermissionDenied
from martlet_core.graders import MODEL_GRADERS
from martlet_core.model_rules import ARTIFACT_PREFIX
from martlet_core.model_tasks import CHAT_COMPLETIONS
from martlet_core.stores import Stores
from martlet_inputs.base_models.resolve import get_artifact

from martlet_evaluator.benchmarks import data_of, task_file
from martlet_evaluator.config import EvaluationConfig, TargetConfig
from martlet_evaluator.gateway_models import GatewayModels
from martlet_evaluator.local_models import resolve_local_model
from martlet_evaluator.rows import FIELD, load_rows
from martlet_evaluator.settings import EvaluatorSettings
from martlet_evaluator.suite_options import GradersOptions, JudgeOptions, LmEvalOptions, parse_suite_options

_CHECKS_AT_A_TIME = 4


class Submissions:
    """Checks what a caller asked for.

    Args:
        stores: artifacts and published models.
        settings: where targets are, and what the operator allows.
    """

    def __init__(self, stores: Stores, settings: EvaluatorSettings) -> None:
        self._stores = stores
        self._settings = settings
        self._gateway = GatewayModels(settings.gateway_url, settings.internal_token)
        self._threads = ThreadPoolExecutor(_CHECKS_AT_A_TIME, thread_name_prefix="submission")

    async def check(self, tenant: str, config: EvaluationConfig) -> None:
        """Refuse an evaluation that can't work.

        Raises:
            NotFound: a model, or a data set, doesn't exist.
            InvalidArgument: a model has no answer for what a suite asks; rows don't fit the suites (field, line, remedy); a stock
                task isn't known or has no data.
            PermissionDenied: an address, or a local path, that the operator didn't allow.
            FailedPrecondition: this deployment loads no models in its own process.
            Unavailable: the gateway doesn't answer.
        """
        for index, target in enumerate(config.targets if config.asks_targets else ()):
            await self._check_target(tenant, target, f"spec.targets.{index}", config.routes)
        for field, model in _asked_models(config):
            await self._gateway.require(model, tenant, field, (CHAT_COMPLETIONS,))
        await asyncio.get_running_loop().run_in_executor(self._threads, self._check_data, tenant, config)

    async def _check_target(self, tenant: str, target: TargetConfig, field: str, routes: Sequence[str]) -> None:
        if target.engine == "gateway":
            await self._gateway.require(target.model, tenant, f"{field}.model", routes)
        elif target.engine == "external":
            self._check_url(str(target.base_url), f"{field}.base_url")
        elif not self._settings.in_process_targets:
            raise FailedPrecondition(
                f"{field}.engine: is transformers, and this deployment's evaluator loads no models; its operator turns "
                "that on with MARTLET_IN_PROCESS_TARGETS, in the environment evaluator-transformers",
                reason="IN_PROCESS_TARGETS_OFF",
            )
        else:
            roots = self._settings.allowed_roots
            await asyncio.get_running_loop().run_in_executor(
                self._threads,
                lambda: resolve_local_model(target.model, tenant, self._stores, roots, field=f"{field}.model"),
            )

    def _check_url(self, url: str, field: str) -> None:
        if not is_allowed(url, self._settings.allowed_urls):
            raise PermissionDenied(
                f"{field}: {url} is not among the addresses that the operator allowed (MARTLET_ALLOWED_BASE_URLS)",
                reason="BASE_URL_NOT_ALLOWED",
            )

    def _check_data(self, tenant: str, config: EvaluationConfig) -> None:
        if config.dataset is not None:
            self._check_rows(tenant, config, config.dataset)
        for at, options in _options(config):
            if not isinstance(options, LmEvalOptions):
                continue
            for index, task in enumerate(options.tasks):
                field = f"{at}.tasks.{index}"
                try:
                    task_file(task.task)
                except InvalidArgument as error:
                    violations = [FieldViolation(f"{field}.{v.field}", v.description) for v in error.violations]
                    text = f"{field}.{error.message}"
                    raise InvalidArgument(text, reason=error.reason, violations=violations) from error
                if task.dataset is not None:
                    self._dataset(task.dataset, tenant, f"{field}.dataset")
                elif (
                    data_of(task, {"dataset": Path()} if config.dataset else {}, self._settings.benchmarks_dir) is None
                ):
                    text = f"is needed: {task.task} has no data here, and nothing is fetched; upload its rows"
                    raise InvalidArgument.field(f"{field}.dataset", text, reason="NO_BENCHMARK_DATA")

    def _check_rows(self, tenant: str, config: EvaluationConfig, name: str) -> None:
        artifact_id = self._dataset(name, tenant, FIELD)
        scratch = self._settings.work_dir / "evaluator-serve"
        scratch.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=scratch) as directory:
            path = Path(directory) / "dataset"
            self._stores.artifacts.download(artifact_id, path)
            load_rows(
                path,
                conversations=config.needs_conversations,
                max_rows=0,
                category_field=config.category_field,
                max_json_bytes=self._settings.max_json_bytes,
                checks=config.row_checks,
            )

    def _dataset(self, name: str, tenant: str, field: str) -> str:
        artifact = get_artifact(self._stores.artifacts, name, tenant, field)
        if artifact.kind != "dataset":
            raise InvalidArgument.field(field, f"{name} is of kind {artifact.kind}; give a data set")
        return artifact.id.removeprefix(ARTIFACT_PREFIX)


def _options(config: EvaluationConfig) -> Iterator[tuple[str, Any]]:
    for index, entry in enumerate(config.suites):
        yield f"spec.suites.{index}.options", parse_suite_options(entry)


def _asked_models(config: EvaluationConfig) -> Iterator[tuple[str, str]]:
    """Models that judge, with the fields that name them."""
    for at, options in _options(config):
        if isinstance(options, JudgeOptions):
            yield f"{at}.model", options.model
        elif isinstance(options, GradersOptions):
            for index, grader in enumerate(options.testing_criteria):
                yield from _graders_models(grader, f"{at}.testing_criteria.{index}")


def _graders_models(grader: Mapping[str, Any], at: str) -> Iterator[tuple[str, str]]:
    if grader["type"] in MODEL_GRADERS:
        yield f"{at}.model", str(grader["model"])
    elif grader["type"] == "multi":
        for name, part in grader["graders"].items():
            yield from _graders_models(part, f"{at}.graders.{name}")
