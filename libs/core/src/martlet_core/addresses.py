"""Addresses outside that jobs may name, since an operator allowed them."""

from __future__ import annotations

from collections.abc import Sequence


def is_allowed(address: str, allowed: Sequence[str]) -> bool:
    """Whether the operator allowed an address: equal to one of the allowed, but for a slash at the end."""
    return address.rstrip("/") in {entry.rstrip("/") for entry in allowed}
