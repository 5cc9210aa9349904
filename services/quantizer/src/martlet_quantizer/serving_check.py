"""Whether an inference replica really serves what a job made: it is asked for a few tokens through the gateway, which places
the model on a replica.

A replica gives its engine to the new model for that, so other requests wait meanwhile; operators and jobs may say no.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from martlet_core.service_tokens import make_service_token

from martlet_quantizer.asking import Answer, BrokenOff, OutOfTime, ask

#: Name of the engine in a row about a model that no replica was seen to hold.
UNKNOWN_ENGINE = "inference replica"
PROMPT = "What is the capital of France?"
_TOKENS = 8
_LOOK_SECONDS = 5.0
_LONGEST_PAUSE_SECONDS = 15.0
#: A gateway that can't be reached for so long isn't being restarted.
_UNREACHABLE_SECONDS = 30.0
_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class ServingCheck:
    """Asks for models through a gateway.

    Args:
        gateway_url: ends in ``/v1``; empty: there is none.
        internal_token: names us there; empty: the gateway knows no services.
        seconds: longest time that a check may take.
        allowed: whether the operator wants any.
    """

    gateway_url: str = ""
    internal_token: str = ""
    seconds: float = 600.0
    allowed: bool = True

    def why_not(self) -> str:
        """Why this deployment makes no checks; empty if it does."""
        if not self.allowed:
            return "the operator has switched such checks off (MARTLET_SERVING_CHECKS)"
        if not self.gateway_url:
            return "this worker knows no gateway (MARTLET_GATEWAY_URL)"
        if not self.internal_token:
            return (
                "this deployment has no internal token (MARTLET_INTERNAL_TOKEN), so the gateway can't know the worker"
            )
        return ""

    def run(self, model: str, tenant: str, *, chat: bool, give_up: Callable[[], bool]) -> dict[str, Any]:
        """Have a replica load the model and generate; returns a row of ``QuantizationResult.engines``.

        Args:
            model: its published name.
            tenant: whose it is.
            chat: whether it has a chat template.
            give_up: ends the check at once.
        """
        return _Check(self, model, make_service_token(self.internal_token, tenant, self.seconds + 60), give_up).run(
            chat
        )


def not_tried(why: str) -> dict[str, Any]:
    """The row of a check that wasn't made."""
    return _row(UNKNOWN_ENGINE, False, f"not tried: {why}", 0.0)


class _Check:
    def __init__(self, deployment: ServingCheck, model: str, key: str, give_up: Callable[[], bool]) -> None:
        self._deployment = deployment
        self._url = deployment.gateway_url.rstrip("/")
        self._model = model
        self._key = key
        self._give_up = give_up
        self._begun = time.monotonic()
        self._deadline = self._begun + deployment.seconds
        self._reached = self._begun
        self._last = ""

    def run(self, chat: bool) -> dict[str, Any]:
        """The row."""
        try:
            try:
                return self._run(chat)
            except OutOfTime:
                seconds = f"{self._deployment.seconds:g} s (MARTLET_SERVING_CHECK_SECONDS)"
                return self._failed(f"no answer within {seconds}. {self._last}".strip())
        except BrokenOff:
            return not_tried("broken off, because the worker was needed or told to stop")

    def _run(self, chat: bool) -> dict[str, Any]:
        route, body = _question(self._model, chat)
        while True:
            try:
                answer = self._ask("POST", route, body)
            except OSError as error:
                self._last = f"The gateway at {self._url} can't be reached: {error}."
                if time.monotonic() - self._reached > _UNREACHABLE_SECONDS:
                    return not_tried(self._last)
                self._pause(1.0)
                continue
            self._reached = time.monotonic()
            if answer.status == 200:
                return self._loaded(_text(answer))
            if answer.status in (401, 403):
                return not_tried("the gateway refuses the quantizer; both need the same MARTLET_INTERNAL_TOKEN")
            if answer.retry_after_seconds is None:
                return self._failed(answer.message)
            if answer.status == 503 and not self._replicas():
                return not_tried(f"no replica takes it. {answer.message}")
            self._last = answer.message
            self._pause(answer.retry_after_seconds)

    def _loaded(self, text: str) -> dict[str, Any]:
        tries = 10
        while not (holders := [entry for entry in self._replicas() if entry.get("loaded")]):
            tries -= 1
            if not tries:
                return self._row(UNKNOWN_ENGINE, True, f"answered {text!r}; which replica did is not known any more")
            self._pause(0.5)
        return self._row(str(holders[0]["engine"]), True, f"answered {text!r} on {holders[0]['name']}")

    def _failed(self, message: str) -> dict[str, Any]:
        engines = sorted({str(entry["engine"]) for entry in self._replicas()})
        return self._row(", ".join(engines) or UNKNOWN_ENGINE, False, message)

    def _row(self, engine: str, loaded: bool, detail: str) -> dict[str, Any]:
        return _row(engine, loaded, detail, time.monotonic() - self._begun)

    def _replicas(self) -> list[Mapping[str, Any]]:
        """The replicas that hold the model or may be asked to; none where the gateway doesn't say."""
        try:
            answer = ask(
                "GET",
                f"{self._url}/models/{quote(self._model, safe='')}",
                key=self._key,
                deadline=time.monotonic() + _LOOK_SECONDS,
                give_up=self._give_up,
            )
        except (OSError, OutOfTime):
            return []
        known = answer.body.get("martlet")
        return list(known.get("replicas") or ()) if isinstance(known, dict) else []

    def _ask(self, method: str, route: str, body: Mapping[str, Any]) -> Answer:
        return ask(method, self._url + route, key=self._key, body=body, deadline=self._deadline, give_up=self._give_up)

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + min(seconds, _LONGEST_PAUSE_SECONDS)
        while (now := time.monotonic()) < until:
            if self._give_up():
                raise BrokenOff
            if now > self._deadline:
                raise OutOfTime
            time.sleep(_POLL_SECONDS)


def _question(model: str, chat: bool) -> tuple[str, dict[str, Any]]:
    common = {"model": model, "max_tokens": _TOKENS, "temperature": 0}
    if chat:
        return "/chat/completions", {**common, "messages": [{"role": "user", "content": PROMPT}]}
    return "/completions", {**common, "prompt": PROMPT}


def _text(answer: Answer) -> str:
    """The generated text, shortened."""
    choices = answer.body.get("choices") or [{}]
    first = choices[0]
    return str(first.get("text") or (first.get("message") or {}).get("content") or "")[:80]


def _row(engine: str, loaded: bool, detail: str, seconds: float) -> dict[str, Any]:
    return {"engine": engine, "loaded": loaded, "detail": detail[:500], "seconds": round(seconds, 2)}
