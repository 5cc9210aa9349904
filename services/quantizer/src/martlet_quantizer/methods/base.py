"""What a method is given and what it hands back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Task:
    """One quantization.

    Attributes:
        source: the unquantized model: config, safetensors weights, tokenizer.
        output: directory to write; it is there and empty. The tokenizer's files are copied by the caller.
        scratch: directory for files that nobody needs afterwards.
        layers: the linear layers to quantize: name -> (out_features, in_features).
        left_alone: names of linear layers that stay as they are; the output head is one.
        bits: bits a weight.
        group_size: weights that share a scale; divides every layer's in_features. 0 where the method has none.
        symmetric: without a zero point.
        double_quantization: the scales are quantized too.
        gguf_type: kind of GGUF block.
        windows: calibration texts as token ids, none longer than ``sequence_length``; empty for methods without.
        sequence_length: tokens.
        seed: of whatever is random.
        log: adds a line to the job's events.
        progress: takes (step from 1, total steps).
    """

    source: Path
    output: Path
    scratch: Path
    layers: Mapping[str, tuple[int, int]]
    left_alone: Sequence[str]
    bits: int
    group_size: int
    symmetric: bool
    double_quantization: bool
    gguf_type: str
    windows: Sequence[Sequence[int]]
    sequence_length: int
    seed: int
    log: Callable[[str], None]
    progress: Callable[[int, int], None]


@dataclass(frozen=True)
class Written:
    """What a method wrote, beside the files.

    Attributes:
        quantized: names of the layers that are quantized now.
        facts: further facts for the report, JSON-ready.
    """

    quantized: Sequence[str]
    facts: Mapping[str, Any] = field(default_factory=dict)
