"""Server-made identifiers: time-ordered, lower-case, safe in keys, paths and URLs."""

from __future__ import annotations

import re
import secrets
import time

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32, lower case: sorts like the number it encodes
ID_PATTERN = re.compile(r"[a-z0-9]{1,64}")
NAME_PATTERN = re.compile(r"[A-Za-z0-9._-]{1,128}")
REQUEST_ID_PATTERN = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_OF_ATTEMPT = re.compile(r"([a-z0-9]{20})a\d+[a-z][a-z0-9]*")


def new_id() -> str:
    """A new id of 20 characters: 45 bits of milliseconds (sortable by creation), then 55 random bits."""
    return _encode(int(time.time() * 1000), 9) + _encode(secrets.randbits(55), 11)


def checkpoint_artifact_id(job_id: str, token: int, step: int) -> str:
    """Id that only this attempt writes to: a zombie's upload lands beside the current attempt's, never on it."""
    return f"{job_id}a{token}s{step}"


def output_artifact_id(job_id: str, token: int, name: str) -> str:
    """Id of an attempt's output; as with checkpoints, only this attempt writes to it."""
    return f"{job_id}a{token}{''.join(filter(str.isalnum, name.lower()))}"


def temporary_artifact_id(job_id: str, token: int, number: int) -> str:
    """Id of a model that an attempt publishes for a while."""
    return f"{job_id}a{token}t{number}"


def job_id_of_attempt(artifact_id: str) -> str | None:
    """The job whose attempt an artifact's id names; None for ids of another form. Whether that job made it is said by
    its manifest.
    """
    found = _OF_ATTEMPT.fullmatch(artifact_id)
    return found.group(1) if found else None


def _encode(value: int, length: int) -> str:
    digits = []
    for _ in range(length):
        value, digit = divmod(value, 32)
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))
