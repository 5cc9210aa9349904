"""Adapters of peft that are nothing but their config: the lines of ``kinds.KINDS`` with a ``peft_config``."""

from __future__ import annotations

from typing import Any

import peft
from peft import PeftConfig

from martlet_trainer.config import parse_tuner_options
from martlet_trainer.training.models import load_model
from martlet_trainer.tuners.base import TunerInputs
from martlet_trainer.tuners.peft_tuner import PeftTuner, places

#: Kinds whose places in a model peft knows by the model's type; all linear layers would be the wrong ones.
_PLACED_BY_PEFT = ("ia3", "ln_tuning")


class OtherAdapter(PeftTuner):
    """Trains what its kind says."""

    def __init__(self, inputs: TunerInputs) -> None:
        self._kind = inputs.config.tuner.kind
        self._options = parse_tuner_options(inputs.config.tuner).model_dump()
        super().__init__(inputs)

    def _load_base(self, inputs: TunerInputs) -> Any:
        return load_model(inputs.base_model, inputs.placement.dtype, inputs.placement.device, head=inputs.head)

    def _adapter_config(self, inputs: TunerInputs) -> PeftConfig:
        tuner, found = inputs.config.tuner, places(inputs)
        return getattr(peft, tuner.facts.peft_config)(
            **({} if self._kind in _PLACED_BY_PEFT and found["target_modules"] == "all-linear" else found),
            modules_to_save=list(tuner.modules_to_save) or None,
            **self._options,
        )

    def metadata(self) -> dict[str, Any]:
        """Base model, kind and options."""
        return {**super().metadata(), "tuner": self._kind, "options": self._options}
