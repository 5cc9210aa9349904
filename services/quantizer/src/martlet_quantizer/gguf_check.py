"""Opens a GGUF file with llama.cpp's own reader and looks at everything in it."""

# Its libraries are in the environment of its family only.
# pyright: reportMissingImports=false
from __future__ import annotations

from pathlib import Path

import gguf

from martlet_quantizer.methods.gguf import gguf_file


def read(directory: Path) -> str:
    """Read header, tokenizer and every tensor; returns what was found, in a line.

    Raises:
        ValueError: something that llama.cpp needs is missing, or a tensor holds no numbers.
    """
    name = gguf_file(directory)
    if name is None:
        raise ValueError("there is no .gguf file")
    reader = gguf.GGUFReader(directory / name)
    for key in ("general.architecture", "tokenizer.ggml.model", "tokenizer.ggml.pre", "tokenizer.ggml.tokens"):
        if reader.get_field(key) is None:
            raise ValueError(f"{name} has no {key}")
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        if not (abs(values) < float("inf")).all():
            raise ValueError(f"{name}: tensor {tensor.name} isn't finite")
    kinds = sorted({tensor.tensor_type.name for tensor in reader.tensors})
    return f"{len(reader.tensors)} tensors ({', '.join(kinds)}) read; nothing was generated"
