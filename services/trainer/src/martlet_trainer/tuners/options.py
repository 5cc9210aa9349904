"""Options that only one tuner knows (``tuner.options``), under peft's names; a key that isn't here is refused. Imports no ML library."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt
from martlet_core.config import Config, Float, Int
from pydantic import AfterValidator, Field, model_validator


def regular_expression(pattern: str) -> str:
    """The pattern, if it is one.

    Raises:
        ValueError: it isn't.
    """
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"is no regular expression: {error}") from error
    return pattern


_Rank = Annotated[Int, Ge(1), Le(4096)]
_Count = Annotated[Int, Ge(1), Le(1 << 20)]
_Pattern = Annotated[str, AfterValidator(regular_expression)]
_VirtualTokens = Annotated[Int, Ge(1), Le(4096)]
_Scale = Annotated[Float, Gt(0), Le(65536)]
_Dropout = Annotated[Float, Ge(0), Le(0.9)]


class NoOptions(Config):
    """None."""


class LohaOptions(Config):
    """``loha``."""

    r: _Rank = Field(default=8, description="Rank of each factor.")
    alpha: _Scale = Field(default=8, description="Updates are scaled by alpha / r.")
    module_dropout: _Dropout = 0.0


class LokrOptions(Config):
    """``lokr``."""

    r: _Rank = Field(default=8, description="Rank of the larger factor.")
    alpha: _Scale = Field(default=8, description="Updates are scaled by alpha / r.")
    decompose_both: bool = Field(default=False, description="Low rank for the smaller factor too.")
    module_dropout: _Dropout = 0.0


class BoftOptions(Config):
    """``boft``."""

    boft_block_size: _Count = Field(default=4, description="Size of the rotated blocks; divides every layer's inputs.")
    boft_n_butterfly_factor: Annotated[Int, Ge(1), Le(8)] = Field(default=1, description="Rotations in a row.")


class OftOptions(Config):
    """``oft``."""

    oft_block_size: _Count = Field(default=32, description="Size of the rotated blocks; divides every layer's inputs.")
    module_dropout: _Dropout = 0.0


class HraOptions(Config):
    """``hra``."""

    r: _Rank = Field(default=8, description="Reflections; an even number starts as the base model.")


class VeraOptions(Config):
    """``vera``."""

    r: _Rank = Field(default=256, description="Rank of the random matrices that all layers share.")
    d_initial: _Scale = 0.1
    vera_dropout: _Dropout = 0.0


class RandloraOptions(Config):
    """``randlora``."""

    r: _Rank = Field(default=32, description="Rank of the random matrices; less means more trained parameters.")
    randlora_alpha: _Scale = 640
    randlora_dropout: _Dropout = 0.0


class VbloraOptions(Config):
    """``vblora``."""

    r: _Rank = 4
    num_vectors: _Count = Field(default=256, description="Vectors in the bank that all layers share.")
    vector_length: _Count = Field(default=64, description="Length of each; divides every layer's inputs and outputs.")
    topk: _Count = 2


class FourierftOptions(Config):
    """``fourierft``."""

    n_frequency: _Count = Field(default=1000, description="Trained coefficients of each layer.")
    scaling: _Scale = 150.0


class MissOptions(Config):
    """``miss``."""

    r: _Rank = Field(default=64, description="Rank.")


class ShiraOptions(Config):
    """``shira``."""

    r: _Rank = Field(default=32, description="As many weights are trained as LoRA of that rank would.")
    random_seed: Annotated[Int, Ge(0), Le(2**31 - 1)] = Field(default=42, description="Of the choice of weights.")


class RoadOptions(Config):
    """``road``."""

    variant: Literal["road_1", "road_2", "road_4"] = "road_1"
    group_size: _Count = 64


class DeloraOptions(Config):
    """``delora``."""

    r: _Rank = 8
    delora_lambda: _Scale = Field(default=15, description="Bound of the update's norm.")
    module_dropout: _Dropout = 0.0


class AdaloraOptions(Config):
    """``adalora``."""

    init_r: _Rank = Field(default=12, description="Rank of every layer at the start.")
    target_r: _Rank = Field(default=8, description="Mean rank at the end; less than init_r.")
    lora_alpha: _Scale = Field(default=16, description="Updates are scaled by lora_alpha / init_r.")
    lora_dropout: _Dropout = 0.0
    tinit: Annotated[Int, Ge(0)] = Field(default=0, description="Steps before ranks begin to fall.")
    tfinal: Annotated[Int, Ge(0)] = Field(default=0, description="Last steps, in which ranks stay as they are.")
    deltaT: Annotated[Int, Ge(1)] = Field(default=1, description="Steps between two allocations of ranks.")
    beta1: Annotated[Float, Gt(0), Lt(1)] = Field(default=0.85, description="Smoothing of the importance.")
    beta2: Annotated[Float, Gt(0), Lt(1)] = Field(default=0.85, description="Smoothing of its uncertainty.")
    orth_reg_weight: Annotated[Float, Ge(0), Le(1000)] = Field(
        default=0.5, description="Weight of the penalty on factors that aren't orthogonal."
    )

    @model_validator(mode="after")
    def _ranks_fall(self) -> AdaloraOptions:
        if self.target_r >= self.init_r:
            raise ValueError(f"target_r is {self.target_r}, and must be less than init_r, which is {self.init_r}")
        return self


class AdapterOptions(Config):
    """``adapter``, under SWIFT's names."""

    adapter_length: Annotated[Int, Ge(1), Le(65536)] = Field(default=128, description="Width of each bottleneck.")
    adapter_act: Literal["gelu", "gelu_new", "quick_gelu", "relu", "leaky_relu", "silu", "swish", "mish", "tanh"] = (
        Field(default="gelu", description="Activation in it, by transformers' name.")
    )


class PromptTuningOptions(Config):
    """``prompt_tuning``."""

    num_virtual_tokens: _VirtualTokens = 20
    prompt_tuning_init: Literal["SAMPLE_VOCAB", "RANDOM"] = Field(
        default="SAMPLE_VOCAB", description="Start as embeddings of tokens of the vocabulary, or as random numbers."
    )


class PrefixTuningOptions(Config):
    """``prefix_tuning``."""

    num_virtual_tokens: _VirtualTokens = 20
    prefix_projection: bool = Field(default=False, description="Train them through a network of two layers.")
    encoder_hidden_size: _Count = Field(default=128, description="Width of that network.")


class PTuningOptions(Config):
    """``p_tuning``."""

    num_virtual_tokens: _VirtualTokens = 20
    encoder_reparameterization_type: Literal["MLP", "LSTM"] = Field(
        default="MLP", description="Network that the tokens are trained through."
    )
    encoder_hidden_size: _Count = Field(default=128, description="Its width.")


class FullOptions(Config):
    """``full``, under SWIFT's names: which weights stay as they are. The later fields go before the earlier ones."""

    freeze_parameters_ratio: Annotated[Float, Ge(0), Lt(1)] = Field(
        default=0.0, description="Share of the model's weights, counted from its input, that stay as they are."
    )
    freeze_parameters: tuple[str, ...] = Field(default=(), description="Beginnings of names that stay as they are.")
    freeze_parameters_regex: _Pattern | None = Field(default=None, description="The same, found by a pattern.")
    trainable_parameters: tuple[str, ...] = Field(default=(), description="Beginnings of names that are trained.")
    trainable_parameters_regex: _Pattern | None = Field(default=None, description="The same, found by a pattern.")


class LisaOptions(Config):
    """``lisa``."""

    activated_layers: _Count = Field(default=2, description="Layers trained at a time, beside embeddings and head.")
    step_interval: _Count = Field(default=20, description="Steps after which others are drawn.")


class BadamOptions(Config):
    """``badam``."""

    switch_interval: _Count = Field(default=50, description="Steps after which the next layer is trained.")
    switch_mode: Literal["ascending", "descending", "random"] = Field(
        default="ascending", description="Which one is next; random takes each once before any comes again."
    )


class LlamaproOptions(Config):
    """``llamapro``."""

    num_new_blocks: _Count = Field(
        default=4, description="Layers that are added, evenly spread; divides the number of the model's own."
    )


class LongloraOptions(Config):
    """``longlora``."""

    factor: Annotated[Float, Gt(1), Le(1024)] = Field(default=4.0, description="How much longer the context becomes.")
    rope_type: Literal["yarn", "linear"] = Field(
        default="yarn",
        description="How positions are stretched: YaRN (arXiv 2309.00071), or evenly (arXiv 2306.15595).",
    )
    r: _Rank = Field(default=16, description="Rank of the LoRA matrices on all linear layers.")
    lora_alpha: _Scale = Field(default=32, description="Their updates are scaled by lora_alpha / r.")
