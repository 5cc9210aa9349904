"""Builds tuners by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from martlet_trainer.tuners.adalora import AdaloraTuner
from martlet_trainer.tuners.base import Tuner, TunerInputs
from martlet_trainer.tuners.blocks import BlocksTuner
from martlet_trainer.tuners.bottleneck import BottleneckTuner
from martlet_trainer.tuners.data_starts import EvaTuner, LoftqTuner, LoraGaTuner
from martlet_trainer.tuners.full import FullTuner
from martlet_trainer.tuners.kinds import KINDS
from martlet_trainer.tuners.llamapro import LlamaproTuner
from martlet_trainer.tuners.longlora import LongloraTuner
from martlet_trainer.tuners.lora import LoraTuner
from martlet_trainer.tuners.other_adapters import OtherAdapter
from martlet_trainer.tuners.shifted_lora import ShiftedLoraTuner
from martlet_trainer.tuners.virtual_tokens import VirtualTokensTuner

_OWN: Mapping[str, Callable[[TunerInputs], Tuner]] = {
    "lora": LoraTuner,
    "qlora": LoraTuner,
    "full": FullTuner,
    "lisa": BlocksTuner,
    "badam": BlocksTuner,
    "llamapro": LlamaproTuner,
    "longlora": LongloraTuner,
    "adalora": AdaloraTuner,
    "adapter": BottleneckTuner,
    **{name: VirtualTokensTuner for name, kind in KINDS.items() if kind.virtual_tokens},
}
#: LoRA with a start of its own, by ``tuner.init_weights``.
_STARTS: Mapping[str, Callable[[TunerInputs], Tuner]] = {
    "pissa": ShiftedLoraTuner,
    "olora": ShiftedLoraTuner,
    "lora_ga": LoraGaTuner,
    "loftq": LoftqTuner,
    "eva": EvaTuner,
}


def build_tuner(inputs: TunerInputs) -> Tuner:
    """The tuner of the config's kind.

    Raises:
        InvalidArgument: the model has no places for it.
        FailedPrecondition: what the training goes on from doesn't fit.
    """
    start = _STARTS.get(inputs.config.tuner.init_weights)
    if start is not None and inputs.adapter is None:
        return start(inputs)
    return _OWN.get(inputs.config.tuner.kind, OtherAdapter)(inputs)
