"""The command line, environment and end of the vLLM child; what it says and how it is read. No vLLM is needed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop
from martlet_inference.engines.base import EngineLoad, WholeModel
from martlet_inference.engines.server import parse_metrics
from martlet_inference.engines.server_process import ServerProcess, spawn
from martlet_inference.engines.vllm_process import VllmOptions, command, environment
from martlet_inference.model_use import use_of
from martlet_inference.testing import wait_until

CPU = VllmOptions("cpu")


@pytest.fixture
def model(tmp_path: Path) -> WholeModel:
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": 1024}))
    return WholeModel("base-1", tmp_path)


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    return tmp_path / "config.json"


def option(args: list[str], name: str) -> str:
    return args[args.index(name) + 1]


def test_the_command_serves_the_model_under_its_name(model: WholeModel) -> None:
    args = command(CPU, model, Path("/run/x.sock"))
    assert option(args, "--served-model-name") == "base-1"
    assert option(args, "--model") == str(model.directory)
    assert option(args, "--uds") == "/run/x.sock"


def test_a_context_longer_than_the_models_own_is_cut_to_it(model: WholeModel) -> None:
    assert option(command(CPU, model, Path("s")), "--max-model-len") == "1024"
    short = VllmOptions("cpu", max_model_len=512)
    assert option(command(short, model, Path("s")), "--max-model-len") == "512"


@pytest.mark.parametrize("config", [{"n_positions": 256}, {"text_config": {"max_position_embeddings": 256}}])
def test_a_models_own_context_has_other_names_too(model: WholeModel, config_file: Path, config: dict[str, Any]) -> None:
    config_file.write_text(json.dumps(config))
    assert option(command(CPU, model, Path("s")), "--max-model-len") == "256"


def test_float32_on_a_cpu_but_not_for_quantized_weights_or_gpus(model: WholeModel, config_file: Path) -> None:
    assert option(command(CPU, model, Path("s")), "--dtype") == "float32"
    assert option(command(VllmOptions("cuda"), model, Path("s")), "--dtype") == "auto"
    assert option(command(VllmOptions("cpu", dtype="bfloat16"), model, Path("s")), "--dtype") == "bfloat16"
    config_file.write_text(json.dumps({"quantization_config": {}}))
    assert option(command(CPU, model, Path("s")), "--dtype") == "auto"


def test_remote_code_stays_off_and_further_arguments_come_last(model: WholeModel) -> None:
    args = command(VllmOptions("cuda", extra_args="--seed 7"), model, Path("s"))
    assert "--trust-remote-code" not in args
    assert args[-2:] == ["--seed", "7"]


def test_without_adapters_lora_is_off(model: WholeModel) -> None:
    assert "--enable-lora" not in command(VllmOptions("cpu", max_lora_rank=0), model, Path("s"))
    args = command(VllmOptions("cpu", max_lora_rank=16, max_adapters=3), model, Path("s"))
    assert option(args, "--max-lora-rank") == "16"
    assert option(args, "--max-cpu-loras") == "3"


@pytest.mark.parametrize(
    "config", [{"architectures": ["BertModel"]}, {"architectures": ["LlamaForSequenceClassification"], "num_labels": 1}]
)
def test_a_model_that_generates_nothing_is_run_for_pooling(tmp_path: Path, config: dict[str, Any]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    args = command(CPU, WholeModel("m", tmp_path, use_of(tmp_path)), Path("s"))
    assert option(args, "--runner") == "pooling"
    assert not {"--enable-lora", "--enable-auto-tool-choice"} & set(args)


def test_vectors_are_pooled_as_the_directory_says_else_by_the_mean(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["BertModel"], "max_position_embeddings": 512}))
    args = command(CPU, WholeModel("m", tmp_path, use_of(tmp_path)), Path("s"))
    assert json.loads(option(args, "--pooler-config")) == {"seq_pooling_type": "MEAN", "use_activation": True}
    assert option(args, "--max-model-len") == "512"
    pooling = {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}
    (tmp_path / "modules.json").write_text(json.dumps([pooling]))
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling/config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    (tmp_path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 256}))
    args = command(CPU, WholeModel("m", tmp_path, use_of(tmp_path)), Path("s"))
    assert "--pooler-config" not in args, "vLLM reads modules.json itself"
    assert option(args, "--max-model-len") == "256"


def test_a_gpu_is_shared_as_told_and_several_are_used_together(model: WholeModel) -> None:
    args = command(VllmOptions("cuda", gpu_memory_share=0.35), model, Path("s"))
    assert option(args, "--gpu-memory-utilization") == "0.35"
    assert "--tensor-parallel-size" not in args
    args = command(VllmOptions("cuda", gpu_count=2), model, Path("s"))
    assert option(args, "--tensor-parallel-size") == "2"


def test_our_settings_and_secrets_stay_out_of_the_childs_environment() -> None:
    env = environment(CPU, {"MARTLET_S3_SECRET_KEY": "secret", "PATH": "/bin", "PYTHONDONTWRITEBYTECODE": "1"})
    assert "secret" not in env.values()
    assert env["PATH"] == "/bin"
    assert env["HF_HUB_OFFLINE"] == "1"
    assert "PYTHONDONTWRITEBYTECODE" not in env


def test_threads_are_those_of_the_setting_else_of_the_environment_else_one_a_core() -> None:
    cores = str(len(os.sched_getaffinity(0)))
    asked = (environment(VllmOptions("cpu", threads=number), {"OMP_NUM_THREADS": "5"}) for number in (3, 0))
    assert [env["OMP_NUM_THREADS"] for env in asked] == ["3", "5"]
    assert environment(CPU, {})["OMP_NUM_THREADS"] == cores
    assert environment(CPU, {"OMP_NUM_THREADS": "4,2"})["OMP_NUM_THREADS"] == cores


def test_metrics_are_read_from_the_prometheus_page() -> None:
    page = b"""# HELP vllm:num_requests_waiting Number of requests waiting.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="m"} 3.0
vllm:num_requests_waiting_by_reason{engine="0",reason="x"} 9.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
"""
    assert parse_metrics(page) == EngineLoad(3, 0.25)
    assert parse_metrics(b"") == EngineLoad(0, 0.0)


class Child(ServerProcess):
    """Any program in the place of the server."""

    @classmethod
    async def run(cls, code: str, directory: Path) -> Child:
        return cls(*await spawn([sys.executable, "-uc", code], os.environ), directory)


def alive(pid: int) -> bool:
    """Whether a process runs (one that ended and was not reaped does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_the_pipe_of_an_ended_server_is_closed_once(factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """uvloop closes a descriptor, and then the object that held it: another thread's file may have its number by then."""

    async def drive() -> None:
        process, output = await spawn([sys.executable, "-c", ""], dict(os.environ))
        await process.wait()
        pipe = output.transport.get_extra_info("pipe")
        output.transport.close()
        await wait_until(lambda: not _is_open(pipe.fileno()))
        another = os.open(os.devnull, os.O_RDONLY)
        if another != pipe.fileno():
            os.dup2(another, pipe.fileno())
            os.close(another)
        pipe.close()
        assert _is_open(pipe.fileno())
        os.close(pipe.fileno())

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(drive())


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


async def test_stopping_ends_the_whole_group_even_what_ignores_the_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("martlet_inference.engines.server_process.STOP_SECONDS", 0.2)
    ignore = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready'); time.sleep(60)"
    code = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-uc', {ignore!r}]); print(p.pid); p.wait()"
    child = await Child.run(code, tmp_path / "d")
    await wait_until(lambda: len(child.last_lines()) >= 2)
    grandchild = int(next(line for line in child.last_lines() if line.isdigit()))
    await child.stop()
    assert not child.running
    await wait_until(lambda: not alive(grandchild))


async def test_its_death_is_noticed_though_its_children_live_and_hold_its_output(tmp_path: Path) -> None:
    sleep = "import time; time.sleep(60)"
    code = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {sleep!r}]); print(p.pid); p.wait()"
    child = await Child.run(code, tmp_path / "d")
    await wait_until(lambda: child.last_lines())
    grandchild = int(child.last_lines()[0])
    os.kill(child.pid, signal.SIGKILL)
    assert await asyncio.wait_for(child.wait(), 5) == -signal.SIGKILL
    assert alive(grandchild)
    await child.stop()
    await wait_until(lambda: not alive(grandchild))


async def test_the_end_is_explained_by_its_own_words(tmp_path: Path) -> None:
    code = "print('starting'); raise ValueError('User-specified max_model_len is too large')"
    child = await Child.run(code, tmp_path / "d")
    assert await child.wait() == 1
    await child.stop()
    assert child.explain_end() == "ValueError: User-specified max_model_len is too large"


async def test_the_child_ends_when_its_parent_is_killed() -> None:
    """Neither a replica killed by SIGKILL nor its engine may live on: the kernel tells the child."""
    code = (
        "import os, subprocess, sys, time\n"
        "p = subprocess.Popen([sys.executable, '-m', 'martlet_inference.engines.exec_child', str(os.getpid()),"
        " sys.executable, '-uc', 'print(0); import time; time.sleep(60)'], stdout=subprocess.PIPE)\n"
        "p.stdout.readline()\n"  # the command runs: the signal was asked for before
        "print(p.pid); time.sleep(60)"
    )
    parent = await asyncio.create_subprocess_exec(sys.executable, "-uc", code, stdout=asyncio.subprocess.PIPE)
    assert parent.stdout
    child = int(await asyncio.wait_for(parent.stdout.readline(), 20))
    assert alive(child)
    os.kill(parent.pid, signal.SIGKILL)
    await parent.wait()
    await wait_until(lambda: not alive(child))
