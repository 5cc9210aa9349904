"""How sentence-transformers makes a vector of a text: read from ``modules.json`` and what lies beside it. No ML library is needed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from martlet_core.errors import FailedPrecondition

from martlet_inference.model_use import read_json

Pooling = Literal["mean", "cls", "lasttoken"]
#: Ways to make one vector of a text's tokens that both engines know.
POOLINGS = ("mean", "cls", "lasttoken")
_MODULES = ("Transformer", "Pooling", "Normalize")


@dataclass(frozen=True)
class SentenceConfig:
    """A model that makes one vector of a text.

    Attributes:
        pooling: over which tokens' hidden states; their mean where the directory doesn't say, as in sentence-transformers.
        normalize: whether the vector is scaled to length 1.
        max_tokens: longest text; None leaves it to the model.
        lower_case: whether the text is put into lower case first.
    """

    pooling: Pooling = "mean"
    normalize: bool = True
    max_tokens: int | None = None
    lower_case: bool = False


def sentence_config(directory: Path) -> SentenceConfig:
    """What a directory says of its pooling.

    Raises:
        FailedPrecondition: reason ``POOLING_NOT_SUPPORTED``: it has further modules, or pools in another way.
    """
    transformer = read_json(directory / "sentence_bert_config.json")
    max_tokens, lower_case = transformer.get("max_seq_length"), bool(transformer.get("do_lower_case"))
    path = directory / "modules.json"
    if not path.is_file():
        return SentenceConfig(max_tokens=max_tokens, lower_case=lower_case)
    modules = {
        entry["type"].rpartition(".")[2]: entry["path"] for entry in json.loads(path.read_text(encoding="utf-8"))
    }
    if strange := sorted(set(modules) - set(_MODULES)):
        raise _refused(f"it has a module {strange[0]}; {', '.join(_MODULES)} are supported")
    return SentenceConfig(
        _pooling(directory / modules.get("Pooling", "")), "Normalize" in modules, max_tokens, lower_case
    )


def _pooling(directory: Path) -> Pooling:
    config = read_json(directory / "config.json")
    named = config.get("pooling_mode")
    modes = (
        [named]
        if named
        else [
            key.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token")
            for key, value in config.items()
            if key.startswith("pooling_mode_") and value is True
        ]
    )
    if len(modes) != 1 or modes[0] not in POOLINGS:
        raise _refused(
            f"it pools by {' and '.join(map(str, modes)) or 'nothing'}; one of {', '.join(POOLINGS)} is supported"
        )
    return cast("Pooling", modes[0])


def _refused(why: str) -> FailedPrecondition:
    return FailedPrecondition(f"The model can't make embeddings here: {why}.", reason="POOLING_NOT_SUPPORTED")
