"""Texts that come with the quantizer, written for it: one set to calibrate with, and one that is only measured on."""

from __future__ import annotations

from pathlib import Path

from martlet_quantizer.rows import Row

_HERE = Path(__file__).parent
_SEPARATOR = "\n----\n"
_ROLES = ("user: ", "assistant: ")


def calibration_rows() -> list[Row]:
    """Stories, articles, code, tables, logs, letters and conversations; about 8,000 tokens."""
    return _read("calibration.txt")


def heldout_rows() -> list[Row]:
    """Other texts of the same kinds; nothing is ever calibrated with them."""
    return _read("heldout.txt")


def _read(name: str) -> list[Row]:
    blocks = (_HERE / name).read_text(encoding="utf-8").rstrip("\n").split(_SEPARATOR)
    return [_conversation(block) if block.startswith(_ROLES) else {"text": block} for block in blocks]


def _conversation(block: str) -> Row:
    messages: list[dict[str, str]] = []
    for line in block.split("\n"):
        role = next((r for r in _ROLES if line.startswith(r)), None)
        if role:
            messages.append({"role": role.removesuffix(": "), "content": line.removeprefix(role)})
        else:
            messages[-1]["content"] += "\n" + line
    return {"messages": messages}
