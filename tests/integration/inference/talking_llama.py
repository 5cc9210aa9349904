"""Makes a tiny random Llama that talks on until it is stopped, and an adapter that changes what it says; says what plain
transformers and peft answer with them. Runs in an environment with both: arguments DIRECTORY [PROMPT...].

Prints ``{"base": [text, ...], "adapter": [text, ...]}``: the greedy answers of 24 tokens to each prompt.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
NEW_TOKENS = 24


def write_model(directory: Path) -> None:
    """Write the model and its tokenizer, a token a byte."""
    torch.manual_seed(0)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>", additional_special_tokens=SPECIAL[1:]
    )
    fast.chat_template = TEMPLATE
    fast.save_pretrained(directory)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.5,
        eos_token_id=0,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():  # never the likeliest token: the answer ends when it is stopped
        model.lm_head.weight[: len(SPECIAL)] = 0
    model.save_pretrained(directory)


def write_adapter(base: Path, directory: Path) -> None:
    """Write an adapter of rank 8 whose matrices are random."""
    torch.manual_seed(1)
    made = get_peft_model(
        LlamaForCausalLM.from_pretrained(base),
        LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False),
    )
    made.save_pretrained(directory)


def answers(model: Any, tokenizer: Any, prompts: list[str]) -> list[str]:
    """What greedy search says to each prompt."""
    texts = []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, do_sample=False)
        texts.append(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
    return texts


def main(directory: Path, prompts: list[str]) -> None:
    """Write ``model`` and ``adapter`` below the directory, and print the answers."""
    base, adapter = directory / "model", directory / "adapter"
    write_model(base)
    write_adapter(base, adapter)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = LlamaForCausalLM.from_pretrained(base).eval()
    said = {"base": answers(model, tokenizer, prompts)}
    said["adapter"] = answers(PeftModel.from_pretrained(model, str(adapter)).eval(), tokenizer, prompts)
    print(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
