"""What runs in the child process: brings the base model to the recipe, then runs the recipe.

A base model may have to be fetched and converted first. That needs the ML libraries and can take minutes, so it happens
here, where it can be stopped, and not in the supervisor. The recipe finds every input under ``workdir/inputs``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from martlet_core.recipe import RecipeResult, Report
from martlet_inputs.base_models.locate import link_base_model
from martlet_inputs.hub_datasets import link_hub_datasets

from martlet_trainer import judges
from martlet_trainer.config import (
    answers_options,
    judging_graders,
    parse_training_config,
    require_allowed,
    reward_services,
)
from martlet_trainer.gateway_calls import Gateway
from martlet_trainer.replica_answers import GatewayReplica, require_served

#: What each process of a training runs, and what the worker's deployment adds to its config: services that may be asked, and the gateway.
_BODY, _ALLOWED, _GATEWAY = "martlet_trainer.child:train_with_services", "allowed_reward_services", "gateway"


def run_training(
    config: Mapping[str, Any], workdir: Path, report: Report, should_stop: Callable[[], bool]
) -> RecipeResult:
    """Run the recipe that the spec names."""
    _let_threads_sleep()
    _require_models(config, workdir, report, should_stop)
    link_base_model(config["base_model"], workdir, report, should_stop)
    if "teacher_model" in config:
        link_base_model(config["teacher_model"], workdir, report, should_stop, name="teacher_model")
    link_hub_datasets(config["hub_datasets"], Path(config["base_model"]["cache_dir"]), workdir, report)
    from martlet_trainer.recipes.training import run

    outside = {_ALLOWED: config[_ALLOWED], _GATEWAY: config.get(_GATEWAY)}
    values = {**config["spec"], "token_cache": config["token_cache"]}
    return run(values, workdir, report, should_stop, body=_BODY, outside=outside)


def train_with_services(
    values: Mapping[str, Any], workdir: Path, report: Report, should_stop: Callable[[], bool]
) -> RecipeResult:
    """The body of a training in each of its processes: makes functions of the services that it asks, then trains."""
    from martlet_trainer.recipes.training import parse_values, train
    from martlet_trainer.reward_services import connect

    spec = dict(values)
    allowed, where = spec.pop(_ALLOWED), spec.pop(_GATEWAY)
    config = parse_values(spec)[0]
    services = reward_services(config)
    require_allowed(services, allowed)
    rewards, replica = dict(connect(services, should_stop)), None
    if where is not None:
        gateway = Gateway(**where, should_stop=should_stop)
        rewards |= judges.connect(judging_graders(config), gateway, config.seed)
        if answers_options(config).via == "inference":
            replica = GatewayReplica(gateway, workdir, report, should_stop)
    return train(spec, workdir, report, should_stop, rewards, replica)


def _require_models(config: Mapping[str, Any], workdir: Path, report: Report, should_stop: Callable[[], bool]) -> None:
    """Fail early where models are to be asked that aren't there. Those that were there when the job began are waited for."""
    if config.get(_GATEWAY) is None or (workdir / "resume").exists():
        return
    spec = {name: value for name, value in config["spec"].items() if name != "adapter_base_model"}
    asked = parse_training_config(spec)
    report.phase("looking for models to ask")
    gateway = Gateway(**config[_GATEWAY], should_stop=should_stop)
    if answers_options(asked).via == "inference":
        require_served(gateway, config["spec"].get("adapter_base_model") or asked.base_model)
    judges.require_judges(judging_graders(asked), gateway)


def run_merge(
    config: Mapping[str, Any], workdir: Path, report: Report, should_stop: Callable[[], bool]
) -> RecipeResult:
    """Fold the adapter into its base model."""
    _let_threads_sleep()
    link_base_model(config["base_model"], workdir, report, should_stop)
    from martlet_trainer.recipes.merge import run

    values = {**config["spec"], "base_model": config["base_model_name"], "task": config["task"]}
    return run(values, workdir, report, should_stop)


def _let_threads_sleep() -> None:
    """Make idle OpenMP threads sleep after a short spin; torch reads this when it is imported, which is later.

    On a quiet machine of two cores a training step took 2.0 s both with libgomp's own spin of 300,000 rounds and with
    30,000, and 3.3 s with none. Beside one busy process longer spins were faster (3,000,000: 78 and 112 tokens/s, 30,000:
    40), beside two slower (35 against 131; single runs). ``training/threads.py`` helps more than any of them.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "30000")
