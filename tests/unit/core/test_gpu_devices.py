"""Which GPUs a process may use: what the driver says, what the settings allow, what CUDA is told."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest
from martlet_core import gpu_devices
from martlet_core.errors import FailedPrecondition
from martlet_core.gpu_devices import Gpu, GpuMachine, find_machine, parse_nvidia_smi
from martlet_core.gpu_memory import limit_memory
from martlet_core.gpu_settings import GpuSettings
from pydantic import ValidationError

UUIDS = ("GPU-11111111-aaaa-4000-8000-000000000001", "GPU-22222222-bbbb-4000-8000-000000000002")


def settings(**values: object) -> GpuSettings:
    return GpuSettings(**values)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def no_hardware(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without GPUs, whatever this one has; returns a directory that programs are looked for in."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setattr(gpu_devices, "_PROC_GPUS", tmp_path / "proc")
    for name in ("CUDA_VISIBLE_DEVICES", "MARTLET_GPUS", "MARTLET_GPU_HOST", "MARTLET_GPU_MEMORY_SHARE"):
        monkeypatch.delenv(name, raising=False)
    return programs


@pytest.fixture
def two_gpus(no_hardware: Path) -> None:
    """A stand-in for nvidia-smi that tells of two GPUs."""
    _program(no_hardware, "".join(f"echo '{index}, {uuid}'\n" for index, uuid in enumerate(UUIDS)))


def _program(folder: Path, text: str) -> None:
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{text}")
    path.chmod(0o755)


def test_without_a_driver_no_leases_are_taken() -> None:
    assert find_machine(settings(), {}) is None


def test_gpus_are_known_by_their_uuids(two_gpus: None) -> None:
    machine = find_machine(settings(gpu_host="gpu1"), {})
    assert machine
    assert machine.gpus == (Gpu(0, UUIDS[0]), Gpu(1, UUIDS[1]))
    assert machine.names == {UUIDS[0]: "GPU 0 of gpu1", UUIDS[1]: "GPU 1 of gpu1"}
    assert machine.id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def test_the_settings_choose_among_them(two_gpus: None) -> None:
    machine = find_machine(settings(gpus="1"), {})
    assert machine
    assert (machine.ids, machine.seen) == ((UUIDS[1],), 2)
    assert find_machine(settings(gpus="none"), {}) is None
    with pytest.raises(FailedPrecondition, match="there is no GPU 3 here; this process sees 0, 1"):
        find_machine(settings(gpus="1,3"), {})


@pytest.mark.parametrize(
    ("visible", "ids"), [("1", UUIDS[1:]), ("GPU-1111", UUIDS[:1]), ("1,0", UUIDS), ("", None), ("-1", None)]
)
def test_what_cuda_may_not_see_is_not_used(two_gpus: None, visible: str, ids: tuple[str, ...] | None) -> None:
    machine = find_machine(settings(), {"CUDA_VISIBLE_DEVICES": visible})
    assert (machine.ids if machine else None) == ids


def test_without_nvidia_smi_the_drivers_own_files_are_read(tmp_path: Path) -> None:
    for address, uuid in (("0000:65:00.0", UUIDS[1]), ("0000:17:00.0", UUIDS[0])):
        folder = tmp_path / "proc" / address
        folder.mkdir(parents=True)
        (folder / "information").write_text(f"Model: \t\t NVIDIA\nGPU UUID: \t {uuid}\nBus Location: \t {address}\n")
    machine = find_machine(settings(), {})
    assert machine
    assert machine.gpus == (Gpu(0, UUIDS[0]), Gpu(1, UUIDS[1])), "in the order of the bus"
    (tmp_path / "proc" / "0000:65:00.0" / "information").write_text("GPU UUID: \t GPU-????????-????-????\n")
    with pytest.raises(FailedPrecondition, match="Run nvidia-smi"):
        find_machine(settings(), {})


def test_a_driver_that_fails_is_not_taken_for_none(no_hardware: Path, tmp_path: Path) -> None:
    _program(no_hardware, "echo 'Driver/library version mismatch' >&2; exit 18\n")
    assert find_machine(settings(), {}) is None, "an image that brings the program along, on a machine without a GPU"
    (tmp_path / "proc" / "0000:17:00.0").mkdir(parents=True)
    with pytest.raises(FailedPrecondition, match="Driver/library version mismatch"):
        find_machine(settings(), {})


def test_a_torch_for_cpus_uses_no_gpu(two_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.13.0+cpu" if name == "torch" else "1")
    assert find_machine(settings(), {}) is None
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.13.0" if name == "torch" else "1")
    assert find_machine(settings(), {})


def test_simulated_gpus_need_no_driver() -> None:
    machine = find_machine(settings(gpus="simulated:2", gpu_host="here"), {})
    assert machine
    assert machine.simulated
    assert machine.ids == ("here/simulated-0", "here/simulated-1")


@pytest.mark.parametrize("text", ["", "all", "simulated", "simulated:0", "1,", "0;1"])
def test_other_words_are_refused(text: str) -> None:
    with pytest.raises(ValidationError, match="must be auto, none"):
        settings(gpus=text)


def test_a_process_sees_its_gpus_alone() -> None:
    machine = GpuMachine("gpu1", "m", (Gpu(0, "a"), Gpu(2, "b"), Gpu(3, "c")), 4)
    assert machine.environment(("c", "a"), 1.0) == {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": "0,3",
        "MARTLET_GPU_MEMORY_SHARE": "0.95",
    }


def test_shares_by_the_number_of_gpus_and_the_settings() -> None:
    def shares(count: int, **values: float) -> tuple[float, float]:
        chosen = settings(**values)
        return chosen.replica_share(count), chosen.job_share(count)

    assert shares(1) == (0.35, 0.65)
    assert shares(2) == (1.0, 1.0)
    assert shares(8, gpu_share=0.35) == (0.35, 0.65)
    assert shares(1, gpu_share=0.25, gpu_job_share=0.5) == (0.25, 0.5)
    assert shares(1, gpu_share=1.0) == (1.0, 1.0)


def test_a_process_keeps_to_its_share_of_its_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    class Cuda:
        def __init__(self) -> None:
            self.calls: list[tuple[float, int]] = []
            self.there = True

        def is_available(self) -> bool:
            return self.there

        def set_per_process_memory_fraction(self, fraction: float, device: int) -> None:
            self.calls.append((fraction, device))

    cuda = Cuda()
    assert limit_memory(cuda) is None
    monkeypatch.setenv("MARTLET_GPU_MEMORY_SHARE", "0.6")
    assert limit_memory(cuda, 1) == 0.6
    assert cuda.calls == [(0.6, 1)]
    cuda.there = False
    assert limit_memory(cuda) is None


def test_the_table_of_nvidia_smi() -> None:
    assert parse_nvidia_smi("0, GPU-a\n1, GPU-b\n\n") == [Gpu(0, "GPU-a"), Gpu(1, "GPU-b")]
