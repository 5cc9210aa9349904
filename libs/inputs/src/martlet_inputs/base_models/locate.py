"""Where base models that are no artifacts lie on this machine, and how a child process gets at them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from martlet_core.errors import NotFound
from martlet_core.hub import snapshot, with_template
from martlet_core.recipe import Report, StopRequested

from martlet_inputs.base_models.catalog import Reference, find


@dataclass(frozen=True)
class ModelDirs:
    """Where base models that are no artifacts lie on this machine.

    Attributes:
        models_dir: prepared models of the catalogue, one directory a name.
        cache_dir: cache of models from the hub.
        roots: directories that ``file://`` paths may lie in.
    """

    models_dir: Path
    cache_dir: Path
    roots: tuple[Path, ...]

    def describe(self, reference: Reference) -> dict[str, str]:
        """What the child process needs to find the model."""
        return {
            "kind": reference.kind,
            "value": reference.value,
            "models_dir": str(self.models_dir),
            "cache_dir": str(self.cache_dir),
            "chat_template": reference.chat_template,
        }


def link_base_model(
    where: Mapping[str, str],
    workdir: Path,
    report: Report,
    should_stop: Callable[[], bool],
    *,
    name: str = "base_model",
) -> None:
    """Bring the model to ``workdir/inputs/<name>``, unless the supervisor has downloaded it. For the child process: it may
    need the ML libraries, and minutes.

    Args:
        where: see ``ModelDirs.describe``.
        name: of the directory.

    Raises:
        NotFound: a local path that the worker doesn't have, or a hub model that doesn't exist.
        Unavailable: the hub or the package can't be reached.
        StopRequested: ``should_stop`` said so.
    """
    link = workdir / "inputs" / name
    if where["kind"] == "artifact":
        return  # downloaded by the supervisor
    report.phase("fetching base model")
    target = _locate(where, report)
    if should_stop():
        raise StopRequested
    link.parent.mkdir(parents=True, exist_ok=True)
    if template := where.get("chat_template"):
        with_template(target, template, link)
    else:
        link.symlink_to(target, target_is_directory=True)


def _locate(where: Mapping[str, str], report: Report) -> Path:
    if where["kind"] == "path":
        if not Path(where["value"]).is_dir():
            raise NotFound(
                f"base_model: there is no directory {where['value']} on the worker.", reason="BASE_MODEL_NOT_FOUND"
            )
        return Path(where["value"])
    if where["kind"] == "hub":
        return snapshot(where["value"], Path(where["cache_dir"]))
    from martlet_inputs.base_models.prepare import prepare

    return prepare(find(where["value"]), Path(where["models_dir"]) / where["value"], say=report.log)
