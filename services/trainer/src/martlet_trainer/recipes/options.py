"""Options that only one recipe knows (``recipe_options``); a key that isn't here is refused. Imports no ML library."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le
from martlet_core.config import Config, Float
from pydantic import Field

#: Width of the loss's slope, or weight of what it adds.
_Positive = Annotated[Float, Gt(0), Le(1000)]
_Weight = Annotated[Float, Ge(0), Le(1000)]


class SftOptions(Config):
    """``sft``: none."""


class PretrainOptions(Config):
    """``pretrain``: none."""


class DpoOptions(Config):
    """``dpo`` (arXiv 2305.18290)."""

    beta: _Positive = Field(
        default=0.1, description="How far the model may move from where it starts; less moves it further."
    )
    loss: Literal["sigmoid", "hinge", "ipo"] = Field(
        default="sigmoid", description="sigmoid (DPO), hinge (SLiC, arXiv 2305.10425) or ipo (arXiv 2310.12036)."
    )
    label_smoothing: Annotated[Float, Ge(0), Le(0.49)] = Field(
        default=0.0, description="Share of pairs that are believed to be the wrong way round; sigmoid only."
    )
    sft_weight: _Weight = Field(
        default=0.0, description="Weight of the chosen answer's own loss, for each token (RPO, arXiv 2404.19733)."
    )


class OrpoOptions(Config):
    """``orpo`` (arXiv 2403.07691)."""

    beta: _Positive = Field(default=0.1, description="Weight of the odds ratio beside the chosen answer's own loss.")


class CpoOptions(Config):
    """``cpo`` (arXiv 2401.08417)."""

    beta: _Positive = Field(default=0.1, description="As of dpo.")
    sft_weight: _Weight = Field(default=1.0, description="Weight of the chosen answer's own loss, for each token.")


class SimpoOptions(Config):
    """``simpo`` (arXiv 2405.14734)."""

    beta: _Positive = Field(default=2.0, description="Scale of the mean log-probability of an answer's tokens.")
    margin: _Weight = Field(
        default=1.0, description="By how much the chosen answer is to be ahead (the paper's gamma)."
    )
    sft_weight: _Weight = Field(default=0.0, description="Weight of the chosen answer's own loss (CPO-SimPO).")


class KtoOptions(Config):
    """``kto`` (arXiv 2402.01306)."""

    beta: _Positive = Field(default=0.1, description="As of dpo.")
    desirable_weight: _Positive = Field(default=1.0, description="Weight of good answers.")
    undesirable_weight: _Positive = Field(default=1.0, description="Weight of bad answers.")
