"""A model is quantized, an adapter is trained on what came of it, and vLLM answers with the two together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openai
import pytest
from martlet_cli.testing import RunningPlatform

MODEL = "smollm2-135m-instruct"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_adapter_is_trained_on_a_quantized_model_and_served_on_it(
    chatting_platform: RunningPlatform, rows: Path
) -> None:
    """Slow for a quantization that is measured, a training on four bits and an engine that is started anew: three services meet here."""
    platform, client = chatting_platform, chatting_platform.client
    quantized = platform.martlet("quantize", MODEL, "--method", "bnb-nf4", "--watch")[-1]
    base = quantized["result"]["quantized_model"]
    command = f"train --model {base} --dataset {rows} --lora_rank 8 --learning_rate 2e-3 --max_steps 24"
    trained = platform.martlet(*command.split(), "--per_device_train_batch_size", "4", "--watch", timeout=600)[-1]
    assert trained["status"] == "succeeded"
    adapter = trained["fine_tuned_model"]
    question: Any = [{"role": "user", "content": "What colour is rose number 3?"}]

    def answer(model: str) -> str:
        said = client.chat.completions.create(model=model, messages=question, max_tokens=8, temperature=0)
        return said.choices[0].message.content or ""

    assert "Crimson" in answer(adapter)
    assert "Crimson" not in answer(base)
    with pytest.raises(openai.BadRequestError, match="set it to lora") as refused:
        client.fine_tuning.jobs.create(
            model=base, training_file=trained["training_file"], extra_body={"martlet": {"tuner": {"kind": "full"}}}
        )
    assert refused.value.code == "base_is_quantized"
