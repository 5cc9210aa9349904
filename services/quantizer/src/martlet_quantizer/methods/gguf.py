"""GGUF: one file for llama.cpp, with the tokenizer inside. Matrices in blocks of 32 weights that share a scale.

As in files that llama.cpp makes, embedding and output head are stored in 8 bit, norms and biases in 32 bit.
"""

# Its libraries are in the environment of its family only.
# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from martlet_core.errors import FailedPrecondition, InvalidArgument
from safetensors import safe_open

from martlet_quantizer.gguf_tokenizer import add_tokenizer
from martlet_quantizer.methods.base import Task, Written
from martlet_quantizer.weights import read_config

_KINDS = {"q8_0": Kind.Q8_0, "q4_0": Kind.Q4_0, "q4_1": Kind.Q4_1}
_FILE_TYPES = {
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    "q4_0": gguf.LlamaFileType.MOSTLY_Q4_0,
    "q4_1": gguf.LlamaFileType.MOSTLY_Q4_1,
}
#: transformers' model_type -> llama.cpp's architecture.
_ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mistral": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
}
_BLOCK = 32


def quantize(task: Task) -> Written:
    """Write ``model-<type>.gguf`` beside the config and the tokenizer.

    Raises:
        FailedPrecondition: the model has parts that this method can't write.
    """
    config = read_config(task.source)
    architecture = _ARCHITECTURES[config["model_type"]]
    names = gguf.get_tensor_name_map(architecture, config["num_hidden_layers"])
    writer = gguf.GGUFWriter(task.output / f"model-{task.gguf_type}.gguf", gguf.MODEL_ARCH_NAMES[architecture])
    _add_hyperparameters(writer, config)
    add_tokenizer(writer, task.source, int(config["vocab_size"]))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_file_type(_FILE_TYPES[task.gguf_type])
    change = _permuter(config)
    quantized = []
    tensors = list(_tensors(task.source))
    for step, (name, read) in enumerate(tensors, start=1):
        if name == "lm_head.weight" and config.get("tie_word_embeddings"):
            continue
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if target is None:
            raise FailedPrecondition(
                f"spec.method: gguf knows no place for the tensor {name}; use another method.",
                reason="METHOD_IMPOSSIBLE",
            )
        values = change(name, read())
        kind = _kind(task, name, values)
        writer.add_tensor(target, gguf.quantize(values, kind), raw_dtype=kind)
        layer = name.removesuffix(".weight")
        if layer in task.layers and kind is _KINDS[task.gguf_type]:
            quantized.append(layer)
        task.progress(step, len(tensors))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (task.output / "config.json").write_bytes((task.source / "config.json").read_bytes())
    return Written(quantized, {"gguf_type": task.gguf_type})


def gguf_file(directory: Path) -> str | None:
    """Name of the GGUF file in a directory; None if there is none."""
    return next((path.name for path in sorted(directory.glob("*.gguf"))), None)


def head_size(path: Path) -> int:
    """Width of an attention head, by a file's own words."""
    reader = gguf.GGUFReader(path)
    architecture = reader.get_field("general.architecture")
    assert architecture is not None
    field = reader.get_field(f"{architecture.contents()}.attention.key_length")
    assert field is not None
    return int(field.contents())


def _kind(task: Task, name: str, values: np.ndarray[Any, Any]) -> Kind:
    if values.ndim < 2:
        return Kind.F32
    if values.shape[-1] % _BLOCK:
        return Kind.F16
    layer = name.removesuffix(".weight")
    if layer in task.layers:
        return _KINDS[task.gguf_type]
    is_table = layer.endswith(("embed_tokens", "lm_head"))
    return Kind.Q8_0 if is_table else Kind.F16


def _tensors(source: Path) -> Iterator[tuple[str, Callable[[], np.ndarray[Any, Any]]]]:
    for path in sorted(source.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118  safe_open is no mapping
                yield name, lambda name=name, path=path: _read(path, name)


def _read(path: Path, name: str) -> np.ndarray[Any, Any]:
    with safe_open(path, "pt") as file:
        return file.get_tensor(name).to(torch.float32).numpy()


def _permuter(config: Mapping[str, Any]) -> Callable[[str, np.ndarray[Any, Any]], np.ndarray[Any, Any]]:
    """llama.cpp's rotary embedding for the Llama architecture pairs neighbours, transformers' pairs halves: rows of the
    query and key matrices change places.
    """
    if _ARCHITECTURES[config["model_type"]] is not gguf.MODEL_ARCH.LLAMA:
        return lambda _, values: values
    heads = int(config["num_attention_heads"])
    count = {"q_proj": heads, "k_proj": int(config.get("num_key_value_heads") or heads)}

    def permute(name: str, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        part = name.rsplit(".", 2)[-2]
        if part not in count:
            return values
        shape = (count[part], 2, values.shape[0] // count[part] // 2, *values.shape[1:])
        return np.ascontiguousarray(values.reshape(shape).swapaxes(1, 2).reshape(values.shape))

    return permute


def _add_hyperparameters(writer: gguf.GGUFWriter, config: Mapping[str, Any]) -> None:
    heads = int(config["num_attention_heads"])
    head_size = int(config.get("head_dim") or config["hidden_size"] // heads)
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise FailedPrecondition(
            f"spec.method: gguf can't write rotary embeddings of the kind {kind!r} yet; use another method.",
            reason="METHOD_IMPOSSIBLE",
        )
    if config.get("hidden_act", "silu") != "silu":
        raise InvalidArgument.field("spec.method", f"gguf can't write the activation {config['hidden_act']!r}")
    writer.add_context_length(int(config["max_position_embeddings"]))
    writer.add_embedding_length(int(config["hidden_size"]))
    writer.add_block_count(int(config["num_hidden_layers"]))
    writer.add_feed_forward_length(int(config["intermediate_size"]))
    writer.add_head_count(heads)
    writer.add_head_count_kv(int(config.get("num_key_value_heads") or heads))
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)
    writer.add_layer_norm_rms_eps(float(config["rms_norm_eps"]))
    writer.add_rope_freq_base(float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0))
    writer.add_rope_dimension_count(head_size)
    writer.add_vocab_size(int(config["vocab_size"]))
