"""AWQ by AutoAWQ 0.2.9: 4-bit weights in groups with a zero point, scaled by what the activations need."""

# Its libraries are in the environment of its family only.
# pyright: reportMissingImports=false
from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from awq import AutoAWQForCausalLM
from awq.quantize.quantizer import AwqQuantizer
from martlet_core.errors import InvalidArgument

from martlet_quantizer.loading import device, load_tokenizer
from martlet_quantizer.methods.base import Task, Written
from martlet_quantizer.transformers4 import readable_copy

#: A layer's name inside its decoder block.
_IN_BLOCK = re.compile(r".*?\.(?:layers|h|blocks)\.\d+\.(.+)")


class Quantizer(AwqQuantizer):
    """AutoAWQ's quantizer, with a fault worked round, and steps reported.

    On a CPU its search for scales destroys the weights without a word: it keeps ``{name: tensor.cpu()}`` to restore them
    after each try, and ``.cpu()`` of a tensor that is there already copies nothing. Here the search gets copies.
    """

    progress: Any = staticmethod(lambda step, total: None)

    def _compute_best_scale(
        self, x: Any, w_mean: Any, x_mean: Any, module2inspect: Any, *rest: Any, **named: Any
    ) -> Any:
        state_dict = module2inspect.state_dict
        module2inspect.state_dict = lambda *a, **k: {n: t.clone() for n, t in state_dict(*a, **k).items()}
        try:
            return super()._compute_best_scale(x, w_mean, x_mean, module2inspect, *rest, **named)
        finally:
            del module2inspect.state_dict

    def _get_input_feat(self, layer: Any, named_linears: Any) -> Any:
        index = next(i for i, module in enumerate(self.modules) if module is layer)
        type(self).progress(index + 1, len(self.modules))
        return super()._get_input_feat(layer, named_linears)


def quantize(task: Task, quantizer: type[AwqQuantizer] = Quantizer) -> Written:
    """Quantize, and save as AutoAWQ does.

    Args:
        task: see ``Task``.
        quantizer: another class than ours, to show what goes wrong without it.

    Raises:
        InvalidArgument: a layer is to be left alone in some blocks only, which AutoAWQ can't.
    """
    source = readable_copy(task.source, task.scratch / "source")
    if issubclass(quantizer, Quantizer):
        quantizer.progress = staticmethod(task.progress)
    # float32: in half precision its products took 20 times as long on a CPU.
    dtype = torch.float16 if device().type == "cuda" else torch.float32
    model: Any = AutoAWQForCausalLM.from_pretrained(
        str(source), torch_dtype=dtype, trust_remote_code=False, safetensors=True, device_map=None
    )
    spared = _spared_parts(task)
    model.quantize(
        load_tokenizer(source),
        quant_config={
            "w_bit": task.bits,
            "q_group_size": task.group_size,
            "zero_point": True,
            "version": "GEMM",
            "modules_to_not_convert": spared or None,
        },
        calib_data=_equal_windows(task),
        max_calib_seq_len=task.sequence_length,
        max_calib_samples=len(task.windows),
        n_parallel_calib_samples=8,
        apply_clip=False,  # takes many times as long as all the rest on a CPU
        quantizer_cls=quantizer,
    )
    model.model.half()  # else what isn't quantized is stored in 32 bit, which engines refuse
    model.model.config.torch_dtype = torch.float16
    quantized = [name for name, module in model.model.named_modules() if type(module).__name__ == "WQLinear_GEMM"]
    model.save_quantized(str(task.output))
    _tidy_config(task.output)
    return Written(quantized, {"clip": False})


def _equal_windows(task: Task) -> Sequence[Sequence[int]]:
    """The calibration texts; AutoAWQ joins them and cuts the whole into windows of ``sequence_length`` tokens."""
    total = sum(len(window) for window in task.windows)
    rest = total % task.sequence_length
    if total < task.sequence_length:
        raise InvalidArgument.field(
            "spec.calibration.sequence_length",
            f"is {task.sequence_length}, but all calibration texts have {total} tokens together; ask for less, or bring more",
        )
    if rest:
        task.log(
            f"Of {total} calibration tokens the last {rest} fill no window of {task.sequence_length} and aren't used."
        )
    return [list(window) for window in task.windows]


def _spared_parts(task: Task) -> list[str]:
    """Layers to leave alone as AutoAWQ wants them: by their names inside a block, the same in all blocks."""
    spared, kept = (set(map(_inside, names)) for names in (_in_blocks(task.left_alone), _in_blocks(task.layers)))
    if both := sorted(spared & kept):
        raise InvalidArgument.field(
            "spec.options.ignore",
            f"leaves {', '.join(both)} alone in some blocks only; awq leaves a layer alone in all blocks or in none",
        )
    if caught := sorted(name for name in kept for part in spared if part in name):
        raise InvalidArgument.field("spec.options.ignore", f"awq would leave {', '.join(caught)} alone as well")
    return sorted(spared)


def _in_blocks(names: Sequence[str] | Mapping[str, Any]) -> list[str]:
    return [name for name in names if _IN_BLOCK.fullmatch(name)]


def _inside(name: str) -> str:
    match = _IN_BLOCK.fullmatch(name)
    return match[1] if match else name


def _tidy_config(output: Path) -> None:
    """Take this machine's path out of the config."""
    path = output / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config.pop("_name_or_path", None)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
