"""Runs in the inference environment: our LoRA inside vLLM against a plain loop over tokens; prints the errors as JSON."""

from __future__ import annotations

import json

import torch
from martlet_inference.engines.vllm_grouped_lora import GroupedLora
from vllm.lora.layers import LoRAMapping, base_linear

SLOTS, RANK, WIDTHS, HIDDEN = 3, 4, (12, 8), 10
#: Adapter ids in the slots; 0 in a request means none.
IDS: list[int | None] = [7, 5, 9]


def main() -> None:
    torch.manual_seed(0)
    batches = {
        "one adapter": (5, 5, 5, 5),
        "several": (5, 0, 9, 9, 7, 0),
        "none": (0, 0, 0),
        "one token": (9,),
    }
    errors = {name: error_of(ids) for name, ids in batches.items()} | {"a prompt's tokens": errors_of_a_prompt()}
    print(json.dumps({"errors": errors, "device_of_a_packed_layer": device_of_a_packed_layer()}))


def device_of_a_packed_layer() -> str:
    """Where LoRA is placed on a layer whose weight a kernel has packed away, as int8's does."""
    layer = torch.nn.Linear(4, 4)
    layer.weight = None  # pyright: ignore[reportAttributeAccessIssue]
    return str(base_linear._get_lora_device(layer))


def error_of(ids: tuple[int, ...]) -> dict[str, float]:
    """Largest difference from the plain loop, for a linear layer of two slices, the logits and an embedding."""
    wrapper = GroupedLora(64, 16, torch.device("cpu"))
    mapping = LoRAMapping(index_mapping=ids, prompt_mapping=ids, is_prefill=True)
    wrapper.update_metadata(mapping, IDS, SLOTS, 32)
    x = torch.randn(len(ids), HIDDEN)
    a = tuple(torch.randn(SLOTS, 1, RANK, HIDDEN) for _ in WIDTHS)
    b = tuple(torch.randn(SLOTS, 1, width, RANK) for width in WIDTHS)
    before = torch.randn(len(ids), sum(WIDTHS))

    linear = before.clone()
    wrapper.add_lora_linear(linear, x, a, b, 0.5, WIDTHS)
    parts = [reference(x, ids, a[i], b[i], 0.5) for i in range(len(WIDTHS))]
    logits = before[:, : WIDTHS[0]].clone()
    wrapper.add_lora_logits(logits, x, a[0], b[0], 0.5)
    embedded, low = before[:, : WIDTHS[0]].clone(), torch.randn(len(ids), RANK)
    wrapper.add_lora_embedding(embedded, low, b[0])
    identity = torch.eye(RANK).expand(SLOTS, 1, RANK, RANK)
    return {
        "linear": worst(linear, before + torch.cat(parts, dim=1)),
        "logits": worst(logits, before[:, : WIDTHS[0]] + reference(x, ids, a[0], b[0], 0.5)),
        "embedding": worst(embedded, before[:, : WIDTHS[0]] + reference(low, ids, identity, b[0], 1.0)),
    }


def errors_of_a_prompt() -> dict[str, float]:
    """The logits of a prompt's own tokens, which are more rows than sequences: with an adapter alone, and without any part of one."""
    x, before = torch.randn(6, HIDDEN), torch.randn(6, WIDTHS[0])
    a, b = torch.randn(SLOTS, 1, RANK, HIDDEN), torch.randn(SLOTS, 1, WIDTHS[0], RANK)
    errors = {}
    for name, ids, low in (("alone", (5,) * 7, a), ("without a part", (5, 5, 5, 5, 5, 9, 0), torch.zeros_like(a))):
        wrapper = GroupedLora(64, 16, torch.device("cpu"))
        wrapper.update_metadata(LoRAMapping(ids, ids[-2:], is_prefill=True), IDS, SLOTS, 32)
        logits = before.clone()
        wrapper.add_lora_logits(logits, x, low, b, 0.5)
        errors[name] = worst(logits, before + reference(x, (5,) * 6, low, b, 0.5))
    return errors


def reference(x: torch.Tensor, ids: tuple[int, ...], a: torch.Tensor, b: torch.Tensor, scale: float) -> torch.Tensor:
    """What LoRA adds, token by token."""
    rows = []
    for row, adapter in zip(x, ids, strict=True):
        slot = IDS.index(adapter) if adapter else None
        rows.append(torch.zeros(b.shape[2]) if slot is None else scale * (b[slot, 0] @ (a[slot, 0] @ row)))
    return torch.stack(rows)


def worst(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).abs().max())


if __name__ == "__main__":
    main()
