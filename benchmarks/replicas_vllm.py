"""vLLM in this process as a replica starts it, in the environment of inference: its arguments, its environment, its plugins."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from martlet_inference.engines.base import WholeModel
from martlet_inference.engines.vllm_process import VllmOptions, command, environment

OPTIONS = VllmOptions(device="cpu")
#: Few blocks: a gigabyte of cache costs more time than all that is asked of a tiny model.
SMALL = replace(OPTIONS, extra_args="--num-gpu-blocks-override 256")


def import_vllm() -> None:
    """Import it now, and not in each fork; set its environment before."""
    os.environ.update(environment(OPTIONS, os.environ))
    import vllm
    import vllm.entrypoints.launchers.cli_args
    import vllm.v1.worker.cpu_model_runner  # noqa: F401

    _parser()


@cache
def _parser() -> Any:
    """The server's own; making it takes seconds."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    return make_arg_parser(FlexibleArgumentParser())


def start(model: WholeModel, options: VllmOptions = SMALL) -> Any:
    """An engine (``vllm.LLM``) of a model. The server's arguments are read by the server's own parser."""
    from vllm import LLM, EngineArgs

    line = command(options, model, Path("unused"))[3:]
    return LLM.from_engine_args(EngineArgs.from_cli_args(_parser().parse_args(line)))
