"""What transformers says about a model that it loaded: a model with weights of its own invention is refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from martlet_core.errors import FailedPrecondition

_NAMED = 3


def check_loading_info(info: Mapping[str, Any], subject: str) -> None:
    """Refuse a model of which weights weren't in its files, or had another shape there.

    transformers fills such weights with random numbers and says so in a warning; what it then writes is garbage.

    Args:
        info: what ``from_pretrained(..., output_loading_info=True)`` returned beside the model. Weights that the model
            ties to others aren't in it.
        subject: the beginning of the message, such as ``spec.base_model: its files``.

    Raises:
        FailedPrecondition: the reason is WEIGHTS_MISSING; the message names the first weights.
    """
    for key, said in (
        ("missing_keys", "lack {} of the model's weights"),
        ("mismatched_keys", "have {} in another shape"),
    ):
        names = sorted(_names(info.get(key) or ()))
        if names:
            more = ", …" if len(names) > _NAMED else ""
            raise FailedPrecondition(
                f"{subject} {said.format(len(names))}, which would be random numbers: {', '.join(names[:_NAMED])}{more}.",
                reason="WEIGHTS_MISSING",
            )


def _names(keys: Iterable[Any]) -> Iterable[str]:
    """Mismatched keys come as (name, shape, shape)."""
    return (key if isinstance(key, str) else str(key[0]) for key in keys)
