"""The methods of quantizing, as plain data. Importing this needs no ML library: `serve` checks requests by it.

Adding a method: a file here with ``quantize(task) -> Written``, a row in ``METHODS``, and, if its libraries can't live in an
environment that is there, a family of its own (an extra in pyproject.toml and its locks in envs/).
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from martlet_core.errors import InvalidArgument, NotFound

if TYPE_CHECKING:
    from martlet_quantizer.methods.base import Task, Written

#: Largest perplexity of the quantized model, as a multiple of the unquantized one's, by bits a weight.
MAX_PERPLEXITY_RATIO = {8: 1.05, 4: 1.35}

#: Families of methods: each has an environment, a lock, a queue and workers of its own.
FAMILIES = ("bnb", "llmcompressor", "gguf", "awq", "gptqmodel")


@dataclass(frozen=True)
class Method:
    """A method of quantizing.

    Attributes:
        name: as requests write it.
        module: file in this package.
        family: whose environment it runs in.
        description: one line for people.
        bits: bits a weight that can be asked for; the first is the default. ``gguf`` takes them from ``gguf_type``.
        options: the fields of ``options`` it takes; any other is refused.
        needs_calibration: whether it looks at texts while it quantizes.
        group_size: the default; 0 where it has no groups to choose.
        symmetric: the default; None where there is no choice.
        quant_method: what the output's config.json says; empty for formats without one.
        engines: the engines that are expected to load the output.
        model_types: values of config.json's ``model_type`` it is known to be able to work on; None: any with linear layers.
        impossible: values of ``model_type`` that were tried and failed -> why.
    """

    name: str
    module: str
    family: str
    description: str
    bits: tuple[int, ...]
    options: frozenset[str]
    needs_calibration: bool
    quant_method: str
    engines: tuple[str, ...]
    group_size: int = 0
    symmetric: bool | None = None
    model_types: frozenset[str] | None = None
    impossible: Mapping[str, str] = field(default_factory=dict)

    def takes(self, model_type: str) -> bool:
        """Whether it is known, or thought, to be able to work on an architecture."""
        return model_type not in self.impossible and (self.model_types is None or model_type in self.model_types)

    def bits_of(self, asked: int | None, gguf_type: str | None = None) -> int:
        """Bits a weight: those asked for, else the default."""
        if self.name == "gguf":
            return GGUF_BITS[gguf_type or DEFAULT_GGUF_TYPE]
        return asked or self.bits[0]


#: Kinds of GGUF block -> bits of a weight without its block's scale.
GGUF_BITS = {"q8_0": 8, "q4_0": 4, "q4_1": 4}
DEFAULT_GGUF_TYPE = "q8_0"

_GROUPED = frozenset({"bits", "group_size", "symmetric", "ignore"})
_VLLM = ("transformers", "vllm")
#: autoawq 0.2.9's own list, without vision models and those that need code of their own.
_AWQ_TYPES = frozenset({
    "llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "gemma", "gemma2", "gpt_neox", "gptj",
    "gpt_bigcode", "bloom", "falcon", "mpt", "opt", "stablelm", "starcoder2", "phi3", "cohere", "deepseek_v2",
    "deepseek_v3",
})  # fmt: skip

_UNREADABLE_EXPERTS: Mapping[str, str] = dict.fromkeys(
    ("qwen2_moe", "qwen3_moe"), "transformers 5.17 can't read experts back that compressed-tensors wrote in int8"
)
_QUANTIZED_ROUTERS: Mapping[str, str] = {"qwen3_moe": "autoawq 0.2.9 would put its routers in 4 bit too"}

METHODS: Mapping[str, Method] = {
    method.name: method
    for method in (
        Method(
            "bnb-nf4", "bnb_nf4", "bnb", "bitsandbytes NF4: 4 bit, no calibration, can be trained by QLoRA",
            (4,), frozenset({"ignore", "double_quantization"}), False, "bitsandbytes", ("transformers",),
        ),
        Method(
            "bnb-int8", "bnb_int8", "bnb", "bitsandbytes LLM.int8(): 8 bit, no calibration",
            (8,), frozenset({"ignore"}), False, "bitsandbytes", ("transformers",),
        ),
        Method(
            "w8a8-int8", "w8a8_int8", "llmcompressor", "SmoothQuant and GPTQ: weights and activations in int8",
            (8,), frozenset({"ignore"}), True, "compressed-tensors", _VLLM, impossible=_UNREADABLE_EXPERTS,
        ),
        Method(
            "fp8-dynamic", "fp8_dynamic", "llmcompressor", "weights in FP8 by channel, activations by token; no calibration",
            (8,), frozenset({"ignore"}), False, "compressed-tensors", _VLLM,
        ),
        Method(
            "w4a16", "w4a16", "llmcompressor", "GPTQ in compressed-tensors' format: 4-bit weights in groups",
            (4, 8), _GROUPED, True, "compressed-tensors", _VLLM, group_size=128, symmetric=True,
        ),
        Method(
            "gguf", "gguf", "gguf", "one GGUF file for llama.cpp: q8_0, q4_0 or q4_1",
            (8, 4), frozenset({"gguf_type", "ignore"}), False, "", ("llama.cpp", "transformers"),
            model_types=frozenset({"llama", "mistral", "qwen2", "qwen3"}),
        ),
        Method(
            "awq", "awq", "awq", "AutoAWQ: 4-bit weights in groups, scaled by what the activations need",
            (4,), frozenset({"group_size", "ignore"}), True, "awq", ("transformers", "vllm"),
            group_size=128, model_types=_AWQ_TYPES, impossible=_QUANTIZED_ROUTERS,
        ),
        Method(
            "gptq", "gptq", "gptqmodel", "GPTQModel: weights in groups, rounded so that layers' outputs stay",
            (4, 8), _GROUPED, True, "gptq", _VLLM, group_size=128, symmetric=True,
        ),
    )
}  # fmt: skip


def find(name: str, field: str = "spec.method") -> Method:
    """The method of that name.

    Raises:
        NotFound: there is none; names the close ones.
    """
    if name in METHODS:
        return METHODS[name]
    close = difflib.get_close_matches(name.lower().replace("_", "-"), METHODS, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    raise NotFound(
        f"{field}: there is no method {name!r}; {hint}Known are {', '.join(METHODS)}.",
        reason="METHOD_NOT_FOUND",
        metadata={"name": name, "close_matches": ",".join(close)},
    )


def check_model_type(method: Method, model_type: str, field_name: str = "spec.method") -> None:
    """Refuse a method for an architecture that it isn't known to work on.

    Raises:
        InvalidArgument: with the architectures it takes and the methods that take this one.
    """
    if method.takes(model_type):
        return
    others = [m.name for m in METHODS.values() if m.takes(model_type)]
    known = f", only {', '.join(sorted(method.model_types))}" if method.model_types is not None else ""
    why = f": {method.impossible[model_type]}" if model_type in method.impossible else known
    raise InvalidArgument.field(
        field_name,
        f"{method.name} can't quantize a {model_type!r} model{why}; methods that may: {', '.join(others)}",
        reason="METHOD_IMPOSSIBLE",
    )


def load(method: Method) -> Callable[[Task], Written]:
    """The method's ``quantize``; imports its libraries."""
    return importlib.import_module(f"{__name__}.{method.module}").quantize
