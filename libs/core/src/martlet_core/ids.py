"""Server-made identifiers: time-ordered, lower-case, safe in keys, paths and URLs."""

from __future__ import annotations

import re
import secrets
import time

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32, lower case: sorts like the number it encodes
ID_PATTERN = re.compile(r"[a-z0-9]{1,64}")
NAME_PATTERN = re.compile(r"[A-Za-z0-9._-]{1,128}")
REQUEST_ID_PATTERN = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def new_id() -> str:
    """A new id of 20 characters: 45 bits of milliseconds (sortable by creation), then 55 random bits."""
    return _encode(int(time.time() * 1000), 9) + _encode(secrets.randbits(55), 11)


def _encode(value: int, length: int) -> str:
    digits = []
    for _ in range(length):
        value, digit = divmod(value, 32)
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))
