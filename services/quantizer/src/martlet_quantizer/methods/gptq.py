"""GPTQ by GPTQModel: weights in groups, each column rounded so that the layer's output on the calibration texts stays."""

# Its libraries are in the environment of its family only.
# pyright: reportMissingImports=false
from __future__ import annotations

import re
from typing import Any

from martlet_quantizer.gptq_environment import prepare

prepare()  # before gptqmodel is imported

from gptqmodel import GPTQModel, QuantizeConfig  # noqa: E402

from martlet_quantizer.loading import device  # noqa: E402
from martlet_quantizer.methods.base import Task, Written  # noqa: E402

#: Share of the mean diagonal that is added to the Hessian; see ``w4a16``.
_DAMPENING = 0.1


def quantize(task: Task) -> Written:
    """Quantize, and save in the GPTQ format."""
    config = QuantizeConfig(
        bits=task.bits,
        group_size=task.group_size,
        sym=task.symmetric,
        damp_percent=_DAMPENING,
        mse=2.4,
        device=str(device()),
        dynamic={f"-:^{re.escape(name)}$": {} for name in task.left_alone} or None,
    )
    model: Any = GPTQModel.load(str(task.source), config, trust_remote_code=False)
    model.quantize(
        [{"input_ids": list(window), "attention_mask": [1] * len(window)} for window in task.windows],
        batch_size=1,
        calibration_data_min_length=1,
    )
    model.save(str(task.output))
    return Written(list(task.layers))
