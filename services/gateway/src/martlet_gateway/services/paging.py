"""Pages of lists that lie in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from martlet_core.errors import InvalidArgument

T = TypeVar("T")

MAX_PAGE = 1000


def page_size(request: Any, default: int = 100) -> int:
    """``page_size`` of a list request. InvalidArgument outside 1 to 1000; 0 is the default."""
    size = request.page_size or default
    if not 1 <= size <= MAX_PAGE:
        raise InvalidArgument.field("page_size", f"must be 1 to {MAX_PAGE}; got {size}.")
    return size


def paged(items: Sequence[T], request: Any, key: Callable[[T], str]) -> tuple[Sequence[T], str]:
    """The page that a request asks for, and the token of the next: the key of the last item."""
    size, start = page_size(request), 0
    if request.page_token:
        places = [i for i, item in enumerate(items) if key(item) == request.page_token]
        if not places:
            raise InvalidArgument.field("page_token", "is not of this list, or what it points to is gone; begin again.")
        start = places[0] + 1
    page = items[start : start + size]
    return page, key(page[-1]) if start + size < len(items) else ""
