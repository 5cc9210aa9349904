"""``files upload|list``: data sets on the platform."""

from __future__ import annotations

import argparse
import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from martlet_core.errors import InvalidArgument
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from martlet_cli.context import Context, Subparsers, command, group
from martlet_cli.gateway import translated

if TYPE_CHECKING:  # slow to import
    from openai import OpenAI
    from openai.types import FileObject

#: Larger files are uploaded in parts; a gateway takes 512 MiB in one request unless its settings say otherwise.
LARGEST_WHOLE_BYTES = 256 * 1024 * 1024
#: The API's largest part.
PART_BYTES = 64 * 1024 * 1024


def add(subparsers: Subparsers) -> None:
    """Add the commands."""
    commands = group(subparsers, "files", "upload and list data sets")
    upload = command(
        commands, "upload", _upload, "upload data sets; every row is checked, bad rows are named with their line"
    )
    upload.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="jsonl, json, csv or parquet")
    listing = command(commands, "list", _list, "list the files of this key's owner")
    listing.add_argument("--limit", type=int, default=100, help="most files to show (default 100)")


def upload(context: Context, path: Path, *, bad_rows_are_left_out: bool = False) -> dict[str, Any]:
    """Upload a data set; returns the file as the gateway describes it.

    Args:
        context: of the command.
        path: the file.
        bad_rows_are_left_out: rows that can't be read are only told of: whoever uses the file leaves them out.

    Raises:
        InvalidArgument: if there is no such file, it is empty, or the gateway refuses its rows.
    """
    if not path.is_file():
        raise InvalidArgument(f"{path}: there is no such file", reason="FILE_NOT_FOUND")
    if path.stat().st_size == 0:
        raise InvalidArgument(f"{path}: the file is empty; a data set needs at least one row", reason="EMPTY_FILE")
    bar = Progress(
        TextColumn("uploading {task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=context.output.remarks,
        transient=True,
        disable=not context.output.live,
    )
    with translated(), bar, open(path, "rb") as stream:
        size = path.stat().st_size
        task = bar.add_task(path.name, total=size)
        reader = bar.wrap_file(stream, task_id=task) if context.output.live else stream
        if size > LARGEST_WHOLE_BYTES:
            made = _upload_in_parts(context.gateway.openai, path.name, size, reader)
        else:
            made = context.gateway.openai.files.create(file=(path.name, reader), purpose="fine-tune")  # type: ignore[arg-type]
    if made.status == "error" and not bad_rows_are_left_out:
        raise InvalidArgument(f"{path}: {made.status_details} (stored as {made.id})", reason="INVALID_FILE_FORMAT")
    if made.status == "error":
        context.output.say(f"[yellow]{escape(f'{path}: {made.status_details}')}[/]")
    return made.model_dump()


def _upload_in_parts(client: OpenAI, name: str, size: int, stream: IO[bytes]) -> FileObject:
    """Upload a file that is too large for one request (``POST /v1/uploads``)."""
    upload = client.uploads.create(bytes=size, filename=name, mime_type="application/jsonl", purpose="fine-tune")
    parts = []
    while chunk := stream.read(PART_BYTES):
        parts.append(client.uploads.parts.create(upload.id, data=(name, chunk)).id)
    made = client.uploads.complete(upload.id, part_ids=parts).file
    assert made is not None  # OpenAI's type allows for uploads that aren't complete
    return made


def file_id(context: Context, flag: str, value: str, *, lenient: bool = False) -> str:
    """The id of a data set: of a local file after uploading it, or as it was given.

    Args:
        context: of the command.
        flag: the argument that named it.
        value: a path, or an id.
        lenient: rows that can't be read are left out by whoever uses the file.

    Raises:
        InvalidArgument: there is no such file, and it can't be an id.
    """
    if Path(value).exists():
        made = upload(context, Path(value), bad_rows_are_left_out=lenient)
        context.output.say(f"uploaded {escape(value)} as {made['id']}")
        return made["id"]
    if ("/" in value and not value.startswith("artifacts/")) or "." in value:
        raise InvalidArgument.field(
            flag, f"{value}: there is no such file here, and it isn't the id of an uploaded one"
        )
    return value


def dataset_artifact(context: Context, flag: str, value: str | None) -> str | None:
    """The data set's artifact, for specifications of Martlet's own; see ``file_id``. None for None."""
    if value is None:
        return None
    return f"artifacts/{file_id(context, flag, value).removeprefix('artifacts/').removeprefix('file-')}"


def dataset_once(context: Context, flag: str, value: str) -> str:
    """As ``dataset_artifact``; a local file that lies on the platform already, byte for byte, isn't uploaded again."""
    path = Path(value)
    if path.is_file():
        with open(path, "rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        stored = context.gateway.call("GET", "/artifacts", params={"kind": "dataset", "limit": 1000})["data"]
        for artifact in stored:
            if [file["sha256"] for file in artifact["files"]] == [digest]:
                return artifact["name"]
    found = dataset_artifact(context, flag, value)
    assert found is not None  # only None gives None
    return found


def _upload(context: Context, arguments: argparse.Namespace) -> int:
    rows = [upload(context, path) for path in arguments.paths]
    context.output.table(rows, ("id", "filename", "bytes", "status"))
    return 0


def _list(context: Context, arguments: argparse.Namespace) -> int:
    with translated():
        files = context.gateway.openai.files.list(limit=arguments.limit)
    rows = [file.model_dump() | {"created": when(file.created_at)} for file in files.data]
    context.output.table(rows, ("id", "filename", "bytes", "purpose", "status", "created"), empty="no files yet")
    return 0


def when(seconds: float | None) -> str:
    """A time for people, local and without its zone."""
    return datetime.fromtimestamp(seconds, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S") if seconds else ""
