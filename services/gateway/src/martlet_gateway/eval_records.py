"""The records of an eval's run: what they add up to, and single ones by their place.

A record is a JSON line of the suite ``graders``, as docs/evals.md has it. A file of them is read through once, when a run is first
seen to be over; then pages are read from where they begin. Larger files in a process of its own:
``python -m martlet_gateway.eval_records PATH``.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
from martlet_core.artifacts.types import ArtifactStore
from martlet_core.errors import FailedPrecondition, NotFound

from martlet_gateway.side_process import IN_PROCESS_BYTES, run_module

#: Statuses of rows, and the letter that stands for each in the list of all.
LETTERS = {"pass": "p", "fail": "f", "error": "e"}
_EVERY = 64
_USAGE = ("prompt_tokens", "completion_tokens", "total_tokens", "cached_tokens")


class Records:
    """The records of one artifact, on the local disk through the artifact store's cache.

    Args:
        artifacts: where they lie.
        scratch: directory for links into the cache.
        artifact_id: theirs.
        tenant: whose they are.
    """

    def __init__(self, artifacts: ArtifactStore, scratch: Path, artifact_id: str, tenant: str) -> None:
        self._artifacts = artifacts
        self._scratch = scratch
        self._id = artifact_id
        self._tenant = tenant

    async def summary(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What they add up to, and where their rows are.

        Raises:
            NotFound: the artifact was deleted.
            FailedPrecondition: ``BAD_RECORDS``: they aren't what the suite writes.
        """
        with tempfile.TemporaryDirectory(dir=await self._scratch_directory(), prefix="records-") as directory:
            path = await asyncio.to_thread(self._fetch, Path(directory))
            if path.stat().st_size <= IN_PROCESS_BYTES:
                found = await asyncio.to_thread(_summarise, path)
            else:
                found = await run_module("martlet_gateway.eval_records", str(path))
        if "fault" in found:
            raise FailedPrecondition(f"artifacts/{self._id}: {found['fault']}", reason="BAD_RECORDS")
        return found["summary"], found["rows"]

    async def read(self, rows: Mapping[str, Any], places: Sequence[int]) -> list[dict[str, Any]]:
        """Records by their places, ascending. NotFound when the artifact was deleted."""
        if not places:
            return []
        with tempfile.TemporaryDirectory(dir=await self._scratch_directory(), prefix="records-") as directory:
            return await asyncio.to_thread(self._read, Path(directory), rows, places)

    async def _scratch_directory(self) -> Path:
        await asyncio.to_thread(self._scratch.mkdir, parents=True, exist_ok=True)
        return self._scratch

    def _fetch(self, directory: Path) -> Path:
        artifact = self._artifacts.get(self._id, tenant=self._tenant)
        names = [file.path for file in artifact.files if file.path.endswith(".jsonl")]
        if not names:
            raise NotFound(f"artifacts/{self._id} holds no records.", reason="ARTIFACT_FILE_NOT_FOUND")
        self._artifacts.download(self._id, directory)
        return directory / names[0]

    def _read(self, directory: Path, rows: Mapping[str, Any], places: Sequence[int]) -> list[dict[str, Any]]:
        path, found = self._fetch(directory), []
        with open(path, "rb") as stream:
            at, line = -1, b""
            for place in places:
                block = place // _EVERY
                if at < 0 or block * _EVERY > at:
                    stream.seek(rows["offsets"][block])
                    at = block * _EVERY
                while at <= place:
                    line = stream.readline()
                    at += 1
                found.append(orjson.loads(line))
        return found


def _summarise(path: Path) -> dict[str, Any]:
    """``summary`` and ``rows``, or the ``fault`` of the first record that is none."""
    offsets: list[int] = []
    letters: list[str] = []
    criteria: dict[str, dict[str, int]] = {}
    usage: dict[str, dict[str, Any]] = {}
    place = 0
    with open(path, "rb") as stream:
        for number, line in enumerate(stream):
            if number % _EVERY == 0:
                offsets.append(place)
            place += len(line)
            try:
                record = orjson.loads(line)
                letters.append(LETTERS[record["status"]])
                if not isinstance(record["row"], int):
                    raise TypeError("row is no whole number")
                for result in record["results"]:
                    counts = criteria.setdefault(result["name"], {"passed": 0, "failed": 0})
                    counts["passed" if result["passed"] else "failed"] += 1
                for sample in _samples(record):
                    _add_usage(usage, sample)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                return {"fault": f"line {number + 1} is no record of graders: {error!r:.200}"}
    counts = {status: letters.count(letter) for status, letter in LETTERS.items()}
    summary = {
        "result_counts": {
            "total": len(letters),
            "passed": counts["pass"],
            "failed": counts["fail"],
            "errored": counts["error"],
        },
        "per_testing_criteria_results": [{"testing_criteria": name, **found} for name, found in criteria.items()],
        "per_model_usage": list(usage.values()),
    }
    return {"summary": summary, "rows": {"offsets": offsets, "statuses": "".join(letters)}}


def _samples(record: Mapping[str, Any]) -> Iterator[Any]:
    """What models said to a row: the answer, and the graders' with those that came to no grade."""
    yield record.get("sample")
    for result in (*record["results"], *record.get("ungraded", ())):
        sample = result.get("sample")
        yield sample
        if isinstance(sample, Mapping):
            yield from sample.get("others") or ()


def _add_usage(usage: dict[str, dict[str, Any]], sample: Any) -> None:
    """Add what a model was used, if the sample says so; a sample that came with the rows cost nothing here."""
    if not isinstance(sample, Mapping) or not sample.get("model") or not isinstance(sample.get("usage"), Mapping):
        return
    model = str(sample["model"])
    total = usage.setdefault(model, {"model_name": model, "invocation_count": 0, **dict.fromkeys(_USAGE, 0)})
    total["invocation_count"] += int(sample.get("invocation_count") or 1)
    for name in _USAGE:
        total[name] += int(sample["usage"].get(name) or 0)


def places(rows: Mapping[str, Any], *, after: int | None, status: str | None, descending: bool) -> Iterable[int]:
    """Places of rows behind a place, in order."""
    statuses: str = rows["statuses"]
    total = len(statuses)
    ascending = range(0 if after is None else after + 1, total)
    order = range((total if after is None else min(after, total)) - 1, -1, -1) if descending else ascending
    letter = LETTERS.get(status or "")
    return (place for place in order if letter is None or statuses[place] == letter)


if __name__ == "__main__":
    print(orjson.dumps(_summarise(Path(sys.argv[1]))).decode())
