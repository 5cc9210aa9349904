"""Writes a tokenizer into a GGUF file, as llama.cpp reads it."""

# Its libraries are in the environment of its family only.
# pyright: reportMissingImports=false
from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
from martlet_core.errors import FailedPrecondition

_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5

#: A part of the regular expression that splits text -> llama.cpp's name for the whole of it.
_SPLITTERS = (
    ("(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}|", "llama-bpe"),
    ("(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}|", "qwen2"),
)


def add_tokenizer(writer: gguf.GGUFWriter, source: Path, vocabulary_size: int) -> None:
    """Write tokens, merges, special tokens and chat template.

    Args:
        writer: of the file.
        source: the model's directory, with a tokenizer.json.
        vocabulary_size: rows of the embedding; ids without a token become unused ones.

    Raises:
        FailedPrecondition: the tokenizer isn't byte-level BPE, or splits text in a way that has no name here.
    """
    path = source / "tokenizer.json"
    if not path.is_file():
        raise _impossible("it has no tokenizer.json")
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    model = tokenizer["model"]
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        raise _impossible(f"it is {model.get('type')}{' with byte fallback' if model.get('byte_fallback') else ''}")
    tokens = [f"[PAD{index}]" for index in range(vocabulary_size)]
    types = [_UNUSED] * vocabulary_size
    for text, index in model["vocab"].items():
        tokens[index], types[index] = text, _NORMAL
    for added in tokenizer.get("added_tokens", []):
        tokens[added["id"]] = added["content"]
        types[added["id"]] = _CONTROL if added["special"] else _USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_splitter(tokenizer.get("pre_tokenizer") or {}))
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    if merges:
        writer.add_token_merges(merges)
    _add_special_tokens(writer, source, {text: index for index, text in enumerate(tokens)})


def _splitter(pre_tokenizer: Mapping[str, Any]) -> str:
    steps = pre_tokenizer.get("pretokenizers") or [pre_tokenizer]
    kinds = [step.get("type") for step in steps]
    patterns = [step["pattern"].get("Regex", "") for step in steps if step.get("type") == "Split"]
    for pattern, name in _SPLITTERS:
        if any(found.startswith(pattern) for found in patterns):
            return name
    if kinds == ["ByteLevel"]:
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"]:
        return "smollm"
    raise _impossible(f"it splits text in a way that llama.cpp has no known name for ({', '.join(map(str, kinds))})")


def _add_special_tokens(writer: gguf.GGUFWriter, source: Path, ids: Mapping[str, int]) -> None:
    path = source / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for key, add in (
        ("bos_token", writer.add_bos_token_id),
        ("eos_token", writer.add_eos_token_id),
        ("unk_token", writer.add_unk_token_id),
        ("pad_token", writer.add_pad_token_id),
    ):
        token = config.get(key)
        text = token.get("content") if isinstance(token, Mapping) else token
        if isinstance(text, str) and text in ids:
            add(ids[text])
    writer.add_add_bos_token(bool(config.get("add_bos_token", False)))
    template = source / "chat_template.jinja"
    text = template.read_text(encoding="utf-8") if template.is_file() else config.get("chat_template")
    if isinstance(text, str) and text:
        writer.add_chat_template(text)


def _impossible(why: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"spec.method: gguf can't write the model's tokenizer: {why}. Use another method.", reason="METHOD_IMPOSSIBLE"
    )
