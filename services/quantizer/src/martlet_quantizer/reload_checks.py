"""Which engines are asked to load what a method wrote. Plain data: no ML library is imported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


def engine_of(family: str) -> str:
    """Name of the engine that ``load_quantized`` stands for."""
    return {"awq": "autoawq format, dequantized", "gptqmodel": "GPTQModel"}.get(family, "transformers")


@dataclass(frozen=True)
class EngineCheck:
    """A check that an engine loads the output, run in the environment of a family.

    Attributes:
        engine: as the result names it.
        family: whose environment has it.
        load: ``module:function`` that takes the directory and returns a model that generates.
    """

    engine: str
    family: str
    load: str


#: Further engines to try, by the family that wrote the model.
ENGINE_CHECKS: Mapping[str, tuple[EngineCheck, ...]] = {
    "awq": (
        EngineCheck("autoawq", "awq", "martlet_quantizer.awq_format:load_by_autoawq"),
        EngineCheck("transformers (with gptqmodel)", "gptqmodel", "martlet_quantizer.reload:load_gptq"),
    ),
    # Not of mixtures: transformers 5 keeps all experts in one tensor, and has no way to read them from GPTQ's.
    "gptqmodel": (EngineCheck("transformers (with gptqmodel)", "gptqmodel", "martlet_quantizer.reload:load_gptq"),),
    "gguf": (EngineCheck("llama.cpp's reader (gguf)", "gguf", "martlet_quantizer.gguf_check:read"),),
}
