"""What a model ends in: the next token's logits, a classifier, or the text's embedding. As config, as files, and as modules.

A model's files say it themselves: ``architectures`` of config.json names the class, ``id2label`` and ``problem_type`` what a classifier says;
an embedding model has ``modules.json`` and ``1_Pooling/config.json``, as sentence-transformers writes them. Adapters carry the same files.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from martlet_inputs.base_models.model_files import files_in
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedTokenizerBase,
)

from martlet_trainer.recipes import Task

#: transformers' class of each task, what people call its models, and peft's name of it.
AUTO_CLASSES: Mapping[str, Any] = {
    "causal_lm": AutoModelForCausalLM,
    "sequence_classification": AutoModelForSequenceClassification,
    "token_classification": AutoModelForTokenClassification,
    "embedding": AutoModel,
}
NAMES: Mapping[str, str] = {
    "causal_lm": "a causal language model",
    "sequence_classification": "a model with a head for sequence classification",
    "token_classification": "a model with a head for token classification",
    "embedding": "an embedding model",
}
PEFT_TASKS: Mapping[str, str] = {
    "causal_lm": "CAUSAL_LM",
    "sequence_classification": "SEQ_CLS",
    "token_classification": "TOKEN_CLS",
    "embedding": "FEATURE_EXTRACTION",
}
#: sentence-transformers' key of each pooling.
_POOLING_KEYS: Mapping[str, str] = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "last": "pooling_mode_lasttoken",
}
_MODULES, _POOLING = "modules.json", "1_Pooling/config.json"
#: Names of modules that heads have in transformers; bitsandbytes leaves them as they are.
UNQUANTIZED = ("lm_head", "score", "classifier", "pre_classifier", "head", "pooler")


@dataclass(frozen=True)
class Head:
    """What a model ends in.

    Attributes:
        task: see ``RecipeInfo.task``.
        labels: names of a classifier's outputs, by number.
        problem_type: transformers' word for what they mean; empty where nothing needs to know.
        pooling: ``mean``, ``last`` or ``cls``, of an embedding model.
        max_length: longest text in tokens that an embedding model was trained on.
        pad_token_id: of a classifier; None for the base model's.
    """

    task: Task
    labels: tuple[str, ...] = ()
    problem_type: str = ""
    pooling: str = ""
    max_length: int = 0
    pad_token_id: int | None = None

    def config(self) -> dict[str, Any]:
        """Its part of a transformers config."""
        if self.task not in ("sequence_classification", "token_classification"):
            return {}
        names = {
            "num_labels": len(self.labels),
            "id2label": dict(enumerate(self.labels)),
            "label2id": {name: index for index, name in enumerate(self.labels)},
        }
        problem = {"problem_type": self.problem_type} if self.problem_type else {}
        return names | problem | ({} if self.pad_token_id is None else {"pad_token_id": self.pad_token_id})


CAUSAL_LM = Head("causal_lm")


def head_in(directory: Path) -> Head:
    """The head of a whole model, or of an adapter, by its files; a causal language model's where they say nothing else."""
    files = files_in(directory)
    architecture = str((files.config.get("architectures") or [""])[0])
    tasks: Mapping[str, Task] = {
        "ForSequenceClassification": "sequence_classification",
        "ForTokenClassification": "token_classification",
    }
    for ending, task in tasks.items():
        if architecture.endswith(ending):
            names = files.config.get("id2label") or {}
            labels = tuple(names[key] for key in sorted(names, key=int))
            return Head(
                task,
                labels or ("LABEL_0", "LABEL_1"),  # transformers writes no names that are its defaults
                str(files.config.get("problem_type") or ""),
                pad_token_id=files.config.get("pad_token_id"),
            )
    if _MODULES in files.names:
        longest = _read(directory / "sentence_bert_config.json").get("max_seq_length") or 0
        return Head("embedding", pooling=pooling_in(directory) or "mean", max_length=longest)
    return CAUSAL_LM


def pooling_in(directory: Path) -> str:
    """The pooling that a sentence-transformers directory names; empty where it names none that we know."""
    found = _read(directory / _POOLING)
    chosen = [name for name, key in _POOLING_KEYS.items() if found.get(key)]
    return chosen[0] if len(chosen) == 1 else ""


def write_head(head: Head, model: Any, directory: Path) -> None:
    """Write what the weights beside it end in: config.json, and of an embedding model pooling and normalisation.

    Args:
        head: of the model.
        model: a transformers model, without an adapter.
        directory: gets the files; nothing for causal language models.
    """
    if head.task == "causal_lm":
        return
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    if hasattr(config, "quantization_config"):  # a frozen base may be; what an adapter's weights are for isn't
        del config.quantization_config
    config.save_pretrained(directory)
    if head.task != "embedding":
        return
    kinds = ("Transformer", "Pooling", "Normalize")
    modules = [
        {
            "idx": index,
            "name": str(index),
            "path": f"{index}_{kind}" if index else "",
            "type": f"sentence_transformers.models.{kind}",
        }
        for index, kind in enumerate(kinds)
    ]
    pooling: dict[str, Any] = {key: name == head.pooling for name, key in _POOLING_KEYS.items()}
    pooling |= {"word_embedding_dimension": model.config.get_text_config().hidden_size, "include_prompt": True}
    _write(directory / _MODULES, modules)
    _write(directory / _POOLING, pooling)
    _write(directory / "sentence_bert_config.json", {"max_seq_length": head.max_length, "do_lower_case": False})
    _write(directory / "config_sentence_transformers.json", {"prompts": {}, "similarity_fn_name": "cosine"})


def head_modules(model: nn.Module, task: str) -> list[str]:
    """Names of the modules that a new head is made of: what is outside the backbone and has weights, and the backbone's pooler. All are
    trained beside an adapter, and saved in it.
    """
    if task not in ("sequence_classification", "token_classification"):
        return []
    backbone = str(getattr(model, "base_model_prefix", ""))
    found = [
        name for name, module in model.named_children() if name != backbone and any(True for _ in module.parameters())
    ]
    pooler = getattr(getattr(model, backbone, None), "pooler", None)
    return found + ([f"{backbone}.pooler"] if isinstance(pooler, nn.Module) else [])


def with_padding(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer, with a token to pad with: classifiers find the end of a row by it."""
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return tokenizer


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
