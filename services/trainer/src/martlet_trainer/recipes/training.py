"""The body that all recipes share: reads data and model, trains by the recipe's method, writes the result."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from martlet_core.errors import InvalidArgument
from martlet_core.recipe import RecipeResult, Report, ShouldStop, StopRequested
from martlet_inputs.base_models.model_files import files_in
from martlet_inputs.rows.report import DataReport
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from martlet_trainer.base_tasks import check_base_task
from martlet_trainer.config import TrainingConfig, parse_training_config, row_kind
from martlet_trainer.data.load import Loading
from martlet_trainer.labels import label_names
from martlet_trainer.quantized_bases import check_trainable
from martlet_trainer.recipes import RECIPES
from martlet_trainer.recipes.method import HeadInputs, Lesson, Method, MethodInputs, load_method
from martlet_trainer.recipes.reading import (
    read_data,
    required_input,
    row_encoder,
    what_decides_tokens,
    with_max_length,
)
from martlet_trainer.recipes.results import shown, write_result
from martlet_trainer.replicas import Replica
from martlet_trainer.rewards import Rewards
from martlet_trainer.training import launch
from martlet_trainer.training.computation import Computation
from martlet_trainer.training.devices import Placement, describe, place, set_threads
from martlet_trainer.training.heads import Head, with_padding
from martlet_trainer.training.liger import require_liger, use_liger
from martlet_trainer.training.loop import LoopInputs, TrainingLoop, count_parameters
from martlet_trainer.training.models import load_tokenizer
from martlet_trainer.training.plan import PlanSettings, StepPlan
from martlet_trainer.training.processes import Processes
from martlet_trainer.tuners.base import FirstBatch, Tuner, TunerInputs
from martlet_trainer.tuners.build import build_tuner
from martlet_trainer.tuners.continued import base_name_of, with_shape_of

#: What several processes run.
_BODY = "martlet_trainer.recipes.training:train"
#: Steps whose batches a tuner may look at before it starts.
_FIRST_STEPS = 8


def run(
    values: Mapping[str, Any],
    workdir: Path,
    report: Report,
    should_stop: ShouldStop,
    *,
    body: str = _BODY,
    outside: Mapping[str, Any] = MappingProxyType({}),
) -> RecipeResult:
    """Train as the spec says, by the recipe and in as many processes as it says.

    Args:
        values: the job's spec, see ``TrainingConfig``, with no more fields than were set; beside them ``adapter_base_model``, the
            name of the model under ``inputs/adapter``, which counts more than what the adapter itself says, and ``token_cache``, where
            tokens are kept for other trainings (default: in ``workdir``).
        workdir: holds ``inputs/base_model``, ``inputs/training_dataset`` (and ``training_dataset_2``, …), perhaps
            ``inputs/validation_dataset``, ``inputs/adapter``, ``inputs/teacher_model`` and ``resume``; gets ``checkpoints`` and ``output``.
        report: told about phases, metrics and checkpoints.
        should_stop: looked at before every micro-batch.
        body: ``module:function`` that each process runs, where it does more than ``train``: it calls that with what it made.
        outside: what the body needs to make it, beside ``values``; JSON-ready.

    Raises:
        InvalidArgument: a row or a field that only tokenizer or model could judge.
        FailedPrecondition: the base model is quantized in a way that can't be trained on.
        StopRequested: after ``should_stop()``; the last whole step is in a checkpoint.
    """
    config, adapter_base, _ = parse_values(values)
    workdir = workdir.resolve()
    _check_base(config, adapter_base, workdir, report)
    if config.resources.device_count > 1:
        place(config)  # refuses what can't run before any process is started
        count = config.resources.device_count
        return launch.run_processes(body, {**values, **outside}, workdir, count, report, should_stop)
    return launch.load_body(body)({**values, **outside}, workdir, report, should_stop)


def train(
    values: Mapping[str, Any],
    workdir: Path,
    report: Report,
    should_stop: ShouldStop,
    rewards: Mapping[str, Rewards] = MappingProxyType({}),
    replica: Replica | None = None,
) -> RecipeResult:
    """The body of ``run``: one process, or one of several alike. ``rewards`` (by name) and ``replica`` are those that were made outside."""
    config, adapter_base, token_cache = parse_values(values)
    method = load_method(config.recipe)
    adapter = _existing(workdir / "inputs" / "adapter")
    if adapter is not None:
        config = with_shape_of(config, adapter)
    config = _as_stored(config.resolved(), workdir)
    _quiet_libraries()
    set_threads(config.resources.device_count)
    placement = place(config, launch.local_rank())
    if config.hyperparameters.use_liger_kernel:
        require_liger(placement.device)
    report.partial_result({"device": describe(placement, config.resources.device_count)})
    base_model = required_input(workdir / "inputs" / "base_model")
    report.phase("reading data")
    tokenizer = load_tokenizer(base_model)
    if RECIPES[config.recipe].task != "causal_lm":
        with_padding(tokenizer)

    def check_stop() -> None:
        if should_stop():
            raise StopRequested

    config = with_max_length(config, base_model, tokenizer)
    encoder = row_encoder(config, tokenizer)
    loading = Loading(
        method=method.encode,
        encoder=encoder,
        kind=row_kind(config),
        on_bad_rows=config.data.on_bad_rows,
        base_model=base_model,
        cache=token_cache or workdir / "tokens",
        options=what_decides_tokens(config),
        report=report,
        check_stop=check_stop,
    )
    examples, validation, reports = read_data(config, loading, workdir / "inputs")
    if encoder.rows_with_added_eos:
        report.log(
            f"the chat template doesn't end a turn; the end-of-sequence token was added to {encoder.rows_with_added_eos} rows"
        )
    head = _choose_head(method, config, base_model, tokenizer, reports)
    report.phase("loading model")
    torch.manual_seed(config.seed)
    resume = _existing(workdir / "resume")
    base_name = adapter_base or (base_name_of(adapter) if adapter is not None else "") or config.base_model
    tuner = build_tuner(TunerInputs(config, placement, base_model, base_name, tokenizer, adapter, resume, head))
    check_stop()
    if config.hyperparameters.use_liger_kernel:
        use_liger(tuner.model)
        report.log("Liger's kernels compute what they know of this architecture; the loss stays the trainer's own")
    config = _with_device_defaults(config, placement, tuner)
    report.partial_result({"resolved_config": shown(config)})
    processes = Processes(placement, config.resources.sharding)
    lesson = method.prepare(
        MethodInputs(
            config=config,
            tuner=tuner,
            tokenizer=tokenizer,
            given=workdir / "inputs",
            examples=examples,
            validation=validation,
            placement=placement,
            processes=processes,
            continues_adapter=adapter is not None,
            resume=resume,
            rewards=rewards,
            replica=replica,
            head=head,
            report=report,
            check_stop=check_stop,
        )
    )
    plan = _plan(config, lesson.examples, processes.count)
    if resume is None and adapter is None:
        _meet_data(tuner, lesson, plan, placement, check_stop)
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
    with processes.whole(tuner.model):
        if not processes.is_first:
            return RecipeResult({})
        return write_result(config, tuner, state, reports, workdir, placement)


def parse_values(values: Mapping[str, Any]) -> tuple[TrainingConfig, str, Path | None]:
    """The config, the name of the model under the adapter that the training goes on from (empty for none), and where tokens lie."""
    spec = dict(values)
    adapter_base, cache = str(spec.pop("adapter_base_model", "")), spec.pop("token_cache", None)
    return parse_training_config(spec), adapter_base, Path(cache) if cache else None


def _check_base(config: TrainingConfig, adapter_base: str, workdir: Path, report: Report) -> None:
    """Refuse a base model that can't be trained on: one from the hub is seen here for the first time."""
    files = files_in(required_input(workdir / "inputs" / "base_model"))
    check_base_task(config, files)
    check_trainable(config.tuner, config.base_model, files, underneath=adapter_base)
    if files.quantization is not None:
        report.log(f"the base model is quantized by {files.quantization}, and stays so")


def _as_stored(config: TrainingConfig, workdir: Path) -> TrainingConfig:
    """The config with the storage of a base that was quantized beforehand, where it would show a default."""
    found = files_in(required_input(workdir / "inputs" / "base_model")).quantization
    if found is None or config.tuner.kind != "qlora":
        return config
    return config.model_copy(update={"tuner": config.tuner.model_copy(update={"quantization": found.scheme})})


def _choose_head(
    method: Method,
    config: TrainingConfig,
    base_model: Path,
    tokenizer: PreTrainedTokenizerBase,
    reports: Mapping[str, DataReport],
) -> Head:
    """What the model is to end in."""
    labels = label_names(
        config, {f"spec.{name.replace('_data', '_dataset')}": found for name, found in reports.items()}
    )
    head = method.head(HeadInputs(config, base_model, labels))
    pad: Any = tokenizer.pad_token_id
    return replace(head, pad_token_id=pad) if head.labels else head


def _quiet_libraries() -> None:
    """Keep progress bars and a line for every matrix product out of the job's log."""
    transformers_logging.disable_progress_bar()
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)


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


def _meet_data(
    tuner: Tuner, lesson: Lesson, plan: StepPlan, placement: Placement, check_stop: Callable[[], None]
) -> None:
    """Show a tuner the first batches, as the first process will compute them."""

    def batches() -> Iterator[FirstBatch]:
        for step in range(min(_FIRST_STEPS, plan.total_steps)):
            for chosen in plan.rows_of(step, rank=0):
                check_stop()
                rows = [lesson.examples[i] for i in chosen]
                batch = lesson.computation.collate(rows, placement.device)
                mask = getattr(batch, "rows", batch).inputs.get("attention_mask")
                yield FirstBatch(None if mask is None else mask.bool(), partial(_loss, tuner, lesson, batch, rows))

    tuner.companion.meet_data(batches())


def _loss(tuner: Tuner, lesson: Lesson, batch: Any, rows: Sequence[Any]) -> torch.Tensor:
    return lesson.computation.objective(tuner.model, batch).total / sum(row.weight for row in rows)


def _with_device_defaults(config: TrainingConfig, placement: Placement, tuner: Tuner) -> TrainingConfig:
    """Fill in what depends on the device, and switch gradient checkpointing on if it is wanted."""
    wanted = config.hyperparameters.gradient_checkpointing
    possible = bool(tuner.model.supports_gradient_checkpointing) and config.tuner.kind != "prefix_tuning"
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


def _existing(path: Path) -> Path | None:
    """The directory, or None if there is none or it is empty."""
    return path if path.is_dir() and any(path.iterdir()) else None
