"""Asks many rows of a target: bounded concurrency, a journal that a killed job goes on from, a budget of failures.

What is kept is each answer, not what a suite makes of it: scoring is cheap and gives the same again.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from martlet_core.errors import FailedPrecondition
from martlet_core.recipe import Report, ShouldStop, StopRequested

from martlet_evaluator.targets.base import Answer

T = TypeVar("T")
R = TypeVar("R")

_TICK_SECONDS = 0.2
_REPORT_SECONDS = 1.0
_ERRORS_SHOWN = 3


class Journal:
    """Answers by key, on disk in parts that are never written again.

    Args:
        workdir: the job's; parts of an earlier attempt are read from ``resume/``.
    """

    def __init__(self, workdir: Path) -> None:
        self._workdir = workdir
        self._parts = workdir / "journal"
        self._answers: dict[str, Any] = {}
        self._fresh: list[tuple[str, Any]] = []
        self._parts.mkdir(parents=True, exist_ok=True)
        for part in sorted((workdir / "resume").glob("part-*.jsonl")):
            _link(part, self._parts / part.name)
            for line in part.read_text(encoding="utf-8").split("\n"):
                if line:
                    key, value = json.loads(line)
                    self._answers[key] = value
        self.resumed = len(self._answers)

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: str) -> Any | None:
        """What is known under a key, JSON-ready."""
        return self._answers.get(key)

    def put(self, key: str, value: Any) -> None:
        """Keep a value; it is on disk after the next ``checkpoint``."""
        self._answers[key] = value
        self._fresh.append((key, value))

    def checkpoint(self) -> tuple[Path, int] | None:
        """Write what is new; the directory to hand over and its step, or None if nothing is new."""
        if not self._fresh:
            return None
        fresh, self._fresh = self._fresh, []
        number = len(list(self._parts.glob("part-*.jsonl"))) + 1
        part = self._parts / f"part-{number:05d}.jsonl"
        lines = (json.dumps([key, _plain(value)], ensure_ascii=False) + "\n" for key, value in fresh)
        part.write_text("".join(lines), encoding="utf-8")
        directory = self._workdir / "checkpoints" / f"step-{len(self._answers)}"
        directory.mkdir(parents=True)
        for found in self._parts.glob("part-*.jsonl"):
            _link(found, directory / found.name)
        return directory, len(self._answers)


class Asker:
    """What suites ask through.

    Args:
        journal: answers of this and earlier attempts.
        report: the job's.
        should_stop: the job's.
        concurrency: requests under way at a time.
        max_failed_rows: failures that the job survives.
        checkpoint_seconds: time between two checkpoints.

    Attributes:
        failed: rows without an answer so far.
        asked: answers that this attempt asked for.
    """

    def __init__(
        self,
        journal: Journal,
        report: Report,
        should_stop: ShouldStop,
        *,
        concurrency: int,
        max_failed_rows: int,
        checkpoint_seconds: float,
    ) -> None:
        self._journal = journal
        self._report = report
        self._should_stop = should_stop
        self.concurrency = concurrency
        self._max_failed_rows = max_failed_rows
        self._checkpoint_seconds = checkpoint_seconds
        self._errors: list[str] = []
        self.failed = 0
        self.asked = 0
        self._done = 0
        self._planned = 0
        self._begun = time.monotonic()
        self._last_checkpoint = self._last_report = self._begun

    def plan(self, count: int) -> None:
        """Say that so many questions are to be asked, for the progress."""
        self._planned += count

    async def ask(self, key: str, call: Callable[[], Awaitable[Answer]]) -> Answer:
        """The answer under a key: from the journal, else by the call. Failures are returned, not kept: a job that goes on
        asks them again.
        """
        kept = self._journal.get(key)
        if kept is not None:
            self._done += 1
            return kept if isinstance(kept, Answer) else Answer(**kept)
        answer = await call()
        self.asked += 1
        self._done += 1
        if not answer.error:
            self._journal.put(key, answer)
        return answer

    async def once(self, key: str, call: Callable[[], Awaitable[Any]]) -> Any:
        """As ``ask`` for a whole measurement, whose value is JSON-ready."""
        kept = self._journal.get(key)
        if kept is None:
            kept = await call()
            self._journal.put(key, kept)
        return kept

    def count_failure(self, where: str, error: str) -> None:
        """Count a row without an answer.

        Raises:
            FailedPrecondition: there are more than the job survives.
        """
        self.failed += 1
        if len(self._errors) < _ERRORS_SHOWN:
            self._errors.append(f"{where}: {error}")
        if self.failed > self._max_failed_rows:
            raise FailedPrecondition(
                f"{self.failed} rows got no answer, and spec.max_failed_rows is {self._max_failed_rows}. "
                + "; ".join(self._errors),
                reason="TOO_MANY_FAILED_ROWS",
            )

    async def over(
        self, items: Iterable[T], work: Callable[[T], Awaitable[R]], concurrency: int | None = None
    ) -> list[R]:
        """Do the work for each item, so many at a time; results in the items' order. The first error ends it all."""
        todo = list(enumerate(items))
        results: list[Any] = [None] * len(todo)
        queue = iter(todo)

        async def take() -> None:
            for index, item in queue:
                results[index] = await work(item)

        count = min(concurrency or self.concurrency, len(todo))
        tasks = [asyncio.create_task(take()) for _ in range(count)]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return results

    async def watched(self, work: Awaitable[T]) -> T:
        """Do the work; meanwhile report, hand over checkpoints, and end it when the job must stop.

        Raises:
            StopRequested: after a last checkpoint.
        """
        task = asyncio.ensure_future(work)
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=_TICK_SECONDS)
                if self._should_stop() and not task.done():
                    raise StopRequested
                self._tick()
            return task.result()
        except StopRequested:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            self.checkpoint()
            raise

    def checkpoint(self) -> None:
        """Hand over what was answered since the last time."""
        written = self._journal.checkpoint()
        self._last_checkpoint = time.monotonic()
        if written is not None:
            self._report.checkpoint(written[0], written[1], {"answers": float(written[1])})

    def _tick(self) -> None:
        now = time.monotonic()
        if now - self._last_checkpoint >= self._checkpoint_seconds:
            self.checkpoint()
        if now - self._last_report >= _REPORT_SECONDS and self._done:
            self._last_report = now
            rate = self.asked / (now - self._begun)
            left = max(0, self._planned - self._done)
            self._report.metrics(
                self._done,
                max(self._planned, self._done),
                {"answers_per_second": rate, "failed_rows": float(self.failed)},
                left / rate if rate else None,
            )


def _plain(value: Any) -> Any:
    return value.to_dict() if isinstance(value, Answer) else value


def _link(source: Path, target: Path) -> None:
    """The same file under a second name; a copy where the file system has no links."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        target.write_bytes(source.read_bytes())


def unique_keys(names: Sequence[str]) -> list[str]:
    """Names made unique by a number behind the second of the same name: ``a``, ``b``, ``a-2``."""
    seen: dict[str, int] = {}
    keys = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        keys.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return keys
