"""Answers of the model that is being trained, drawn by replicas that are given its adapter now and then."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from martlet_core.errors import MartletError, Unavailable
from martlet_core.recipe import StopRequested
from transformers import PreTrainedTokenizerBase

from martlet_trainer.data.examples import EncodedPrompt
from martlet_trainer.replicas import Drawing, Question, Replica
from martlet_trainer.training.processes import Processes
from martlet_trainer.training.sampling import Drawn, drawn, ends_of

#: What a process says of the adapter that the first one was to publish.
_PUBLISHED, _STOPPED, _FAILED = 0.0, 1.0, 1000.0


@dataclass
class ReplicaSampler:
    """How replicas draw answers of the model; stands where ``Sampler`` does.

    Replicas have the adapter as it was before step 0, ``sync_steps``, twice that … and as it is at each validation; a training that goes on
    gives them its own at once. An answer's seed comes from the training's, the step, the process and the question's place in them, so that
    a step that is done again asks for the same answers.

    Attributes:
        model: the one that is trained.
        tokenizer: its tokenizer.
        replica: the replicas.
        save: writes the adapter as it is.
        processes: this process among the training's.
        seed: the training's.
        sync_steps: optimizer steps between two adapters.
        max_tokens: longest answer.
        temperature: of sampling.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    replica: Replica
    save: Callable[[Path], None]
    processes: Processes
    seed: int
    sync_steps: int
    max_tokens: int
    temperature: float
    _published: int | None = field(default=None, init=False)
    _step: int = field(default=0, init=False)
    _asked: int = field(default=0, init=False)

    def begin(self, step: int, *, validating: bool) -> None:
        """Give replicas the adapter where it is time for it.

        Raises:
            StopRequested: the job is to stop; in all processes.
            Unavailable: it wasn't published in time.
            MartletError: it can't be published.
        """
        self._step, self._asked = step, 0
        if self._published is None or (step != self._published and (validating or step % self.sync_steps == 0)):
            self._publish(step)
            self._published = step

    def _publish(self, step: int) -> None:
        failure: Exception | None = None
        if self.processes.is_first:
            try:
                self.replica.publish(step, self.save)
            except (StopRequested, MartletError) as error:
                failure = error
        mine = _PUBLISHED if failure is None else _STOPPED if isinstance(failure, StopRequested) else _FAILED
        [outcome] = self.processes.sum([mine])  # the others wait here for the first one
        if failure is not None:
            raise failure
        if outcome >= _FAILED:
            raise Unavailable("The first process could not publish the adapter.", reason="ROLLOUTS_NOT_PUBLISHED")
        if outcome >= _STOPPED:
            raise StopRequested

    def answer(
        self, prompts: Sequence[EncodedPrompt], device: torch.device, *, count: int = 1, likeliest: bool = False
    ) -> list[Drawn]:
        """Each question's answers, one after the other; see ``Sampler.answer``, and ``Replica.ask`` for what it raises."""
        assert self._published is not None, "begin comes first"
        questions = [Question(prompt.input_ids.tolist(), self._next_seed()) for prompt in prompts]
        drawing = Drawing(count, self.max_tokens, 0.0 if likeliest else self.temperature)
        found = self.replica.ask(self._published, questions, drawing)
        ends = ends_of(self.model, self.tokenizer)
        return [
            drawn(
                prompt,
                np.asarray(said.tokens, dtype=np.int32),
                self.tokenizer,
                ends,
                np.asarray(said.log_probs, dtype=np.float32),
            )
            for prompt, answers in zip(prompts, found, strict=True)
            for said in answers
        ]

    def _next_seed(self) -> int:
        """Below 2^48: the answers to one question are drawn with this seed and those behind it."""
        self._asked += 1
        text = f"{self.seed}/{self._step}/{self.processes.rank}/{self._asked}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6])
