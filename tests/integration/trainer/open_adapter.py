"""Loads an adapter with peft and nothing of ours: arguments BASE ADAPTER; prints the sum of changes of the logits."""

from __future__ import annotations

import sys

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
ids = torch.arange(10, 40)[None]
with torch.no_grad():
    before = base(ids).logits
    after = PeftModel.from_pretrained(base, sys.argv[2]).eval()(ids).logits
print(float((after - before).abs().sum()))
