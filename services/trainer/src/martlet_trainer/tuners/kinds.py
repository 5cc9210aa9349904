"""Kinds of tuners. Those with a ``peft_config`` are peft's: most need nothing of ours but a line here. Imports no ML library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from martlet_core.config import Config

from martlet_trainer.tuners import options


@dataclass(frozen=True)
class TunerKind:
    """What is known of a tuner without its libraries.

    Attributes:
        paper: where it was described.
        peft_config: name of its config in peft; empty for those that aren't peft's, and for LoRA, which has fields of its own.
        options: what ``tuner.options`` may hold, under peft's names.
        rate_factor: default learning rate beside LoRA's, or beside full training's: those with few parameters take larger steps.
        chooses_targets: whether ``tuner.target_modules`` has a meaning; all linear layers by default.
        low_rank: it is LoRA, so that ``lora_*`` fields mean something and engines serve it as an adapter.
        whole_model: the base model's own weights are trained, and the result is a whole model.
        virtual_tokens: tokens in front of each row are trained; packed rows would have none.
        unmergeable: what its adapters are, of which no weights of a base model can hold anything; empty for those that merge.
    """

    paper: str
    peft_config: str = ""
    options: type[Config] = options.NoOptions
    rate_factor: float = 1.0
    chooses_targets: bool = True
    low_rank: bool = False
    whole_model: bool = False
    virtual_tokens: bool = False
    unmergeable: str = ""


_VIRTUAL = "virtual tokens in front of each row"

#: Tuner by name.
KINDS: Mapping[str, TunerKind] = {
    "lora": TunerKind("arXiv 2106.09685", low_rank=True),
    "qlora": TunerKind("arXiv 2305.14314", low_rank=True),
    "full": TunerKind("", options=options.FullOptions, chooses_targets=False, whole_model=True),
    "lisa": TunerKind("arXiv 2403.17919", options=options.LisaOptions, chooses_targets=False, whole_model=True),
    "llamapro": TunerKind(
        "arXiv 2401.02415", options=options.LlamaproOptions, chooses_targets=False, whole_model=True, rate_factor=20
    ),
    "longlora": TunerKind(
        "arXiv 2309.12307", options=options.LongloraOptions, chooses_targets=False, whole_model=True, rate_factor=20
    ),
    "badam": TunerKind("arXiv 2404.02827", options=options.BadamOptions, chooses_targets=False, whole_model=True),
    "adalora": TunerKind("arXiv 2303.10512", "AdaLoraConfig", options.AdaloraOptions, rate_factor=5),
    "loha": TunerKind("arXiv 2108.06098", "LoHaConfig", options.LohaOptions),
    "lokr": TunerKind("arXiv 2309.14859", "LoKrConfig", options.LokrOptions),
    "boft": TunerKind("arXiv 2311.06243", "BOFTConfig", options.BoftOptions),
    "oft": TunerKind("arXiv 2306.07280", "OFTConfig", options.OftOptions),
    "hra": TunerKind("arXiv 2405.17484", "HRAConfig", options.HraOptions),
    "vera": TunerKind("arXiv 2310.11454", "VeraConfig", options.VeraOptions, rate_factor=20),
    "randlora": TunerKind("arXiv 2502.00987", "RandLoraConfig", options.RandloraOptions),
    "vblora": TunerKind("arXiv 2405.15179", "VBLoRAConfig", options.VbloraOptions, rate_factor=10),
    "fourierft": TunerKind("arXiv 2405.03003", "FourierFTConfig", options.FourierftOptions, rate_factor=15),
    "miss": TunerKind("arXiv 2409.15371", "MissConfig", options.MissOptions),
    "shira": TunerKind("arXiv 2406.13175", "ShiraConfig", options.ShiraOptions),
    "road": TunerKind("arXiv 2409.00119", "RoadConfig", options.RoadOptions, rate_factor=10),
    "delora": TunerKind("arXiv 2503.18225", "DeloraConfig", options.DeloraOptions, rate_factor=5),
    "ia3": TunerKind("arXiv 2205.05638", "IA3Config", rate_factor=20),
    "ln_tuning": TunerKind("arXiv 2312.11420", "LNTuningConfig", rate_factor=5),
    "adapter": TunerKind(
        "arXiv 1902.00751",
        options=options.AdapterOptions,
        rate_factor=5,
        chooses_targets=False,
        unmergeable="maps with an activation between them",
    ),
    "prompt_tuning": TunerKind(
        "arXiv 2104.08691",
        "PromptTuningConfig",
        options.PromptTuningOptions,
        rate_factor=100,
        chooses_targets=False,
        virtual_tokens=True,
        unmergeable=_VIRTUAL,
    ),
    "prefix_tuning": TunerKind(
        "arXiv 2101.00190",
        "PrefixTuningConfig",
        options.PrefixTuningOptions,
        rate_factor=50,
        chooses_targets=False,
        virtual_tokens=True,
        unmergeable=_VIRTUAL,
    ),
    "p_tuning": TunerKind(
        "arXiv 2103.10385",
        "PromptEncoderConfig",
        options.PTuningOptions,
        rate_factor=5,
        chooses_targets=False,
        virtual_tokens=True,
        unmergeable=_VIRTUAL,
    ),
}
