"""Which weights are trained, and how: one file a tuner, one line a name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from martlet_trainer.tuners.base import Tuner, TunerInputs
from martlet_trainer.tuners.full import FullTuner
from martlet_trainer.tuners.lora import LoraTuner

#: ``TunerConfig.kind`` -> what builds it.
TUNERS: Mapping[str, Callable[[TunerInputs], Tuner]] = {"lora": LoraTuner, "qlora": LoraTuner, "full": FullTuner}
