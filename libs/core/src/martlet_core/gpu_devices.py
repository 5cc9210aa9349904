"""The GPUs of this machine as far as this process sees them, found without torch.

A GPU is known by its UUID: containers count the GPUs that they see from 0, each for itself. Leases of a machine are kept under
the kernel's boot id, which all its containers share.
"""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import socket
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from martlet_core.errors import FailedPrecondition
from martlet_core.gpu_settings import GpuSettings
from martlet_core.gpus import MEMORY_SHARE, VISIBLE

#: Part of a GPU that a process takes beside what its libraries count: CUDA's context, kernels, cuBLAS.
CONTEXT_SHARE = 0.05
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_PROC_GPUS = Path("/proc/driver/nvidia/gpus")
_QUERY = ("--query-gpu=index,uuid", "--format=csv,noheader")
_QUERY_SECONDS = 60.0
_UUID = re.compile(r"GPU-[0-9a-fA-F-]+")


@dataclass(frozen=True)
class Gpu:
    """A GPU.

    Attributes:
        index: its number in this process, in the order of the PCI bus.
        id: what all processes of the machine call it.
    """

    index: int
    id: str


@dataclass(frozen=True)
class GpuMachine:
    """What a process may use of its machine's GPUs.

    Attributes:
        name: of the machine, for people.
        id: of the machine: what its leases are kept under.
        gpus: those that the process may use.
        seen: how many it sees, those included that it may not use.
        simulated: whether they are made up.
    """

    name: str
    id: str
    gpus: tuple[Gpu, ...]
    seen: int
    simulated: bool = False

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of the GPUs that may be used."""
        return tuple(gpu.id for gpu in self.gpus)

    @property
    def names(self) -> dict[str, str]:
        """What people call the GPUs, by id."""
        return {gpu.id: f"GPU {gpu.index} of {self.name}" for gpu in self.gpus}

    def environment(self, ids: Iterable[str], share: float) -> dict[str, str]:
        """Variables that make a process see these GPUs alone; to be set before it imports torch."""
        wanted = set(ids)
        return {
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # CUDA's own order begins with the fastest one
            VISIBLE: ",".join(str(gpu.index) for gpu in self.gpus if gpu.id in wanted),
            MEMORY_SHARE: f"{max(CONTEXT_SHARE, share - CONTEXT_SHARE):g}",
        }


def find_machine(settings: GpuSettings, environ: Mapping[str, str]) -> GpuMachine | None:
    """The GPUs that this process may use; None if it uses none or is to take no leases.

    Raises:
        FailedPrecondition: the settings name a GPU that isn't there, or the driver doesn't say which GPUs there are.
    """
    if settings.gpus == "none" or (settings.gpus == "auto" and _has_torch_for_cpus()):
        return None
    name = settings.gpu_host or socket.gethostname()
    if settings.gpus.startswith("simulated:"):
        count = int(settings.gpus.removeprefix("simulated:"))
        gpus = tuple(Gpu(index, f"{name}/simulated-{index}") for index in range(count))
        return GpuMachine(name, _machine_id(), gpus, count, simulated=True)
    seen = _ask_nvidia_smi() or _ask_proc()
    allowed = _allowed_by_cuda(seen, environ.get(VISIBLE))
    if settings.gpus != "auto":
        wanted = [int(number) for number in settings.gpus.split(",")]
        missing = sorted(set(wanted) - {gpu.index for gpu in allowed})
        if missing:
            raise FailedPrecondition(
                f"MARTLET_GPUS: there is no GPU {', '.join(map(str, missing))} here; this process sees "
                f"{', '.join(str(gpu.index) for gpu in allowed) or 'none'}.",
                reason="NO_GPU",
            )
        allowed = [gpu for gpu in allowed if gpu.index in wanted]
    return GpuMachine(name, _machine_id(), tuple(allowed), len(seen)) if allowed else None


def parse_nvidia_smi(text: str) -> list[Gpu]:
    """The GPUs of a table with the columns index and uuid."""
    rows = [line.split(",") for line in text.splitlines() if line.strip()]
    return [Gpu(int(index), uuid.strip()) for index, uuid in rows]


def _ask_nvidia_smi() -> list[Gpu]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        done = subprocess.run([program, *_QUERY], capture_output=True, text=True, timeout=_QUERY_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _driver_is_silent(str(error)) from error
    if done.returncode == 0:
        return parse_nvidia_smi(done.stdout)
    if not _proc_folders():
        return []  # the program without a driver: an image that brings it along
    raise _driver_is_silent((done.stderr or done.stdout).strip())


def _ask_proc() -> list[Gpu]:
    """What the driver says of itself, where nvidia-smi isn't at hand."""
    gpus = []
    for index, folder in enumerate(_proc_folders()):  # their names are PCI addresses
        text = (folder / "information").read_text()
        uuid = _UUID.search(text)
        if uuid is None:  # a GPU that nobody has used since the start has no UUID here yet
            raise _driver_is_silent(f"{folder / 'information'} has no UUID")
        gpus.append(Gpu(index, uuid.group()))
    return gpus


def _proc_folders() -> Sequence[Path]:
    return sorted(_PROC_GPUS.iterdir()) if _PROC_GPUS.is_dir() else []


def _driver_is_silent(detail: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"The NVIDIA driver doesn't say which GPUs there are ({detail}). Run nvidia-smi on the machine, and set "
        "MARTLET_GPUS=none to go on without leases.",
        reason="NO_GPU",
    )


def _allowed_by_cuda(seen: Sequence[Gpu], visible: str | None) -> list[Gpu]:
    """Those that a ``CUDA_VISIBLE_DEVICES`` of the process itself leaves: numbers, or (beginnings of) UUIDs."""
    if visible is None:
        return list(seen)
    words = [word.strip() for word in visible.split(",") if word.strip()]
    return [
        gpu
        for gpu in seen
        if any(word == str(gpu.index) or (word.startswith("GPU-") and gpu.id.startswith(word)) for word in words)
    ]


def _has_torch_for_cpus() -> bool:
    """Whether this environment's torch can't use a GPU; its version says so."""
    try:
        return importlib.metadata.version("torch").endswith("+cpu")
    except importlib.metadata.PackageNotFoundError:
        return False


def _machine_id() -> str:
    return _BOOT_ID.read_text().strip()
