"""A tiny config of any causal language model that transformers ships, for tests and for the table of support.

Configs name the same things differently, so sizes are set by name (``_sizes``), in the config and in the configs inside it, and only where
the config has the name. What a family needs beside, or must keep, is data: ``_families``, ``_published``.

A model is four heads wide; every other width goes with that of a head.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import fields
from functools import cache
from typing import Any

#: Tokens of ``testing.byte_tokenizer``, rounded up: some architectures pad their vocabulary.
_VOCABULARY = 264
_LAYERS, _HEADS, _EXPERTS, _CONTEXT = 2, 4, 4, 512
#: Width of a head, unless another is asked for.
HEAD_WIDTH = 16


def _named(value: Any, *names: str) -> dict[str, Any]:
    return dict.fromkeys(names, value)


#: Name in a config -> its tiny value, where that is no width.
_COUNTS: Mapping[str, Any] = {
    **_named(_VOCABULARY, "vocab_size", "decoder_vocab_size", "vocab_size_per_layer_input"),
    **_named(_LAYERS, "num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers"),
    **_named(_LAYERS, "num_encoder_layers", "num_decoder_layers"),
    **_named(_HEADS, "num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads", "linear_num_heads"),
    **_named(_HEADS, "encoder_attention_heads", "decoder_attention_heads", "num_encoder_attention_heads"),
    **_named(
        _HEADS, "num_decoder_attention_heads", "linear_num_value_heads", "index_n_heads", "swa_num_attention_heads"
    ),
    **_named(_HEADS // 2, "linear_num_key_heads", "swa_num_key_value_heads", "num_global_key_value_heads"),
    **_named(_EXPERTS, "num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"),
    **_named(2, "num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k"),
    **_named(1, "n_group", "topk_group", "num_expert_group", "first_k_dense_replace", "num_dense_layers"),
    # State spaces: heads x their width = expansion x width.
    **_named(8, "mamba_n_heads", "mamba_num_heads", "n_mamba_heads"),
    **_named(1, "mamba_n_groups", "mamba_ngroups"),
    **_named(_CONTEXT, "max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "context_length"),
    **_named(_CONTEXT, "max_target_positions", "max_source_positions", "model_max_length"),
    **_named(128, "sliding_window", "sliding_window_size", "attention_window_size", "window_size", "local_attention"),
    # Tokens of ``testing.byte_tokenizer``. The padding token's embedding starts at zero: one that no row has.
    **_named(0, "pad_token_id", "cls_token_id", "sep_token_id", "mask_token_id", "eod_token_id"),
    **_named(1, "bos_token_id", "decoder_start_token_id"),
    **_named(2, "eos_token_id", "forced_eos_token_id"),
    # A causal model of an architecture that can be an encoder, too.
    **_named(True, "is_decoder", "causal"),
}


@cache
def _sizes(head: int) -> Mapping[str, Any]:
    """Name in a config -> its tiny value, where a head has a width."""
    width = _HEADS * head
    return {
        **_COUNTS,
        **_named(
            width, "hidden_size", "d_model", "n_embd", "emb_dim", "embedding_dim", "lru_width", "word_embed_proj_dim"
        ),
        **_named(width, "embedding_size", "input_embedding_size", "output_embedding_size", "attention_hidden_size"),
        **_named(2 * width, "intermediate_size", "ffn_dim", "ffn_hidden_size", "encoder_ffn_dim", "decoder_ffn_dim"),
        **_named(2 * width, "dim_ff", "dff", "d_inner", "feed_forward_size", "n_inner", "dense_intermediate_size"),
        **_named(2 * width, "intermediate_size_mlp", "shared_intermediate_size", "shared_expert_intermediate_size"),
        **_named(width // 2, "moe_intermediate_size", "expert_ffn_hidden_size", "moe_shared_expert_intermediate_size"),
        **_named(head, "head_dim", "d_head", "dim_head", "kv_channels", "attention_head_size", "v_head_dim"),
        **_named(head, "swa_head_dim", "linear_key_head_dim", "linear_value_head_dim", "linear_head_dim"),
        **_named(head, "index_head_dim", "global_head_dim", "query_pre_attn_scalar"),
        **_named(head // 2, "qk_rope_head_dim", "qk_nope_head_dim", "rotary_dim"),
        **_named(head, "q_lora_rank", "kv_lora_rank", "hidden_size_per_layer_input", "router_hidden_size"),
        **_named(head, "mamba_d_head", "mamba_head_dim", "mamba_headdim", "mamba_d_state", "ssm_state_size"),
        **_named(head, "state_size", "chunk_size", "mamba_chunk_size"),
    }


#: At the start, attention of a narrow model tells next to nothing apart; with this it does.
_SPREAD = 0.2

_DEFAULT_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_CODEBOOKS = {"decoder": {}, "text_encoder": {"model_type": "t5"}, "audio_encoder": {"model_type": "encodec"}}


@cache
def _families(head: int) -> Mapping[str, Mapping[str, Any]]:
    """Type of a config -> what its config, or one inside it, has beside ``_sizes``. ``first``: what it can't be made without."""
    width = _HEADS * head
    qwen4 = {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": head,
        "indexer_budget": 64,
        "indexer_compress_ratio": 8,
    }
    sections = [head // 4, head // 8, head // 8]
    return {
        "bamba": {"attn_layer_indices": [1]},
        "blt": {
            "encoder_config": {"hidden_size_global": width},
            "decoder_config": {"hidden_size_global": width},
            "encoder_hash_byte_group_vocab": 512,
        },
        "cohere_compass_text": {"rope_parameters": {"full_attention": {**_DEFAULT_ROPE, "mrope_section": sections}}},
        "dbrx": {"attn_config": {"rope_theta": 10000.0, "clip_qkv": 8.0}},
        "deepseek_v2": {"num_experts_per_tok": 2, "topk_group": 1, "n_group": 1},
        "dots1": {
            "n_routed_experts": _EXPERTS,
            "num_experts_per_tok": 2,
            "n_shared_experts": 1,
            "first_k_dense_replace": 1,
        },
        "falcon_h1": {"mamba_d_ssm": 2 * width},
        "gemma3n_text": {
            "intermediate_size": 2 * width,
            "activation_sparsity_pattern": [0.0, 0.0],
            "num_kv_shared_layers": 0,
        },
        "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
        "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
        "hunyuan_v1_dense": {"head_dim": head},
        "hunyuan_v1_moe": {"head_dim": head, "num_experts": _EXPERTS, "moe_topk": 2},
        "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
        "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
        "mamba2": {"num_heads": 8},
        "ministral": {"head_dim": head},
        "musicgen": {"first": _CODEBOOKS, **_CODEBOOKS},
        "musicgen_melody": {"first": _CODEBOOKS, **_CODEBOOKS},
        "nemotron": {"num_key_value_heads": _HEADS // 2},
        "qwen4_exp": {"text_config": qwen4},
        "qwen4_exp_text": qwen4,
        "reformer": {"axial_pos_embds": False, "attn_layers": ["local", "lsh"], "num_buckets": 8},
        "roc_bert": {"shape_vocab_size": 64, "pronunciation_vocab_size": 64},
        "xlstm": {"qk_dim_factor": 1.0},  # transformers' step needs keys as wide as values
        "xmod": {"default_language": "en_XX"},
        # Their hybrid layers share weights, of which the first has its own.
        "zamba": {
            "attention_hidden_size": 2 * width,
            "layers_block_type": 2 * ["linear_attention", "hybrid"],
            "num_hidden_layers": 4,
        },
        "zamba2": {"layers_block_type": 2 * ["linear_attention", "hybrid"], "num_hidden_layers": 4},
    }


@cache
def _published(head: int) -> Mapping[str, Mapping[str, Any]]:
    """Type of a config -> what published models' configs have, or how they are shaped, where engines ask for it and transformers doesn't."""
    width = _HEADS * head
    wide = {"qk_nope_head_dim": head}
    return {
        "afmoe": {"score_func": "sigmoid", "route_norm": True, "route_scale": 1.0, "n_group": 1, "topk_group": 1},
        "axk2": wide,
        "deepseek_v2": wide,
        "deepseek_v3": {**wide, "topk_method": "noaux_tc", "scoring_func": "sigmoid"},
        "falcon": {"ffn_hidden_size": 4 * width},
        "glm4_moe": {"head_dim": head},
        "glm4_moe_lite": {**wide, "first_k_dense_replace": 1, "topk_method": "noaux_tc"},
        "lfm2": {"block_dim": width, "conv_dim": width},
    }


def causal_architectures() -> Mapping[str, str]:
    """Type of a config -> class of its causal language model, of all that transformers ships."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as NAMES

    return dict(sorted(NAMES.items()))


def tiny_config(model_type: str, head_width: int = HEAD_WIDTH) -> Any:
    """A config of the type with two layers (one of each kind, where there are several kinds), four heads and 264 tokens."""
    from transformers import CONFIG_MAPPING

    parts = (kind(head_width).get(model_type, {}) for kind in (_families, _published))
    special = {
        name: deepcopy(value) for part in parts for name, value in part.items()
    }  # some configs take apart what they are made of
    return _shrunk(CONFIG_MAPPING[model_type], special, _sizes(head_width))


def _shrunk(kind: type[Any], special: Mapping[str, Any], sizes: Mapping[str, Any]) -> Any:
    plain = kind(**special.get("first", {}))
    names = {field.name for field in fields(kind)}  # what else it has, it derives from these
    had = {name: value for name, value in vars(plain).items() if name in names}
    values: dict[str, Any] = {}
    for name, value in sizes.items():
        name = kind.attribute_map.get(name, name)
        if had.get(name) is not None and not isinstance(had[name], (list, tuple)):
            values[name] = value
    values |= _kept_small(had, values) | _layers(had)
    for name in kind.sub_configs:
        if name in had and had[name] is not None and hasattr(had[name], "sub_configs"):
            values[name] = _shrunk(type(had[name]), special.get(name, {}), sizes)
    if "initializer_range" in had:
        values["initializer_range"] = _SPREAD
    values |= {name: value for name, value in special.items() if name not in kind.sub_configs and name != "first"}
    return kind(**values)


def _kept_small(had: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers that mustn't become larger than they were, or that have a proportion to keep."""
    found: dict[str, Any] = {}
    for name in ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k"):
        if name in values:
            found[name] = min(values[name], had[name])
    heads = next((had[name] for name in ("num_attention_heads", "n_head", "num_heads") if name in had), None)
    for name in ("num_key_value_heads", "num_kv_heads"):
        if heads and had.get(name):
            found[name] = _HEADS if had[name] >= heads else 1 if had[name] == 1 else _HEADS // 2
    if "head_dim" in values and had.get("head_dim") == had.get("qk_rope_head_dim"):
        found["head_dim"] = values["qk_rope_head_dim"]  # the width that is rotated, and not that of a head
    return found


def _layers(had: Mapping[str, Any]) -> dict[str, Any]:
    """One layer of each kind, in the order that kinds first come in; two layers at least."""
    lists = {
        name: list(dict.fromkeys(had[name]))
        for name in ("layer_types", "mlp_layer_types")
        if isinstance(had.get(name), (list, tuple)) and all(isinstance(kind, str) for kind in had[name])
    }
    count = max([_LAYERS, *(len(kinds) for kinds in lists.values())])
    found: dict[str, Any] = {name: (kinds + [kinds[-1]] * count)[:count] for name, kinds in lists.items() if kinds}
    return {**found, "num_hidden_layers": count} if found else {}
