"""The body that all recipes share: reads data and model, trains by the recipe's method, writes the result."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from martlet_core.errors import FailedPrecondition, InvalidArgument
from martlet_core.recipe import RecipeResult, Report, ShouldStop, StopRequested
from martlet_inputs.base_models.model_files import files_in
from martlet_inputs.rows.report import DataReport
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from martlet_trainer.config import TrainingConfig, parse_training_config, resolve_max_length
from martlet_trainer.data.encode import EncodedRow, RowEncoder
from martlet_trainer.data.examples import Encode
from martlet_trainer.data.load import Loading
from martlet_trainer.data.mix import mix
from martlet_trainer.quantized_bases import check_trainable
from martlet_trainer.recipes import RECIPES
from martlet_trainer.recipes.results import shown, write_result
from martlet_trainer.training import launch
from martlet_trainer.training.computation import Computation, choose_computation
from martlet_trainer.training.devices import Placement, describe, place, set_threads
from martlet_trainer.training.loop import LoopInputs, TrainingLoop, count_parameters
from martlet_trainer.training.models import context_length, load_tokenizer
from martlet_trainer.training.neftune import with_noise
from martlet_trainer.training.plan import PlanSettings, StepPlan
from martlet_trainer.training.processes import Processes
from martlet_trainer.tuners.base import Tuner, TunerInputs
from martlet_trainer.tuners.build import build_tuner
from martlet_trainer.tuners.continued import base_name_of, with_shape_of
from martlet_trainer.tuners.fused_lora import fuse

#: Fields of ``DataConfig`` that decide which tokens a row becomes.
_DECIDES_TOKENS = {"max_length", "on_long_rows", "assistant_only_loss", "system"}
#: What several processes run.
_BODY = "martlet_trainer.recipes.training:train"


@dataclass(frozen=True)
class MethodInputs:
    """What a method builds its computation from.

    Attributes:
        config: the resolved config.
        tuner: the model and its trainable part.
        tokenizer: the base model's.
        examples: training examples.
        validation: validation examples.
        placement: device and arithmetic.
        processes: this process among the training's.
        continues_adapter: whether the training goes on with an adapter that was trained before.
        resume: the checkpoint that the training goes on from; None for a fresh start.
        report: told about phases.
        check_stop: called now and then; raises StopRequested.
    """

    config: TrainingConfig
    tuner: Tuner
    tokenizer: PreTrainedTokenizerBase
    examples: Sequence[Any]
    validation: Sequence[Any]
    placement: Placement
    processes: Processes
    continues_adapter: bool
    resume: Path | None
    report: Report
    check_stop: Callable[[], None]


@dataclass(frozen=True)
class Lesson:
    """How a training computes, and what it computes on.

    Attributes:
        computation: how batches are made and what their loss is.
        examples: training examples, with all that the computation needs.
        validation: validation examples alike.
        state: what of them must be found again when the training goes on.
    """

    computation: Computation
    examples: Sequence[Any]
    validation: Sequence[Any]
    state: Mapping[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Method:
    """What tells one recipe from another.

    Attributes:
        encode: makes examples of rows, given a row encoder.
        prepare: chooses the computation.
    """

    encode: Callable[[RowEncoder], Encode]
    prepare: Callable[[MethodInputs], Lesson]


def computation_on_rows(inputs: MethodInputs, rows: Sequence[EncodedRow], *, packing: bool = False) -> Computation:
    """How the model computes on rows, with its LoRA layers fused and the noise that the request asks for."""
    model, alpha = inputs.tuner.model, inputs.config.hyperparameters.neftune_noise_alpha
    computation = choose_computation(model, rows, inputs.placement.device, packing, noisy=alpha is not None)
    fuse(model)
    return with_noise(computation, model, alpha)


def load_method(recipe: str) -> Method:
    """The method of a recipe by name."""
    return importlib.import_module(RECIPES[recipe].module).METHOD


def run(values: Mapping[str, Any], workdir: Path, report: Report, should_stop: ShouldStop) -> RecipeResult:
    """Train as the spec says, by the recipe and in as many processes as it says.

    Args:
        values: the job's spec, see ``TrainingConfig``, with no more fields than were set; beside them ``adapter_base_model``, the
            name of the model under ``inputs/adapter``, which counts more than what the adapter itself says, and ``token_cache``, where
            tokens are kept for other trainings (default: in ``workdir``).
        workdir: holds ``inputs/base_model``, ``inputs/training_dataset`` (and ``training_dataset_2``, …), perhaps
            ``inputs/validation_dataset``, ``inputs/adapter`` and ``resume``; gets ``checkpoints`` and ``output``.
        report: told about phases, metrics and checkpoints.
        should_stop: looked at before every micro-batch.

    Raises:
        InvalidArgument: a row or a field that only tokenizer or model could judge.
        FailedPrecondition: the base model is quantized in a way that can't be trained on.
        StopRequested: after ``should_stop()``; the last whole step is in a checkpoint.
    """
    config, adapter_base, _ = _parse(values)
    workdir = workdir.resolve()
    _check_base(config, adapter_base, workdir, report)
    if config.resources.device_count > 1:
        place(config)  # refuses what can't run before any process is started
        return launch.run_processes(_BODY, values, workdir, config.resources.device_count, report, should_stop)
    return train(values, workdir, report, should_stop)


def train(values: Mapping[str, Any], workdir: Path, report: Report, should_stop: ShouldStop) -> RecipeResult:
    """The body of ``run``: one process, or one of several alike."""
    config, adapter_base, token_cache = _parse(values)
    method = load_method(config.recipe)
    adapter = _existing(workdir / "inputs" / "adapter")
    if adapter is not None:
        config = with_shape_of(config, adapter)
    config = _as_stored(config.resolved(), workdir)
    _quiet_libraries()
    set_threads(config.resources.device_count)
    placement = place(config, launch.local_rank())
    report.partial_result({"device": describe(placement, config.resources.device_count)})
    base_model = _required(workdir / "inputs" / "base_model")
    report.phase("reading data")
    tokenizer = load_tokenizer(base_model)

    def check_stop() -> None:
        if should_stop():
            raise StopRequested

    examples, validation, reports, config = _load_data(
        method, config, workdir, tokenizer, base_model, token_cache or workdir / "tokens", report, check_stop
    )
    report.phase("loading model")
    torch.manual_seed(config.seed)
    resume = _existing(workdir / "resume")
    base_name = adapter_base or (base_name_of(adapter) if adapter is not None else "") or config.base_model
    tuner = build_tuner(TunerInputs(config, placement, base_model, base_name, tokenizer, adapter, resume))
    check_stop()
    config = _with_device_defaults(config, placement, tuner)
    report.partial_result({"resolved_config": shown(config)})
    processes = Processes(placement)
    lesson = method.prepare(
        MethodInputs(
            config=config,
            tuner=tuner,
            tokenizer=tokenizer,
            examples=examples,
            validation=validation,
            placement=placement,
            processes=processes,
            continues_adapter=adapter is not None,
            resume=resume,
            report=report,
            check_stop=check_stop,
        )
    )
    plan = _plan(config, lesson.examples, processes.count)
    inputs = LoopInputs(
        config,
        tuner,
        lesson.examples,
        lesson.validation,
        plan,
        lesson.computation,
        placement,
        processes,
        workdir,
        lesson.state,
    )
    loop = TrainingLoop(inputs, report, should_stop)
    torch.manual_seed(config.seed + 1 + processes.rank)  # dropout differs between processes
    _say_start(report, tuner, plan, placement, resume, lesson.computation)
    if resume is not None:
        loop.restore(resume)
    report.phase("training")
    state = loop.run()
    report.phase("saving")
    if not processes.is_first:
        return RecipeResult({})
    return write_result(config, tuner, state, reports, workdir, placement)


def _parse(values: Mapping[str, Any]) -> tuple[TrainingConfig, str, Path | None]:
    """The config, the name of the model under the adapter that the training goes on from (empty for none), and where tokens lie."""
    spec = dict(values)
    adapter_base, cache = str(spec.pop("adapter_base_model", "")), spec.pop("token_cache", None)
    return parse_training_config(spec), adapter_base, Path(cache) if cache else None


def _check_base(config: TrainingConfig, adapter_base: str, workdir: Path, report: Report) -> None:
    """Refuse a quantized base model that can't be trained on: one from the hub is seen here for the first time."""
    files = files_in(_required(workdir / "inputs" / "base_model"))
    check_trainable(config.tuner, config.base_model, files, underneath=adapter_base)
    if files.quantization is not None:
        report.log(f"the base model is quantized by {files.quantization}, and stays so")


def _as_stored(config: TrainingConfig, workdir: Path) -> TrainingConfig:
    """The config with the storage of a base that was quantized beforehand, where it would show a default."""
    found = files_in(_required(workdir / "inputs" / "base_model")).quantization
    if found is None or config.tuner.kind != "qlora":
        return config
    return config.model_copy(update={"tuner": config.tuner.model_copy(update={"quantization": found.scheme})})


def _quiet_libraries() -> None:
    """Keep progress bars and a line for every matrix product out of the job's log."""
    transformers_logging.disable_progress_bar()
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)


def _load_data(
    method: Method,
    config: TrainingConfig,
    workdir: Path,
    tokenizer: PreTrainedTokenizerBase,
    base_model: Path,
    token_cache: Path,
    report: Report,
    check_stop: Callable[[], None],
) -> tuple[Sequence[Any], Sequence[Any], dict[str, DataReport], TrainingConfig]:
    """Training examples, validation examples, their reports, and the config with ``max_length`` filled in."""
    data = config.data
    max_length = resolve_max_length(data.max_length, context_length(base_model, tokenizer))
    data = data.model_copy(update={"max_length": max_length})
    encoder = RowEncoder(
        tokenizer,
        max_length=max_length,
        on_long_rows=data.on_long_rows,
        assistant_only_loss=data.assistant_only_loss,
        system=data.system,
    )
    loading = Loading(
        method=method.encode,
        encoder=encoder,
        kind=RECIPES[config.recipe].rows,
        on_bad_rows=data.on_bad_rows,
        base_model=base_model,
        cache=token_cache,
        options={"recipe": config.recipe, **data.model_dump(mode="json", include=_DECIDES_TOKENS)},
        report=report,
        check_stop=check_stop,
    )
    inputs = workdir / "inputs"
    loaded = [
        (source, *loading.load(_required(inputs / name), f"spec.{name}")) for name, source in config.sources.items()
    ]
    split = 0.0 if config.validation_dataset else data.validation_split
    rows, validation_rows, training = mix(loaded, split, config.seed)
    reports: dict[str, DataReport] = {"training_data": training}
    if config.validation_dataset:
        validation_rows, reports["validation_data"] = loading.load(
            _required(inputs / "validation_dataset"), "spec.validation_dataset"
        )
    for name, found in reports.items():
        _say_data(report, name, found)
    if encoder.rows_with_added_eos:
        report.log(
            f"the chat template doesn't end a turn; the end-of-sequence token was added to {encoder.rows_with_added_eos} rows"
        )
    report.partial_result({name: found.to_dict() for name, found in reports.items()})
    return rows, validation_rows, reports, config.model_copy(update={"data": data})


def _plan(config: TrainingConfig, rows: Sequence[Any], process_count: int) -> StepPlan:
    numbers = config.hyperparameters
    settings = PlanSettings(
        row_count=len(rows),
        batch_size=numbers.per_device_batch_size,
        accumulation=numbers.gradient_accumulation_steps,
        world_size=process_count,
        seed=config.seed,
        pack_length=(config.data.max_length or 0) if config.data.packing else 0,
    )
    return StepPlan(settings, [row.token_count for row in rows], numbers.epoch_count, numbers.max_steps)


def _with_device_defaults(config: TrainingConfig, placement: Placement, tuner: Tuner) -> TrainingConfig:
    """Fill in what depends on the device, and switch gradient checkpointing on if it is wanted."""
    wanted = config.hyperparameters.gradient_checkpointing
    possible = bool(tuner.model.supports_gradient_checkpointing)
    if wanted is None:
        wanted = possible and placement.device.type == "cuda"
    if wanted and not possible:
        raise InvalidArgument.field(
            "spec.hyperparameters.gradient_checkpointing",
            "is true, but this model's architecture has none; leave it out",
        )
    if wanted:
        tuner.model.gradient_checkpointing_enable({"use_reentrant": False})
    filled = {"gradient_checkpointing": wanted, "precision": placement.precision}
    return config.model_copy(update={"hyperparameters": config.hyperparameters.model_copy(update=filled)})


def _say_data(report: Report, name: str, found: DataReport) -> None:
    counts = f"{found.rows_read} rows read, {found.rows_used} used, {found.rows_truncated} truncated, {found.rows_refused} refused"
    report.log(
        f"{name.replace('_', ' ')}: {counts} (format {found.format}; {found.tokens} tokens, {found.loss_tokens} with loss)"
    )
    if found.ignored_fields:
        report.log(
            f"{name.replace('_', ' ')}: fields that training doesn't use: {', '.join(found.ignored_fields)}", "warn"
        )
    for source in found.sources:
        report.log(
            f"{name.replace('_', ' ')}: {source.rows_drawn} of {source.rows_used} rows of {source.name}, {source.tokens} tokens"
        )
    for issue in found.issues[:5]:
        report.log(f"{name.replace('_', ' ')}: {issue.describe()}", "warn")


def _say_start(
    report: Report, tuner: Tuner, plan: StepPlan, placement: Placement, resume: Path | None, computation: Computation
) -> None:
    trained, total = count_parameters(tuner.model)
    report.log(
        f"training {trained:,} of {total:,} parameters for {plan.total_steps} steps on {placement.device.type} in {placement.precision}, "
        f"{'without padding' if computation.isolates_rows else 'with padded batches'}{', going on from a checkpoint' if resume else ''}"
    )
    if computation.why_padded:
        report.log(f"batches are padded, which costs time and nothing else: {computation.why_padded}")


def _required(path: Path) -> Path:
    if not path.exists():
        raise FailedPrecondition(f"the job's input {path.name} is missing", reason="MISSING_INPUT")
    return path


def _existing(path: Path) -> Path | None:
    """The directory, or None if there is none or it is empty."""
    return path if path.is_dir() and any(path.iterdir()) else None
