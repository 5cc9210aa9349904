"""Answers by replicas, through the gateway: how a training's process publishes its adapter for a while, and asks for tokens."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from martlet_core.child_protocol import answer_file
from martlet_core.errors import FailedPrecondition, Unavailable, error_from_dict
from martlet_core.recipe import PublishingReport, Report, ShouldStop, StopRequested

from martlet_trainer import gateway_calls
from martlet_trainer.gateway_calls import Gateway, Refused
from martlet_trainer.replicas import Drawing, Question, Said

_POLL_SECONDS = 0.02


class GatewayReplica:
    """The replicas behind the gateway; see ``Replica``.

    Args:
        gateway: where they are asked.
        workdir: the job's working directory.
        report: through which adapters are published.
        should_stop: looked at while waiting.
    """

    def __init__(self, gateway: Gateway, workdir: Path, report: Report, should_stop: ShouldStop) -> None:
        self._gateway = gateway
        self._workdir = workdir
        self._report = report
        self._should_stop = should_stop

    def publish(self, number: int, save: Callable[[Path], None]) -> None:
        """See ``Replica.publish``."""
        if not isinstance(self._report, PublishingReport):
            raise FailedPrecondition(
                "Nobody publishes adapters for this training; it must be run by the trainer's worker.",
                reason="ROLLOUTS_NOT_SERVED",
            )
        directory = self._workdir / "rollouts" / f"step-{number}"
        save(directory)
        self._report.temporary_model(directory, number)
        deadline = time.monotonic() + gateway_calls.PATIENCE_SECONDS
        while not answer_file(self._workdir, number).exists():
            if self._should_stop():
                raise StopRequested
            if time.monotonic() > deadline:
                raise Unavailable("The adapter was not published in time.", reason="ROLLOUTS_NOT_PUBLISHED")
            time.sleep(_POLL_SECONDS)
        shutil.rmtree(directory, ignore_errors=True)
        self._name(number)

    def ask(self, number: int, questions: Sequence[Question], drawing: Drawing) -> Sequence[Sequence[Said]]:
        """See ``Replica.ask``."""
        name = self._name(number)
        return self._gateway.together([partial(self._ask, name, question, drawing) for question in questions])

    def _name(self, number: int) -> str:
        """The name that the supervisor gave an adapter. Raises what it said instead."""
        answer = json.loads(answer_file(self._workdir, number).read_text(encoding="utf-8"))
        if "error" in answer:
            raise error_from_dict(answer["error"])
        return str(answer["model"])

    def _ask(self, name: str, question: Question, drawing: Drawing) -> list[Said]:
        # What a model's own generation_config.json asks for beside the temperature is turned off: answers are of the policy that learns.
        body = {
            "model": name,
            "prompt": list(question.tokens),
            "n": drawing.count,
            "max_tokens": drawing.max_tokens,
            "temperature": drawing.temperature,
            "top_p": 1.0,
            "top_k": -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "seed": question.seed,
            "logprobs": 0,
            "return_token_ids": True,
        }
        found = self._gateway.post("completions", body, f"asking for {drawing.count} answers of {name}")
        if isinstance(found, Refused):
            raise FailedPrecondition(
                f"A replica refused to answer for the training (HTTP {found.status}): {found.message}",
                reason="ROLLOUTS_REFUSED",
            )
        try:
            choices = sorted(found["choices"], key=lambda choice: int(choice["index"]))
            said = [_said(choice) for choice in choices]
        except (KeyError, TypeError, ValueError) as error:
            raise FailedPrecondition(
                "A replica's answer lacks the tokens that it drew (return_token_ids, logprobs): its engine must be vllm or transformers."
                f" {type(error).__name__}: {error}",
                reason="ROLLOUTS_REFUSED",
            ) from error
        if len(said) != drawing.count:
            raise FailedPrecondition(
                f"A replica gave {len(said)} answers for {drawing.count} that were asked for.",
                reason="ROLLOUTS_REFUSED",
            )
        return said


def _said(choice: Mapping[str, Any]) -> Said:
    tokens, log_probs = choice["token_ids"], choice["logprobs"]["token_logprobs"]
    if not tokens or len(tokens) != len(log_probs):
        raise ValueError(f"{len(tokens)} tokens with {len(log_probs)} log-probabilities")
    if not all(type(token) is int and token >= 0 for token in tokens):
        raise ValueError("a token is no number")
    if not all(isinstance(value, (int, float)) and math.isfinite(value) for value in log_probs):
        raise ValueError("a log-probability is not finite")
    return Said(tokens, log_probs)


def require_served(gateway: Gateway, base_model: str) -> None:
    """Refuse a training whose base model no replica serves or could load.

    Raises:
        FailedPrecondition: there is none.
        Others as ``Gateway.post``.
    """
    found = gateway.model(base_model)
    said = found.message if isinstance(found, Refused) else "no replica has it, and none would take it"
    if not isinstance(found, Refused) and (found.get("martlet") or {}).get("replicas"):
        return
    raise FailedPrecondition(
        f"No replica serves the base model {base_model}, whose answers are to come from one ({said}). Start a replica with it"
        f" (MARTLET_MODEL={base_model}), or set recipe_options.rollouts.via to training.",
        reason="ROLLOUTS_NOT_SERVED",
        metadata={"base_model": base_model},
    )
