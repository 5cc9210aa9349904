"""Which layers are quantized, in groups of which size; models for transformers 4."""

from __future__ import annotations

import pytest
from martlet_core.errors import InvalidArgument
from martlet_quantizer.layers import fit_group_size, split
from martlet_quantizer.transformers4 import older_config, older_tokenizer_config

LAYERS = {
    f"model.layers.{index}.{part}": (64, columns)
    for index in (0, 1, 10)
    for part, columns in {"self_attn.q_proj": 64, "mlp.up_proj": 64, "mlp.down_proj": 192}.items()
}


@pytest.mark.parametrize(
    ("ignore", "count"),
    [
        (["down_proj"], 3),
        (["model.layers.1"], 3),  # and not layer 10
        (["model.layers.1.mlp"], 2),
        (["layers.0.mlp.up_proj"], 1),
        (["re:.*layers[.](0|10)[.].*"], 6),
        (["down_proj", "model.layers.0"], 5),
    ],
)
def test_ignore_takes_names_parts_and_expressions(ignore: list[str], count: int) -> None:
    kept, alone = split(LAYERS, ignore)
    assert len(alone) == count
    assert len(kept) == len(LAYERS) - count


@pytest.mark.parametrize(
    ("ignore", "words"),
    [
        (["donw_proj"], "matches no linear layer; did you mean down_proj"),
        (["proj"], "their names end in down_proj, q_proj, up_proj"),
        (["re:("], "no regular expression"),
        (["re:.*"], "leaves no layer"),
    ],
)
def test_entries_that_do_nothing_or_everything_are_refused(ignore: list[str], words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        split(LAYERS, ignore)


def test_group_size_falls_to_one_that_divides_every_width() -> None:
    assert fit_group_size(128, {"a": (1, 256)}) == 128
    assert fit_group_size(128, {"a": (1, 256), "b": (1, 576)}) == 64
    assert fit_group_size(128, {"a": (1, 96)}) == 32
    assert fit_group_size(32, {"a": (1, 256)}) == 32
    with pytest.raises(InvalidArgument, match="none of 128, 64, 32 divides the 80 in_features of b"):
        fit_group_size(128, {"a": (1, 256), "b": (1, 80)})


def test_configs_are_put_in_the_words_of_transformers_4() -> None:
    """Else it would take 10000 for rope_theta, and say nothing."""
    new = {"dtype": "bfloat16", "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0}}
    assert older_config(new)["rope_theta"] == 100000.0
    assert older_config(new)["torch_dtype"] == "bfloat16"
    assert older_config({"model_type": "qwen3_moe", "num_local_experts": 4})["num_experts"] == 4
    assert "num_experts" not in older_config({"model_type": "mixtral", "num_local_experts": 4})
    scaled = older_config({"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0}})
    assert scaled["rope_scaling"] == {"rope_type": "llama3", "factor": 8.0}
    assert (
        older_tokenizer_config({"tokenizer_class": "TokenizersBackend"})["tokenizer_class"] == "PreTrainedTokenizerFast"
    )
