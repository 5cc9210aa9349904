"""Aliases: names that may be moved from one model to another, at once, and back.

    aliases/<tenant>/<alias>/<inverted version>.json    one small object a move; the first in order is the present one

A move is the conditional PUT of the next version, so of two at once one wins and the other is told. The versions before
are the history that a rollback goes by.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from urllib.parse import quote

from martlet_core.artifacts.types import ModelRegistry, ObjectStore
from martlet_core.errors import Aborted, AlreadyExists, FailedPrecondition, InvalidArgument, NotFound

#: No slash and no colon: ``ft:…``, ``org/model``, ``artifacts/…`` and ``file:…`` can't be aliases.
ALIAS_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_PREFIX = "aliases/"
_TOP = 9_999_999_999
MOVES_KEPT = 50
_ROLLBACK = "rollback to "


@dataclass(frozen=True)
class AliasMove:
    """One move.

    Attributes:
        version: from 1.
        model: what it was moved to; empty when the alias was deleted.
        move_time: seconds since the epoch.
        run: run that moved it (``runs/<id>``); empty for a move by hand.
        reason: ``put``, ``deploy``, ``rollback`` or ``delete``.
        once: whoever moves it again with this word finds it moved.
    """

    version: int
    model: str
    move_time: float
    run: str = ""
    reason: str = "put"
    once: str = ""


@dataclass(frozen=True)
class Alias:
    """An alias; ``moves`` are newest first, and the first is the present one."""

    name: str
    moves: Sequence[AliasMove]

    @property
    def model(self) -> str:
        """What it means."""
        return self.moves[0].model

    @property
    def etag(self) -> str:
        """Changes with each move."""
        return str(self.moves[0].version)


class AliasStore:
    """The aliases of all tenants, in the object store. Thread-safe; its methods block."""

    def __init__(self, objects: ObjectStore, models: ModelRegistry) -> None:
        self._objects = objects
        self._models = models

    def get(self, tenant: str, name: str) -> Alias:
        """The alias with its newest moves. NotFound if there is none."""
        moves = self._moves(tenant, name)
        if not moves or not moves[0].model:
            raise _unknown(name)
        return Alias(name, _since_birth(moves))

    def target(self, tenant: str, name: str) -> str | None:
        """The model that an alias means, by two short reads; None if there is no such alias."""
        if not ALIAS_PATTERN.fullmatch(name):
            return None
        keys = self._objects.list(_folder(tenant, name), limit=1)
        return (self._read(keys[0]).model or None) if keys else None

    def list(self, tenant: str) -> Sequence[Alias]:
        """The tenant's aliases by name."""
        names: dict[str, None] = {}
        last, prefix = "", f"{_PREFIX}{_quoted(tenant)}/"
        while keys := self._objects.list(prefix, after=last, limit=1000):
            names.update((key.split("/")[2], None) for key in keys)
            last = keys[-1]
        found = []
        for name in sorted(names):
            moves = self._moves(tenant, name)
            if moves and moves[0].model:
                found.append(Alias(name, _since_birth(moves)))
        return found

    def put(
        self,
        tenant: str,
        name: str,
        model: str,
        *,
        etag: str = "",
        run: str = "",
        reason: str = "put",
        once: str = "",
    ) -> Alias:
        """Give the name to a model. The same model again changes nothing.

        Raises:
            InvalidArgument: a name that can't be an alias.
            NotFound: no such model, or another tenant's.
            AlreadyExists: a published model has that name.
            Aborted: ``etag`` isn't the present one, or another move came in between.
        """
        check_name(name)
        self.check_free(name)
        if ":" in model or "/" in model:  # base models are known by replicas and trainer, not by the registry
            self._models.get(model, tenant=tenant)
        moves = self._moves(tenant, name)
        if once and any(move.once == once for move in moves):
            return Alias(name, _since_birth(moves) or moves)
        if etag and (not moves or str(moves[0].version) != etag):
            raise _moved(name)
        if moves and moves[0].model == model and not once:
            return Alias(name, _since_birth(moves))
        return self._move(tenant, name, moves, AliasMove(_next(moves), model, time.time(), run, reason, once))

    def rollback(self, tenant: str, name: str) -> Alias:
        """Give the name back to the model that had it before; again, to the one before that.

        Raises:
            NotFound: no such alias, or its earlier model is gone.
            FailedPrecondition: it meant nothing before.
            Aborted: another move came in between.
        """
        alias = self.get(tenant, name)
        before = _before(alias.moves)
        if before is None:
            raise FailedPrecondition(
                f"The alias {name} meant nothing before {alias.model}, so there is nothing to roll back to.",
                reason="NOTHING_TO_ROLL_BACK",
            )
        if ":" in before.model or "/" in before.model:
            self._models.get(before.model, tenant=tenant)
        moved = AliasMove(_next(alias.moves), before.model, time.time(), reason=f"{_ROLLBACK}{before.version}")
        return self._move(tenant, name, self._moves(tenant, name), moved)

    def delete(self, tenant: str, name: str) -> None:
        """Forget an alias. NotFound if there is none; Aborted if another move came in between."""
        moves = self.get(tenant, name).moves
        self._move(tenant, name, moves, AliasMove(_next(moves), "", time.time(), reason="delete"))

    def _move(self, tenant: str, name: str, before: Sequence[AliasMove], move: AliasMove) -> Alias:
        data = json.dumps(asdict(move), separators=(",", ":")).encode()
        if not self._objects.put_if_absent(f"{_folder(tenant, name)}{_TOP - move.version:010d}.json", data):
            raise _moved(name)
        moves = [move, *before]
        for old in moves[MOVES_KEPT:]:
            self._objects.delete(f"{_folder(tenant, name)}{_TOP - old.version:010d}.json")
        return Alias(name, moves[:MOVES_KEPT])

    def _moves(self, tenant: str, name: str) -> list[AliasMove]:
        if not ALIAS_PATTERN.fullmatch(name):
            return []
        keys = self._objects.list(_folder(tenant, name), limit=MOVES_KEPT + 1)
        return [self._read(key) for key in keys]

    def _read(self, key: str) -> AliasMove:
        return AliasMove(**json.loads(self._objects.get(key)))

    def check_free(self, name: str) -> None:
        """AlreadyExists if a published model has that name."""
        try:
            self._models.get(name)
        except NotFound:
            return
        raise AlreadyExists(
            f"alias: {name!r} is the name of a published model; choose another.",
            reason="NAME_TAKEN",
            metadata={"param": "alias"},
        )


def check_name(name: str) -> None:
    """InvalidArgument for a name that can't be an alias."""
    if not ALIAS_PATTERN.fullmatch(name):
        raise InvalidArgument.field(
            "alias",
            f"{name[:80]!r} can't be an alias: 1 to 64 of a-z, A-Z, 0-9, '.', '_', '-', beginning with no sign.",
        )


def _before(moves: Sequence[AliasMove]) -> AliasMove | None:
    """The move that a rollback goes back to. A move that was itself a rollback stands for the one that it went to."""
    by_version = {move.version: move for move in moves}

    def meant(version: int) -> AliasMove | None:
        move = by_version.get(version)
        while move is not None and move.reason.startswith(_ROLLBACK):
            move = by_version.get(int(move.reason.removeprefix(_ROLLBACK)))
        return move

    place = meant(moves[0].version)
    while place is not None and place.model == moves[0].model:
        place = meant(place.version - 1)
    return place


def _since_birth(moves: Sequence[AliasMove]) -> Sequence[AliasMove]:
    """The moves since the alias was last deleted."""
    for index, move in enumerate(moves):
        if not move.model:
            return moves[:index]
    return moves


def _next(moves: Sequence[AliasMove]) -> int:
    return moves[0].version + 1 if moves else 1


def _unknown(name: str) -> NotFound:
    return NotFound(
        f"There is no alias {name[:80]!r}. GET /v1/martlet/aliases lists yours.",
        reason="ALIAS_NOT_FOUND",
        metadata={"param": "alias"},
    )


def _moved(name: str) -> Aborted:
    return Aborted(f"The alias {name} was moved by someone else; look at it again.", reason="ALIAS_MOVED")


def _folder(tenant: str, name: str) -> str:
    return f"{_PREFIX}{_quoted(tenant)}/{name}/"


def _quoted(text: str) -> str:
    return quote(text, safe="").replace("%", "=")
