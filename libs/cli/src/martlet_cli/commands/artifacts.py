"""``artifacts list|show|download``: data sets, adapters, models and reports."""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path
from typing import Any
from urllib.parse import quote

from martlet_core.errors import FailedPrecondition, InvalidArgument
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

from martlet_cli.commands.files import when
from martlet_cli.context import Context, Subparsers, command, group
from martlet_cli.output import size

_KINDS = ("dataset", "adapter", "checkpoint", "model", "merged_model", "quantized_model", "report")


def add(subparsers: Subparsers) -> None:
    """Add the commands."""
    commands = group(subparsers, "artifacts", "list, show and download what jobs made")
    listing = command(commands, "list", _list, "list artifacts, newest first")
    listing.add_argument("--kind", choices=_KINDS, help="only this kind")
    listing.add_argument("--limit", type=int, default=50, help="most artifacts to show (default 50)")
    show = command(commands, "show", _show, "show an artifact: files, sizes, hashes, where it comes from")
    show.add_argument("id", help="the artifact's id")
    download = command(
        commands, "download", _download, "download an artifact's files; each is checked against its sha256"
    )
    download.add_argument("id", help="the artifact's id")
    download.add_argument("--out", type=Path, help="directory to write to (default: the id)")


def _list(context: Context, arguments: argparse.Namespace) -> int:
    parameters = {"limit": arguments.limit} | ({"kind": arguments.kind} if arguments.kind else {})
    answer = context.gateway.call("GET", "/artifacts", params=parameters)
    if context.output.as_json:
        context.output.json(answer["data"])
        return 0
    rows = [
        artifact | {"size": size(artifact["size_bytes"]), "created": when(artifact["create_time"])}
        for artifact in answer["data"]
    ]
    context.output.table(
        rows, ("id", "kind", "display_name", "size", "source_job", "created"), empty="no artifacts yet"
    )
    return 0


def _show(context: Context, arguments: argparse.Namespace) -> int:
    artifact = _get(context, arguments.id)
    output = context.output
    if output.as_json:
        output.json(artifact)
        return 0
    output.facts({name: value for name, value in artifact.items() if name != "files"})
    output.console.print("\n[bold]files[/]")
    output.table(artifact["files"], ("path", "size_bytes", "sha256"))
    return 0


def _download(context: Context, arguments: argparse.Namespace) -> int:
    directory = arguments.out or Path(_bare(arguments.id))
    count, total = download_files(context, arguments.id, directory)
    context.output.result({"directory": str(directory), "files": count, "size_bytes": total},
                          f"{directory}: {count} files, {size(total)}")  # fmt: skip
    return 0


def download_files(context: Context, identifier: str, directory: Path) -> tuple[int, int]:
    """Download an artifact's files, each checked against its sha256; returns how many, and their bytes.

    Raises:
        InvalidArgument: the directory isn't empty.
        FailedPrecondition: a file isn't what the manifest says.
    """
    artifact = _get(context, identifier)
    if directory.exists() and any(directory.iterdir()):
        raise InvalidArgument.field("--out", f"{directory} isn't empty; name another directory")
    total = sum(int(file["size_bytes"]) for file in artifact["files"])
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        console=context.output.remarks,
        transient=True,
        disable=not context.output.live,
    )
    with bar:
        task = bar.add_task("downloading", total=total)
        for file in artifact["files"]:
            target = _inside(directory, file["path"])
            url = f"/artifacts/{_bare(identifier)}/files/{quote(file['path'])}"
            bar.advance(task, context.gateway.download(url, target))
            _check(target, file["sha256"])
    return len(artifact["files"]), total


def _get(context: Context, identifier: str) -> dict[str, Any]:
    return context.gateway.call("GET", f"/artifacts/{_bare(identifier)}")


def _bare(identifier: str) -> str:
    return identifier.removeprefix("artifacts/")


def _inside(directory: Path, path: str) -> Path:
    """A path below the directory, whatever the manifest says."""
    target = (directory / path).resolve()
    if not target.is_relative_to(directory.resolve()):
        raise FailedPrecondition(f"the artifact names a file outside of itself: {path!r}; nothing was written there")
    return target


def _check(path: Path, sha256: str) -> None:
    with open(path, "rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != sha256:
        path.unlink()
        raise FailedPrecondition(
            f"{path}: its sha256 is {found} and must be {sha256}; the file was deleted", reason="CONTENT_MISMATCH"
        )
