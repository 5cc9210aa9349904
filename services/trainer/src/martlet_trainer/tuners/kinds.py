"""Kinds of tuners, and the options that only one of them knows (``tuner.options``). Imports no ML library.

Those with a ``peft_config`` are peft's, and need nothing of ours but a line here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le
from martlet_core.config import Config, Float, Int
from pydantic import Field

_Rank = Annotated[Int, Ge(1), Le(4096)]
_Count = Annotated[Int, Ge(1), Le(1 << 20)]
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


@dataclass(frozen=True)
class TunerKind:
    """What is known of a tuner without its libraries.

    Attributes:
        paper: where it was described.
        peft_config: name of its config in peft; empty for those with a file of their own.
        options: what ``tuner.options`` may hold, under peft's names.
        rate_factor: default learning rate beside LoRA's: those with few parameters take larger steps.
        chooses_targets: whether ``tuner.target_modules`` has a meaning; all linear layers by default.
        low_rank: it is LoRA, so that ``lora_*`` fields mean something and engines serve it as an adapter.
    """

    paper: str
    peft_config: str = ""
    options: type[Config] = NoOptions
    rate_factor: float = 1.0
    chooses_targets: bool = True
    low_rank: bool = False


#: Tuner by name.
KINDS: Mapping[str, TunerKind] = {
    "lora": TunerKind("arXiv 2106.09685", low_rank=True),
    "qlora": TunerKind("arXiv 2305.14314", low_rank=True),
    "full": TunerKind("", chooses_targets=False),
    "loha": TunerKind("arXiv 2108.06098", "LoHaConfig", LohaOptions),
    "lokr": TunerKind("arXiv 2309.14859", "LoKrConfig", LokrOptions),
    "boft": TunerKind("arXiv 2311.06243", "BOFTConfig", BoftOptions),
    "oft": TunerKind("arXiv 2306.07280", "OFTConfig", OftOptions),
    "hra": TunerKind("arXiv 2405.17484", "HRAConfig", HraOptions),
    "vera": TunerKind("arXiv 2310.11454", "VeraConfig", VeraOptions, rate_factor=20),
    "randlora": TunerKind("arXiv 2502.00987", "RandLoraConfig", RandloraOptions),
    "vblora": TunerKind("arXiv 2405.15179", "VBLoRAConfig", VbloraOptions, rate_factor=10),
    "fourierft": TunerKind("arXiv 2405.03003", "FourierFTConfig", FourierftOptions, rate_factor=15),
    "miss": TunerKind("arXiv 2409.15371", "MissConfig", MissOptions),
    "shira": TunerKind("arXiv 2406.13175", "ShiraConfig", ShiraOptions),
    "road": TunerKind("arXiv 2409.00119", "RoadConfig", RoadOptions, rate_factor=10),
    "delora": TunerKind("arXiv 2503.18225", "DeloraConfig", DeloraOptions, rate_factor=5),
    "ia3": TunerKind("arXiv 2205.05638", "IA3Config", rate_factor=20),
    "ln_tuning": TunerKind("arXiv 2312.11420", "LNTuningConfig", rate_factor=5),
}
