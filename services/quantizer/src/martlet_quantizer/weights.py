"""Facts about a model directory that need no ML library: its config, its size, whether it is quantized already."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from martlet_core.errors import FailedPrecondition, InvalidArgument
from martlet_inputs.base_models.model_files import CONFIG, ModelFiles, files_in

_MODULES = "modules.json"
_WEIGHTS = ("*.safetensors", "*.gguf")
#: Files beside the weights and the config that belong to a model's tokenizer or say how it generates.
_TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "vocab.*",
    "merges.txt",
    "spiece.model",
)


def read_files(directory: Path) -> ModelFiles:
    """The model in a directory.

    Raises:
        InvalidArgument: it has no config.json, or one that can't be read.
    """
    files = files_in(directory, "spec.model")
    require_config(files, "it")
    return files


def require_config(files: ModelFiles, name: str) -> None:
    """Refuse what has no config.json.

    Raises:
        InvalidArgument: it is no model, or one for another program.
    """
    if CONFIG not in files.names:
        raise InvalidArgument.field("spec.model", f"{name} has no {CONFIG}; give a model")


def read_config(directory: Path) -> Mapping[str, Any]:
    """config.json; raises as ``read_files``."""
    return read_files(directory).config


def check_unquantized(files: ModelFiles, name: str) -> None:
    """Refuse a model that is quantized already.

    Raises:
        FailedPrecondition: with the method it was quantized by.
    """
    if found := files.quantization:
        raise FailedPrecondition(
            f"spec.model: {name} is quantized by {found} already; quantize the model it was made from.",
            reason="BASE_IS_QUANTIZED",
        )


def check_safetensors(directory: Path, name: str) -> None:
    """Refuse a model whose weights aren't in safetensors.

    Raises:
        FailedPrecondition: pickled weights are never read.
    """
    if not any(directory.glob("*.safetensors")):
        raise FailedPrecondition(
            f"spec.model: {name} has no .safetensors files; other weights aren't read. Save it with safetensors.",
            reason="NO_SAFETENSORS",
        )


def size_bytes(directory: Path) -> int:
    """Bytes of the files that hold weights."""
    return sum(path.stat().st_size for pattern in _WEIGHTS for path in directory.glob(pattern))


def matrices(directory: Path) -> dict[str, tuple[str, int]]:
    """The matrices in a model's safetensors files: name without ``.weight`` -> (dtype as safetensors writes it, number of weights).

    Tables with a row for each token (embedding, output head) are left out.
    """
    vocabulary = int(read_config(directory).get("vocab_size", 0))
    found = {}
    for path in sorted(directory.glob("*.safetensors")):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        for name, tensor in header.items():
            shape = tensor.get("shape", ())
            if name.endswith(".weight") and len(shape) > 1 and shape[0] != vocabulary:
                found[name.removesuffix(".weight")] = (tensor["dtype"], math.prod(shape))
    return found


def copy_pooling(source: Path, target: Path) -> None:
    """Copy what says how a model makes a vector of a text (sentence-transformers' files), where the model has it."""
    if not (source / _MODULES).is_file():
        return
    for path in [source / _MODULES, *source.glob("*sentence*.json"), *source.glob("[0-9]_*/config.json")]:
        written = target / path.relative_to(source)
        written.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, written)


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the tokenizer's files as they are, over whatever a library wrote in their place."""
    for pattern in _TOKENIZER_FILES:
        for path in source.glob(pattern):
            shutil.copyfile(path, target / path.name)
    if (source / "generation_config.json").is_file() and not (target / "generation_config.json").is_file():
        shutil.copyfile(source / "generation_config.json", target / "generation_config.json")
