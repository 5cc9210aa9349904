"""Evals and their runs as records in the object store.

    evals/<tenant>/<eval>.json                   what was defined; changes with POST /v1/evals/{id}
    eval-runs/<tenant>/<eval>/<job>.json         what a run was asked with, beside its evaluation job
    eval-results/<tenant>/<eval>/<job>.json      what came of a run; written once, when its job was first seen to be over
    eval-results/<tenant>/<eval>/<job>.rows      where in the records of the job the rows are

An id is ``eval_<id>``, a run's ``evalrun_<id of the evaluation job>``.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import orjson
from martlet_core.artifacts.types import ObjectStore
from martlet_core.errors import AlreadyExists, InvalidArgument, NotFound
from martlet_core.ids import ID_PATTERN

from martlet_gateway.eval_request import wrapped_schema

EVAL_PREFIX = "eval_"
RUN_PREFIX = "evalrun_"
_PAGE = 1000


@dataclass(frozen=True)
class StoredEval:
    """An eval.

    Attributes:
        key: its id without prefix.
        item_schema: of the rows' items.
        has_sample: whether graders may look at answers.
        testing_criteria: the graders, as given.
        created_at: seconds since the epoch.
        updated_at: the same, of the last change.
        body_digest: of the request that made it.
    """

    key: str
    name: str
    item_schema: Mapping[str, Any]
    has_sample: bool
    testing_criteria: Sequence[Mapping[str, Any]]
    created_at: int
    updated_at: float
    body_digest: str
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """``eval_<id>``."""
        return EVAL_PREFIX + self.key

    def to_openai(self) -> dict[str, Any]:
        """The ``eval`` object."""
        return {
            "id": self.id,
            "object": "eval",
            "name": self.name,
            "created_at": self.created_at,
            "metadata": dict(self.metadata),
            "data_source_config": {"type": "custom", "schema": wrapped_schema(self.item_schema, self.has_sample)},
            "testing_criteria": list(self.testing_criteria),
        }


@dataclass(frozen=True)
class StoredRun:
    """A run, beside its evaluation job.

    Attributes:
        key: id of its job.
        eval_key: of its eval.
        model: that is asked; empty where none is.
        data_source: as given.
        sampling: ``max_tokens``, ``temperature`` and ``seed`` of the answers.
        rows: in its data set.
        rows_artifact: of rows that came with the request, which go with the run; empty for a file's.
    """

    key: str
    eval_key: str
    name: str
    model: str
    data_source: Mapping[str, Any]
    sampling: Mapping[str, Any]
    rows: int
    rows_artifact: str
    created_at: int
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """``evalrun_<id>``."""
        return RUN_PREFIX + self.key

    @property
    def eval_id(self) -> str:
        """Of its eval."""
        return EVAL_PREFIX + self.eval_key


class EvalStore:
    """Reads and writes the records. Methods block; routes call them in a thread.

    Args:
        objects: where they lie.
    """

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects

    def create(self, tenant: str, made: StoredEval) -> StoredEval:
        """Keep a new eval; the one that is there if the same request made it before.

        Raises:
            AlreadyExists: another request made one under this key.
        """
        if self._objects.put_if_absent(_eval_key(tenant, made.key), orjson.dumps(asdict(made))):
            return made
        there = self.get(tenant, made.id)
        if there.body_digest != made.body_digest:
            raise AlreadyExists(
                "This Idempotency-Key made another eval; use a key of its own for each.", reason="REQUEST_ID_TAKEN"
            )
        return there

    def get(self, tenant: str, eval_id: str) -> StoredEval:
        """An eval of the tenant. NotFound if there is none, or it is another tenant's."""
        try:
            return StoredEval(**self._read(_eval_key(tenant, eval_key(eval_id))))
        except NotFound as error:
            raise no_such_eval(eval_id) from error

    def update(self, tenant: str, eval_id: str, changes: Mapping[str, Any]) -> StoredEval:
        """Change name or metadata; the last of several changes wins."""
        changed = replace(self.get(tenant, eval_id), **changes, updated_at=time.time())
        self._write(_eval_key(tenant, changed.key), asdict(changed))
        return changed

    def delete(self, tenant: str, stored: StoredEval) -> None:
        """Forget an eval; its runs are deleted by the caller before."""
        self._objects.delete(_eval_key(tenant, stored.key))

    def list(
        self, tenant: str, *, after: str | None, limit: int, descending: bool, by_update: bool
    ) -> tuple[list[StoredEval], bool]:
        """A page of evals, and whether there are more."""
        prefix = f"evals/{tenant}/"
        keys = [key.removeprefix(prefix).removesuffix(".json") for key in self._keys(prefix)]
        border = eval_key(after, "after") if after else None
        if not by_update:  # keys begin with the time of creation
            chosen = _behind(keys, border, descending)
            found = [stored for key in chosen[: limit + 1] if (stored := self._find(tenant, key))]
            return found[:limit], len(chosen) > limit
        every = [stored for key in keys if (stored := self._find(tenant, key))]
        every.sort(key=lambda stored: (stored.updated_at, stored.key), reverse=descending)
        if border is not None:
            places = [place for place, stored in enumerate(every) if stored.key == border]
            if not places:
                raise InvalidArgument.field("after", f"there is no eval {after:.100} any more.")
            every = every[places[0] + 1 :]
        return every[:limit], len(every) > limit

    def create_run(self, tenant: str, run: StoredRun) -> StoredRun:
        """Keep a new run; the one that is there if the job has been made before."""
        key = _run_key(tenant, run.eval_key, run.key)
        return run if self._objects.put_if_absent(key, orjson.dumps(asdict(run))) else StoredRun(**self._read(key))

    def run(self, tenant: str, eval_id: str, run_id: str) -> StoredRun:
        """A run of the tenant's. NotFound if there is none of this eval."""
        try:
            return StoredRun(**self._read(_run_key(tenant, eval_key(eval_id), run_key(run_id))))
        except NotFound as error:
            if error.reason == "OBJECT_NOT_FOUND":
                raise no_such_run(run_id) from error
            raise

    def run_ids(self, tenant: str, stored: StoredEval, *, after: str | None, descending: bool) -> Sequence[str]:
        """Ids of an eval's runs behind ``after``, by creation."""
        prefix = f"eval-runs/{tenant}/{stored.key}/"
        keys = [key.removeprefix(prefix).removesuffix(".json") for key in self._keys(prefix)]
        border = run_key(after, "after") if after else None
        return [RUN_PREFIX + key for key in _behind(keys, border, descending)]

    def delete_run(self, tenant: str, run: StoredRun) -> None:
        """Forget a run; its job and what that made stay."""
        self._objects.delete(_run_key(tenant, run.eval_key, run.key))
        for suffix in ("json", "rows"):
            self._objects.delete(_result_key(tenant, run, suffix))

    def result(self, tenant: str, run: StoredRun) -> dict[str, Any] | None:
        """What came of a run, if it was kept."""
        try:
            return self._read(_result_key(tenant, run, "json"))
        except NotFound:
            return None

    def keep_result(
        self, tenant: str, run: StoredRun, result: Mapping[str, Any], rows: Mapping[str, Any] | None
    ) -> None:
        """Keep what came of a run that is over, so that nothing has to be asked or counted again."""
        if rows is not None:
            self._write(_result_key(tenant, run, "rows"), rows)
        self._write(_result_key(tenant, run, "json"), result)

    def rows(self, tenant: str, run: StoredRun) -> dict[str, Any] | None:
        """Where the rows of a run's records are, if that was kept."""
        try:
            return self._read(_result_key(tenant, run, "rows"))
        except NotFound:
            return None

    def _find(self, tenant: str, key: str) -> StoredEval | None:
        try:
            return self.get(tenant, EVAL_PREFIX + key)
        except NotFound:
            return None  # it went between the listing and this look

    def _keys(self, prefix: str) -> Iterator[str]:
        after = ""
        while keys := self._objects.list(prefix, after=after, limit=_PAGE):
            yield from keys
            after = keys[-1]

    def _read(self, key: str) -> dict[str, Any]:
        return orjson.loads(self._objects.get(key))

    def _write(self, key: str, values: Mapping[str, Any]) -> None:
        self._objects.put(key, orjson.dumps(values), content_type="application/json")


def eval_key(eval_id: str, param: str = "eval_id") -> str:
    """``eval_<id>`` -> id. NotFound for anything else."""
    key = eval_id.removeprefix(EVAL_PREFIX)
    if not eval_id.startswith(EVAL_PREFIX) or not ID_PATTERN.fullmatch(key):
        raise no_such_eval(eval_id, param)
    return key


def run_key(run_id: str, param: str = "run_id") -> str:
    """``evalrun_<id>`` -> id of the job. NotFound for anything else."""
    key = run_id.removeprefix(RUN_PREFIX)
    if not run_id.startswith(RUN_PREFIX) or not ID_PATTERN.fullmatch(key):
        raise no_such_run(run_id, param)
    return key


def no_such_eval(eval_id: str, param: str = "eval_id") -> NotFound:
    """The one answer for evals that don't exist and evals of other tenants."""
    return NotFound(f"No such eval: {eval_id:.100}", reason="EVAL_NOT_FOUND", metadata={"param": param})


def no_such_run(run_id: str, param: str = "run_id") -> NotFound:
    """The same for runs."""
    return NotFound(f"No such run of this eval: {run_id:.100}", reason="EVAL_RUN_NOT_FOUND", metadata={"param": param})


def _behind(keys: Sequence[str], border: str | None, descending: bool) -> list[str]:
    ordered = sorted(keys, reverse=descending)
    if border is None:
        return ordered
    return [key for key in ordered if (key < border if descending else key > border)]


def _eval_key(tenant: str, key: str) -> str:
    return f"evals/{tenant}/{key}.json"


def _run_key(tenant: str, eval_key: str, key: str) -> str:
    return f"eval-runs/{tenant}/{eval_key}/{key}.json"


def _result_key(tenant: str, run: StoredRun, suffix: str) -> str:
    return f"eval-results/{tenant}/{run.eval_key}/{run.key}.{suffix}"
