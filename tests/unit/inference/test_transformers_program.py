"""The command line and environment of the transformers engine's server, and what is said where it can't run. No torch is needed."""

from __future__ import annotations

import importlib.metadata
import os
from pathlib import Path

import pytest
from martlet_core.errors import FailedPrecondition
from martlet_inference.engines.base import WholeModel
from martlet_inference.engines.transformers import (
    TransformersOptions,
    command,
    environment,
    installed_transformers,
)
from martlet_inference.replica import build_engine
from martlet_inference.settings import InferenceSettings


def option(args: list[str], name: str) -> str:
    return args[args.index(name) + 1]


def test_the_command_serves_the_model_under_its_name() -> None:
    model = WholeModel("base-1", Path("/models/base"))
    args = command(TransformersOptions(max_model_len=512, gpu_memory_share=0.35), "cuda", model, Path("/run/x.sock"))
    assert [option(args, name) for name in ("--served-model-name", "--model", "--uds")] == [
        "base-1",
        "/models/base",
        "/run/x.sock",
    ]
    assert [option(args, name) for name in ("--dtype", "--max-model-len", "--gpu-memory-share")] == [
        "auto",
        "512",
        "0.35",
    ]
    assert option(args, "--task") == "causal_lm"
    assert option(command(TransformersOptions(), "cpu", model, Path("s")), "--dtype") == "float32"
    assert option(command(TransformersOptions(dtype="bfloat16"), "cpu", model, Path("s")), "--dtype") == "bfloat16"


def test_our_settings_and_secrets_stay_out_of_the_childs_environment() -> None:
    env = environment(TransformersOptions(threads=3), {"MARTLET_S3_SECRET_KEY": "secret", "PATH": "/bin"})
    assert "secret" not in env.values()
    assert (env["PATH"], env["OMP_NUM_THREADS"], env["HF_HUB_OFFLINE"]) == ("/bin", "3", "1")
    assert environment(TransformersOptions(), {})["OMP_NUM_THREADS"] == str(len(os.sched_getaffinity(0)))


def test_an_environment_without_it_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "peft":
            raise importlib.metadata.PackageNotFoundError(name)
        return "2.13.0+cpu"

    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(FailedPrecondition) as caught:
        installed_transformers()
    assert caught.value.reason == "ENGINE_NOT_INSTALLED"
    assert "peft is not installed" in caught.value.message
    assert "envs/transformers" in caught.value.message


def test_the_device_is_what_torch_was_built_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for torch, device in (("2.13.0+cpu", "cpu"), ("2.13.0", "cuda")):
        versions = {"torch": torch, "peft": "1", "transformers": "5.19.0"}
        monkeypatch.setattr(importlib.metadata, "version", versions.__getitem__)
        assert installed_transformers() == ("5.19.0", device)


def test_arguments_for_vllm_are_refused() -> None:
    with pytest.raises(FailedPrecondition) as caught:
        build_engine(InferenceSettings(engine="transformers", engine_args="--seed 7"))  # pyright: ignore[reportCallIssue]
    assert caught.value.reason == "ENGINE_ARGS_NOT_TAKEN"
    assert "MARTLET_ENGINE_ARGS" in caught.value.message


def test_more_gpus_than_it_computes_on_are_refused() -> None:
    with pytest.raises(FailedPrecondition) as caught:
        build_engine(InferenceSettings(engine="transformers", gpu_count=2))  # pyright: ignore[reportCallIssue]
    assert caught.value.reason == "TOO_MANY_GPUS"
