"""The job store's Lua scripts: the files of ``lua/`` with the rules of ``job_rules`` put before them as Lua tables."""

from __future__ import annotations

import json
from importlib import resources

from martlet_core.job_rules import TRANSITIONS, state_event
from martlet_core.jobs import FINAL_STATES, HELD_STATES, JobState

SCRIPT_NAMES = (
    "append_event",
    "claim",
    "claim_next",
    "create",
    "events",
    "finish",
    "first_queued",
    "heartbeat",
    "lease",
    "list",
    "note_queued",
    "queue_loads",
    "queue_position",
    "queued",
    "reap",
    "request",
    "restore",
    "update",
    "with_news",
)


def load_scripts() -> dict[str, str]:
    """The whole text of each script, by name."""
    folder = resources.files("martlet_core") / "lua"
    head = "\n".join((_transitions(), _state_set("HELD", HELD_STATES), _state_set("FINAL", FINAL_STATES)))
    head += "\n" + (folder / "prelude.lua").read_text()
    return {name: head + (folder / f"{name}.lua").read_text() for name in SCRIPT_NAMES}


def _transitions() -> str:
    """``TRANSITIONS[action][state before] = {to, level, message, data}`` with the event's texts ready made."""
    actions = []
    for action, moves in TRANSITIONS.items():
        rows = []
        for before, move in moves.items():
            event = state_event(before, move)
            row = {"to": move.to.value, "level": event.level, "message": event.message, "data": json.dumps(event.data)}
            rows.append(f"{before.value} = {{{', '.join(f'{name} = {_quote(text)}' for name, text in row.items())}}}")
        actions.append(f"{action} = {{{', '.join(rows)}}}")
    return f"local TRANSITIONS = {{{', '.join(actions)}}}"


def _state_set(name: str, states: frozenset[JobState]) -> str:
    return f"local {name} = {{{', '.join(f'{state.value} = true' for state in sorted(states))}}}"


def _quote(text: str) -> str:
    """A Lua string literal: JSON's escapes of quotes and backslashes are Lua's too, and the texts are plain ASCII."""
    return json.dumps(text)
