"""Makes tiny random models that don't generate, and says what plain transformers makes of texts with them. Runs in an environment
with it: argument DIRECTORY.

Prints a JSON object by model: ``embedding`` {text: vector}, ``classes`` {text: probabilities}, ``reranker`` {document: score for QUERY},
``reward`` {answer: the logit}, ``tokens`` {text: probabilities by token}. Each text is computed alone, so nothing is padded.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

TEXTS = ["a swift flies", "the martin builds a nest under the roof of an old barn", "no"]
QUERY = "which bird is fast"
QUESTION = [{"role": "user", "content": "name a bird"}]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "<|user|>", "<|assistant|>"]
TEMPLATE = "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}{% endfor %}"
SHAPE = {
    "hidden_size": 32,  # a head of 32, the least that vLLM has kernels for on a CPU
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "max_position_embeddings": 96,
    "initializer_range": 0.5,
    "pad_token_id": 0,
}


def write_tokenizer(directory: Path, *, pairs: bool) -> int:
    """Write a tokenizer, a token a character; returns the size of its vocabulary."""
    words = [*SPECIAL, *(chr(code) for code in range(32, 127))]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    if pairs:
        ends = [("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
        )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=96,
        additional_special_tokens=SPECIAL[4:],
        model_input_names=["input_ids", "attention_mask", *(["token_type_ids"] if pairs else [])],
    )
    if not pairs:
        fast.chat_template = TEMPLATE
    fast.save_pretrained(directory)
    return len(words)


def write_models(directory: Path) -> None:
    """Write all models below the directory."""
    torch.manual_seed(0)
    bert = {"vocab_size": len(SPECIAL) + 95, **SHAPE}
    labels = {0: "negative", 1: "neutral", 2: "positive"}
    made = {
        "embedding": BertModel(BertConfig(**bert), add_pooling_layer=False),
        "classes": BertForSequenceClassification(BertConfig(**bert, id2label=labels)),
        "reranker": BertForSequenceClassification(BertConfig(**bert, num_labels=1)),
        "tokens": BertForTokenClassification(BertConfig(**bert, id2label=labels)),
        "reward": LlamaForSequenceClassification(LlamaConfig(**bert, num_key_value_heads=1, num_labels=1)),
    }
    for name, model in made.items():
        model.save_pretrained(directory / name)
        size = write_tokenizer(directory / name, pairs=name != "reward")
        assert size == bert["vocab_size"]
    write_sentence_files(directory / "embedding")


def write_sentence_files(directory: Path) -> None:
    """Make a directory one of sentence-transformers: mean pooling, length 1, at most 64 tokens."""
    kinds = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(kinds)
    ]
    (directory / "modules.json").write_text(json.dumps(modules))
    (directory / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 64, "do_lower_case": False}))
    (directory / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 32, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    (directory / "1_Pooling/config.json").write_text(json.dumps(pooling))


@torch.inference_mode()
def references(directory: Path) -> dict[str, Any]:
    """What plain transformers says, a text at a time."""

    def load(name: str, kind: Any) -> tuple[Any, Any]:
        return AutoTokenizer.from_pretrained(directory / name), kind.from_pretrained(directory / name).eval()

    def logits(loaded: tuple[Any, Any], *texts: str, **options: Any) -> torch.Tensor:
        tokenizer, model = loaded
        return model(**tokenizer(*texts, return_tensors="pt", **options)).logits[0]

    tokenizer, model = load("embedding", AutoModel)
    vectors = {}
    for text in TEXTS:
        mean = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(dim=0)
        vectors[text] = (mean / mean.norm()).tolist()
    classes = load("classes", AutoModelForSequenceClassification)
    reranker = load("reranker", AutoModelForSequenceClassification)
    tokens = load("tokens", AutoModelForTokenClassification)
    reward = load("reward", AutoModelForSequenceClassification)
    rewards = {}
    for text in TEXTS:
        messages = [*QUESTION, {"role": "assistant", "content": text}]
        written = reward[0].apply_chat_template(messages, tokenize=False)
        rewards[text] = logits(reward, written, add_special_tokens=False).item()
    return {
        "embedding": vectors,
        "classes": {text: logits(classes, text).softmax(-1).tolist() for text in TEXTS},
        "reranker": {text: logits(reranker, QUERY, text).sigmoid().item() for text in TEXTS},
        "reward": rewards,
        "tokens": {text: logits(tokens, text).softmax(-1).tolist() for text in TEXTS},
    }


if __name__ == "__main__":
    write_models(Path(sys.argv[1]))
    print(json.dumps(references(Path(sys.argv[1]))))
