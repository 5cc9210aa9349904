"""What a rule of a contract is, and what comes of trying it on whatever answers at an address.

A rule is a name, a sentence and an async function that takes a target. The function raises ``RuleBroken`` when what
answers breaks the rule, ``Skipped`` when the rule isn't about this target, and ``Untried`` when the caller didn't name what
it would need.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import grpc
import grpc.aio

from martlet_core.testing.conformance.failures import RpcFailure


class RuleBroken(AssertionError):
    """What answers breaks a rule; the message says how."""


class Skipped(Exception):
    """The rule isn't about this target, which leaves out something it may leave out; the message says what."""


class Untried(Skipped):
    """The rule couldn't be tried, because the caller didn't name what it needs; the message says what to name."""


def option(default: Any, help: str) -> Any:
    """A field of a target that the command takes as an option, with its help text."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Target:
    """What is tried.

    Attributes:
        channel: an open channel to it.
        metadata: sent with every call (tenant, token).
        timeout_seconds: of a single call, and of waiting for a change.
    """

    channel: grpc.aio.Channel
    metadata: tuple[tuple[str, str], ...] = ()
    timeout_seconds: float = 30.0

    @property
    def call_options(self) -> dict[str, Any]:
        """Keyword arguments of every call."""
        return {"metadata": self.metadata, "timeout": self.timeout_seconds}


Trial = Callable[[Any], Awaitable[None]]


@dataclass(frozen=True)
class Rule:
    """One rule.

    Attributes:
        name: unique within a contract.
        sentence: what must hold.
        trial: tries it on a target.
    """

    name: str
    sentence: str
    trial: Trial

    @classmethod
    def of(cls, trial: Trial, **words: str) -> Rule:
        """The rule that a function is: its name, and its docstring with ``{word}`` replaced."""
        sentence = " ".join((inspect.getdoc(trial) or "").split())
        for word, text in words.items():
            sentence = sentence.replace("{" + word + "}", text)
        return cls(getattr(trial, "__name__", repr(trial)), sentence, trial)


def rule_name(rule: Rule) -> str:
    """The rule's name; an ``ids`` for pytest."""
    return rule.name


class Outcome(str, Enum):
    """How a trial came out. ``ERROR``: it couldn't be carried out, because a call failed that had to succeed."""

    PASSED = "passed"
    FAILED = "failed"
    ERROR = "error"
    SKIPPED = "skipped"
    UNTRIED = "untried"


@dataclass(frozen=True)
class RuleResult:
    """How one rule fared.

    Attributes:
        rule: its name.
        outcome: how it came out.
        expected: what must hold.
        found: what was wrong, or why it wasn't tried; empty when it passed.
        seconds: how long it took.
    """

    rule: str
    outcome: Outcome
    expected: str
    found: str = ""
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "rule": self.rule,
            "result": self.outcome.value,
            "expected": self.expected,
            "found": self.found,
            "seconds": round(self.seconds, 3),
        }


@dataclass(frozen=True)
class Report:
    """How all rules of a contract fared."""

    contract: str
    address: str
    results: Sequence[RuleResult] = field(default_factory=tuple)

    @property
    def passed(self) -> bool:
        """Whether no rule is broken. Rules that weren't tried don't count, but at least one must have passed."""
        outcomes = {result.outcome for result in self.results}
        return Outcome.PASSED in outcomes and not outcomes & {Outcome.FAILED, Outcome.ERROR}

    @property
    def complete(self) -> bool:
        """Whether every rule that is about this target was tried."""
        return not self.count(Outcome.UNTRIED)

    def count(self, outcome: Outcome) -> int:
        """Rules that fared so."""
        return sum(result.outcome is outcome for result in self.results)

    def summary(self) -> str:
        """One line: how many rules fared how, and what that means."""
        counts = ", ".join(f"{self.count(outcome)} {outcome.value}" for outcome in Outcome if self.count(outcome))
        verdict = "conforms" if self.passed else "DOES NOT CONFORM"
        if self.passed and not self.complete:
            verdict = "conforms as far as it was tried"
        return f"{self.contract} at {self.address}: {counts}: {verdict}"

    def table(self) -> str:
        """The report as plain text: a line a rule, with what was expected and found below those that did not pass."""
        width = max((len(result.rule) for result in self.results), default=0)
        lines = []
        for result in self.results:
            lines.append(f"{result.outcome.value:8}{result.rule:{width}}  {result.seconds:6.2f} s")
            if result.outcome in (Outcome.FAILED, Outcome.ERROR):
                lines.append(f"{'':10}expected: {result.expected}")
            if result.found:
                lines.append(f"{'':10}found:    {result.found}")
        return "\n".join([*lines, "", self.summary()])


async def try_rule(rule: Rule, target: Target) -> RuleResult:
    """Try one rule; nothing that the target does escapes as an exception."""
    started = time.monotonic()
    outcome, found = Outcome.PASSED, ""
    try:
        await rule.trial(target)
    except RuleBroken as error:
        outcome, found = Outcome.FAILED, str(error)
    except Skipped as error:
        outcome, found = Outcome.UNTRIED if isinstance(error, Untried) else Outcome.SKIPPED, str(error)
    except grpc.RpcError as error:
        outcome, found = Outcome.ERROR, f"a call failed: {RpcFailure.of(error)}"
    except TimeoutError:
        outcome, found = Outcome.ERROR, "no answer in time"
    return RuleResult(rule.name, outcome, rule.sentence, found, time.monotonic() - started)


async def assert_rule(rule: Rule, target: Target) -> None:
    """Try one rule as a test: raises RuleBroken with the rule when it isn't kept, and ``Skipped`` when it wasn't tried."""
    result = await try_rule(rule, target)
    if result.outcome in (Outcome.SKIPPED, Outcome.UNTRIED):
        raise Skipped(result.found)
    if result.outcome is not Outcome.PASSED:
        raise RuleBroken(f"{result.found}\nexpected: {result.expected}")
