"""What vLLM loads of ours into its own processes (entry point ``vllm.general_plugins``). No import of vLLM at the top."""

from __future__ import annotations


def register() -> None:
    """On a CPU, compute LoRA adapter by adapter (see ``vllm_grouped_lora``). vLLM may call this more than once."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        from vllm.platforms.cpu import CpuPlatform

        CpuPlatform.get_punica_wrapper = classmethod(_grouped_lora)  # pyright: ignore[reportAttributeAccessIssue]


def _grouped_lora(cls: type) -> str:
    return "martlet_inference.engines.vllm_grouped_lora.GroupedLora"
