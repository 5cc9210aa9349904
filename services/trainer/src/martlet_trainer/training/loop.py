"""The training loop: steps, validation, checkpoints, stopping and going on. It knows nothing of a recipe but its objective."""

from __future__ import annotations

import math
import shutil
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from martlet_core.errors import FailedPrecondition
from martlet_core.recipe import Report, ShouldStop, StopRequested
from torch import nn

from martlet_trainer.config import TrainingConfig
from martlet_trainer.data.examples import Example
from martlet_trainer.training.checkpoint import (
    STATE_DIR,
    TrainingState,
    random_states,
    read_optimizer,
    read_random_states,
    read_state,
    read_tuner,
    set_random_states,
    write_checkpoint,
)
from martlet_trainer.training.computation import Computation
from martlet_trainer.training.devices import Placement, peak_memory_bytes
from martlet_trainer.training.optimizers import build_optimizer, build_schedule
from martlet_trainer.training.plan import StepPlan
from martlet_trainer.training.processes import Processes
from martlet_trainer.training.sums import Sums
from martlet_trainer.training.threads import ThreadGovernor
from martlet_trainer.tuners.base import Tuner

#: Steps whose pace the estimate of the remaining time goes by.
_PACE_STEPS = 20


@dataclass(frozen=True)
class LoopInputs:
    """What a training is made of.

    Attributes:
        config: the resolved config.
        tuner: the model and its trainable part.
        rows: training examples.
        validation_rows: validation examples; empty for none.
        plan: which rows each step takes.
        computation: how batches are made, and the objective.
        placement: device and arithmetic.
        processes: this process among the training's.
        workdir: the job's working directory.
        objective_state: what the objective was made of and must find again when the training goes on; kept in checkpoints.
    """

    config: TrainingConfig
    tuner: Tuner
    rows: Sequence[Example]
    validation_rows: Sequence[Example]
    plan: StepPlan
    computation: Computation
    placement: Placement
    processes: Processes
    workdir: Path
    objective_state: Mapping[str, torch.Tensor] = field(default_factory=dict)


class TrainingLoop:
    """Runs a training from its start, or from a checkpoint, to its end or until it is asked to stop."""

    def __init__(self, inputs: LoopInputs, report: Report, should_stop: ShouldStop) -> None:
        self._in = inputs
        self._numbers = inputs.config.hyperparameters
        self._report = report
        self._should_stop = should_stop
        self._model = inputs.processes.prepare(inputs.tuner.model)
        self._trainable = [p for p in inputs.tuner.model.parameters() if p.requires_grad]
        optimizer = build_optimizer(inputs.tuner.model, self._numbers)
        self._optimizer = inputs.processes.prepare_optimizer(optimizer)
        self._schedule = build_schedule(optimizer, self._numbers, inputs.plan.total_steps)
        self._companion = inputs.tuner.companion
        self._companion.begin(inputs.plan.total_steps, optimizer)
        self._state = TrainingState(plan=asdict(inputs.plan.settings) | {"total_steps": inputs.plan.total_steps})
        self._random = random_states(inputs.placement.device)
        self._last_checkpoint = (0, time.monotonic())  # step, when
        self._pace: deque[float] = deque(maxlen=_PACE_STEPS)
        self._best = inputs.workdir / "best" if self._numbers.early_stopping_patience else None
        # Ranks wait for one another anyway, and a GPU leaves the CPU's threads idle.
        alone_on_cpu = inputs.placement.device.type == "cpu" and inputs.processes.count == 1
        self._threads = ThreadGovernor(torch.get_num_threads() if alone_on_cpu else 1, torch.set_num_threads)

    def restore(self, checkpoint: Path) -> None:
        """Go on from a checkpoint. The weights are in the model already.

        Raises:
            FailedPrecondition: it was taken under other settings, so that "the same steps" has no meaning.
        """
        state = read_state(checkpoint)
        if state.plan != self._state.plan:
            changed = ", ".join(sorted(key for key in self._state.plan if state.plan.get(key) != self._state.plan[key]))
            raise FailedPrecondition(
                f"the checkpoint was taken with other data or settings ({changed})", reason="BAD_CHECKPOINT"
            )
        saved = read_optimizer(checkpoint)
        self._in.processes.load_optimizer_state(self._optimizer, saved["optimizer"])
        self._schedule.load_state_dict(saved["schedule"])
        self._in.processes.load_scaler_state(saved["scaler"])
        self._companion.restore(read_tuner(checkpoint))
        self._random = read_random_states(checkpoint, self._in.processes.rank)
        set_random_states(self._random, self._in.placement.device)
        self._state = state
        self._last_checkpoint = (state.step, time.monotonic())
        best = checkpoint / STATE_DIR / "best"
        if self._best is not None and best.is_dir() and self._in.processes.is_first:
            shutil.copytree(best, self._best, dirs_exist_ok=True)

    def run(self) -> TrainingState:
        """Train to the end.

        Raises:
            StopRequested: ``should_stop()`` was seen; a checkpoint of the last whole step was handed over.
            FailedPrecondition: the loss is not finite any more.
        """
        self._model.train()
        if self._is_evaluation_due():  # stopped between a step and its validation
            self._validate()
        while self._state.step < self._in.plan.total_steps and not self._state.stopped_early:
            try:
                self._step()
                improved = self._validate() if self._is_evaluation_due() else False
            except StopRequested:
                self._checkpoint(is_best=False)
                raise
            if improved or self._is_checkpoint_due():
                self._checkpoint(is_best=improved)
        self._checkpoint(is_best=False)
        self._load_best()
        return self._state

    def _step(self) -> None:
        started = time.perf_counter()
        processes, state = self._in.processes, self._state
        batches = self._in.plan.rows_of(state.step, processes.rank)
        weight = self._weight_of(state.step)
        device = self._in.placement.device
        sums = Sums(self._in.computation.measures)
        tokens = rows = 0
        self._companion.before_step(state.step)
        self._in.computation.begin(state.step, validating=False)
        for index, chosen in enumerate(batches):
            self._stop_if_asked()
            # A rank without rows of its own still takes part in the exchange, with a row that weighs nothing.
            batch = self._in.computation.collate([self._in.rows[i] for i in chosen or [0]], device)
            share = processes.count / weight if chosen else 0.0
            with processes.accumulate(self._model, is_last=index == len(batches) - 1):
                loss = self._in.computation.objective(self._model, batch)
                penalty = self._companion.penalty() if index == len(batches) - 1 else None
                processes.backward(loss.total * share if penalty is None else loss.total * share + penalty)
            if chosen:
                sums.add(loss)
                tokens, rows = tokens + batch.token_count, rows + batch.row_count
        rate = self._optimizer.param_groups[0]["lr"]
        norm = processes.clip(self._trainable, self._numbers.max_grad_norm)
        tokens, rows = processes.sum([tokens, rows])
        means = sums.means(processes, weight)
        if not math.isfinite(means["loss"]):
            advice = "lower hyperparameters.learning_rate, or set hyperparameters.precision to float32"
            raise FailedPrecondition(
                f"training diverged: the loss is {means['loss']} at step {state.step + 1}; {advice}", reason="DIVERGED"
            )
        self._optimizer.step()
        self._companion.after_step(state.step)
        self._schedule.step()
        self._optimizer.zero_grad(set_to_none=True)
        seconds = time.perf_counter() - started
        self._pace.append(seconds)
        self._threads.step_done(tokens, seconds)
        state.step += 1
        state.trained_tokens += int(tokens)
        state.train_seconds += seconds
        self._random = random_states(device)  # the next step, also if it is broken off, begins from here
        self._record(
            {
                **means,
                "learning_rate": rate,
                "grad_norm": norm,
                "tokens_per_second": tokens / seconds,
                "samples_per_second": rows / seconds,
                "epoch": self._in.plan.fraction_of(state.step),
            }
        )

    def _record(self, values: dict[str, float]) -> None:
        """Add a step's numbers to the history, and report them."""
        memory = self._in.processes.sum([float(peak_memory_bytes(self._in.placement.device))])[0]
        values = {**values, "peak_memory_bytes": memory}
        state = self._state
        state.history.append({"step": state.step, **values})
        remaining = self._in.plan.total_steps - state.step
        self._report.metrics(
            state.step, self._in.plan.total_steps, values, sum(self._pace) / len(self._pace) * remaining
        )

    def _weight_of(self, step: int) -> float:
        """Weight of a whole step's examples, over all processes: every process knows all of them, so nobody has to ask."""
        ranks = range(self._in.processes.count)
        rows = self._in.rows
        return sum(rows[i].weight for rank in ranks for batch in self._in.plan.rows_of(step, rank) for i in batch)

    def _is_evaluation_due(self) -> bool:
        step, every = self._state.step, self._numbers.eval_steps
        if not self._in.validation_rows or step == 0 or self._state.evaluated_step >= step:
            return False
        if step == self._in.plan.total_steps:
            return True
        return step % every == 0 if every else self._in.plan.is_epoch_end(step - 1)

    def _validate(self) -> bool:
        """Measure the validation loss; True if it is the best so far."""
        state = self._state
        means = self._evaluate()
        loss = means["loss"]
        improved = state.best_loss is None or loss < state.best_loss
        state.evaluated_step = state.step
        state.evals_without_improvement = 0 if improved else state.evals_without_improvement + 1
        if improved:
            state.best_loss, state.best_step = loss, state.step
            self._save_best()
        values = {f"valid_{name}": value for name, value in means.items()}
        state.history[-1].update(values)
        self._report.metrics(state.step, self._in.plan.total_steps, values)
        patience = self._numbers.early_stopping_patience
        if patience and state.evals_without_improvement >= patience:
            state.stopped_early = True
            self._report.log(
                f"stopping early: {patience} validations without a loss below {state.best_loss:.4f} (step {state.best_step})"
            )
        return improved

    def _evaluate(self) -> dict[str, float]:
        """Loss, and what else is measured, over the validation rows, shared out among the processes."""
        rows, processes, device = self._in.validation_rows, self._in.processes, self._in.placement.device
        size = self._numbers.per_device_batch_size
        starts = range(0, len(rows), size * processes.count)
        sums, weight, records = Sums(self._in.computation.measures), 0, list[Any]()
        self._in.tuner.model.eval()
        try:
            self._in.computation.begin(self._state.step, validating=True)
            for start in starts:
                self._stop_if_asked()
                mine = rows[start : start + size * processes.count][processes.rank :: processes.count]
                if not mine and not processes.shards:
                    continue
                with processes.computing():
                    batch = self._in.computation.collate(mine or rows[:1], device)
                    loss = self._in.computation.objective(self._in.tuner.model, batch)
                if mine:
                    sums.add(loss)
                    records += loss.records()
                    weight += sum(row.weight for row in mine)
        finally:
            self._in.tuner.model.train()
        return {**sums.means(processes, processes.sum([weight])[0]), **self._scored(records)}

    def _scored(self, records: list[Any]) -> Mapping[str, float]:
        """What is measured over all examples of a validation, in the first process."""
        score = self._in.computation.score
        if score is None:
            return {}
        everyone = self._in.processes.gather(records)
        return score([record for part in everyone for record in part]) if self._in.processes.is_first else {}

    def _stop_if_asked(self) -> None:
        if self._in.processes.any(self._should_stop()):
            self._optimizer.zero_grad(set_to_none=True)
            raise StopRequested

    def _is_checkpoint_due(self) -> bool:
        step, when = self._last_checkpoint
        every = self._in.config.checkpoints
        by_steps = every.interval_steps is not None and self._state.step - step >= every.interval_steps
        return self._in.processes.any(by_steps or time.monotonic() - when >= every.interval_seconds)

    def _checkpoint(self, is_best: bool) -> None:
        """Write the state after the last whole step and hand it over, unless that was done already."""
        state, processes = self._state, self._in.processes
        if state.step == self._last_checkpoint[0]:
            return
        states, optimizer = processes.gather(self._random), self._optimizer_state()
        with processes.whole(self._in.tuner.model):
            if processes.is_first:
                path = write_checkpoint(
                    self._in.workdir / "checkpoints",
                    state=state,
                    save_weights=self._in.tuner.save_weights,
                    optimizer=optimizer,
                    random_by_rank=states,
                    objective=self._in.objective_state,
                    tuner=self._companion.state(),
                    best_weights=self._best if self._best is not None and self._best.is_dir() else None,
                )
                self._report.checkpoint(path, state.step, _numbers_of(state.history[-1]), is_best)
        processes.wait()
        self._last_checkpoint = (state.step, time.monotonic())

    def _optimizer_state(self) -> dict[str, Any]:
        return {
            "optimizer": self._in.processes.optimizer_state(self._optimizer),
            "schedule": self._schedule.state_dict(),
            "scaler": self._in.processes.scaler_state(),
        }

    def _save_best(self) -> None:
        if self._best is None:
            return
        with self._in.processes.whole(self._in.tuner.model):
            if self._in.processes.is_first:
                shutil.rmtree(self._best, ignore_errors=True)
                self._in.tuner.save_weights(self._best)

    def _load_best(self) -> None:
        """With early stopping, the result is the best model seen, not the last one."""
        if self._best is None or self._state.best_loss is None or self._state.best_step == self._state.step:
            return
        with self._in.processes.whole(self._in.tuner.model, keep=True):
            if self._in.processes.is_first:
                self._in.tuner.load_weights(self._best)
        self._report.log(
            f"the result has the weights of step {self._state.best_step}, which had the lowest validation loss"
        )


def _numbers_of(entry: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in entry.items() if name != "step"}


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Parameters that are trained, and all of them."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, trained in sizes if trained), sum(size for size, _ in sizes)
