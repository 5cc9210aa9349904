"""What a model's files say without being loaded: its config, and whether and how its weights are quantized. Imports no ML library:
jobs are judged by it at submission.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from martlet_core.artifacts.types import ArtifactStore
from martlet_core.errors import InvalidArgument

from martlet_inputs.base_models.catalog import Reference, is_prepared

CONFIG = "config.json"
#: Where a config says how the weights are quantized: transformers' place, and compressed-tensors' former one.
_PLACES = ("quantization_config", "compression_config")


@dataclass(frozen=True)
class Quantization:
    """How weights are quantized.

    Attributes:
        method: ``quant_method`` of config.json (``bitsandbytes``, ``gptq``, ``awq``, ``compressed-tensors``, …), ``gguf`` for a model that
            has its weights in a GGUF file alone, ``unknown`` for a config that doesn't name its method.
        scheme: more exactly, where the config says so: ``nf4``, ``fp4`` or ``int8`` of bitsandbytes, the format of compressed-tensors.
    """

    method: str
    scheme: str = ""

    def __str__(self) -> str:
        return f"{self.method} ({self.scheme})" if self.scheme else self.method


@dataclass(frozen=True)
class ModelFiles:
    """A model by its files.

    Attributes:
        names: of its files, relative, with forward slashes.
        config: config.json; empty where there is none.
        made_from: name of the model that it was made from, where a job made it; else empty.
    """

    names: frozenset[str]
    config: Mapping[str, Any]
    made_from: str = ""

    @property
    def quantization(self) -> Quantization | None:
        """How its weights are quantized; None for ordinary weights."""
        endings = {Path(name).suffix for name in self.names if "/" not in name}
        if ".gguf" in endings and ".safetensors" not in endings:
            return Quantization("gguf")
        text = self.config.get("text_config")
        for part in (self.config, text if isinstance(text, Mapping) else {}):
            for place in _PLACES:
                if found := part.get(place):
                    return _read_quantization(found if isinstance(found, Mapping) else {})
        return None


def files_in(directory: Path, field: str = "spec.base_model") -> ModelFiles:
    """The model in a directory.

    Raises:
        InvalidArgument: its config can't be read; names ``field``.
    """
    names = frozenset(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())
    text = (directory / CONFIG).read_bytes() if CONFIG in names else b"{}"
    return ModelFiles(names, _parse(text, field))


def files_at_hand(
    reference: Reference, artifacts: ArtifactStore, models_dir: Path, field: str = "spec.base_model"
) -> ModelFiles | None:
    """The model that a name stands for, as far as it can be looked at from here.

    Args:
        reference: what the name stands for.
        artifacts: where artifacts are.
        models_dir: prepared models of the catalogue, one directory a name.
        field: named in errors.

    Returns:
        None where a worker will fetch it: from the hub, or a model of the catalogue that isn't prepared here.

    Raises:
        InvalidArgument: its config can't be read.
    """
    if reference.kind == "artifact":
        artifact = artifacts.get(reference.value)
        names = frozenset(file.path for file in artifact.files)
        text = b"".join(artifacts.open_file(artifact, CONFIG)) if CONFIG in names else b"{}"
        return ModelFiles(names, _parse(text, field), str(artifact.metadata.get("base_model", "")))
    if reference.kind == "path":
        return files_in(Path(reference.value), field)
    directory = models_dir / reference.value
    return files_in(directory, field) if reference.kind == "catalog" and is_prepared(directory) else None


def file_at_hand(reference: Reference, name: str, artifacts: ArtifactStore, models_dir: Path) -> bytes | None:
    """A small file of a model, as far as it can be read from here; see ``files_at_hand``. None also where it has no such file."""
    if reference.kind == "artifact":
        artifact = artifacts.get(reference.value)
        return b"".join(artifacts.open_file(artifact, name)) if name in {file.path for file in artifact.files} else None
    directory = models_dir / reference.value if reference.kind == "catalog" else Path(reference.value)
    if reference.kind not in ("catalog", "path") or not (directory / name).is_file():
        return None
    return (directory / name).read_bytes()


def _parse(text: bytes, field: str) -> Mapping[str, Any]:
    try:
        config = json.loads(text)
    except ValueError as error:
        raise InvalidArgument.field(field, f"its {CONFIG} can't be read: {error}") from error
    if not isinstance(config, dict):
        raise InvalidArgument.field(field, f"its {CONFIG} holds no JSON object")
    return config


def _read_quantization(config: Mapping[str, Any]) -> Quantization:
    if config.get("load_in_8bit"):
        return Quantization("bitsandbytes", "int8")
    if config.get("load_in_4bit"):
        return Quantization("bitsandbytes", str(config.get("bnb_4bit_quant_type") or "fp4"))  # transformers' default
    method = str(config.get("quant_method") or "unknown")
    return Quantization(method, str(config.get("format") or "") if method == "compressed-tensors" else "")
