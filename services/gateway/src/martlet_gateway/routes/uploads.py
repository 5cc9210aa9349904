"""/v1/uploads: a file in parts, for those that don't fit into one request."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from fastapi import APIRouter, Request
from martlet_core.errors import FailedPrecondition, InvalidArgument

from martlet_gateway.context import Gateway, Json, in_thread, tenant
from martlet_gateway.multipart import FormFile, read_form
from martlet_gateway.routes.files import check_purpose, store_file
from martlet_gateway.schemas import CompleteUpload, CreateUpload
from martlet_gateway.upload_store import PREFIX

router = APIRouter(prefix="/v1/uploads", tags=["uploads"])


@router.post("")
async def create_upload(body: CreateUpload, gateway: Gateway) -> Json:
    """Begin an upload; it expires in an hour unless it is completed."""
    upload = await in_thread(
        gateway.uploads.create,
        tenant(),
        filename=body.filename,
        purpose=check_purpose(body.purpose),
        size_bytes=body.bytes,
        mime_type=body.mime_type,
        expires_after_seconds=body.expires_after.seconds if body.expires_after else None,
    )
    return Json(upload.to_openai())


@router.post("/{upload_id}/parts")
async def add_part(upload_id: str, request: Request, gateway: Gateway) -> Json:
    """Add a part (form field ``data``); parts may come in any order and at the same time."""
    upload = await in_thread(gateway.uploads.pending, tenant(), upload_id)
    limit = gateway.settings.max_part_bytes
    async with read_form(
        request, gateway.scratch, file_field="data", limit_bytes=limit, remedy="Send smaller parts."
    ) as form:
        if form.file is None:
            raise InvalidArgument.field("data", "is required.", reason="MISSING_REQUIRED_PARAMETER")
        part_id = await in_thread(gateway.uploads.add_part, tenant(), upload, form.file.path, form.file.size_bytes)
    return Json(
        {"id": part_id, "object": "upload.part", "created_at": int(time.time()), "upload_id": PREFIX + upload.upload_id}
    )


@router.post("/{upload_id}/complete")
async def complete_upload(upload_id: str, body: CompleteUpload, gateway: Gateway) -> Json:
    """Join the parts in the given order into a file. Doing so again returns the same file."""
    upload = await in_thread(gateway.uploads.get, tenant(), upload_id)
    if upload.status == "completed":
        return Json(upload.to_openai())
    upload = await in_thread(gateway.uploads.pending, tenant(), upload_id)
    await in_thread(gateway.scratch.mkdir, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=gateway.scratch, prefix="upload-") as directory:
        path = Path(directory, "whole")
        sha256 = await in_thread(gateway.uploads.join, tenant(), upload, body.part_ids, body.md5, path)
        file = FormFile(path, upload.filename, upload.bytes, sha256)
        stored = await store_file(gateway, file, upload.purpose, upload.expires_after_seconds)
    return Json((await in_thread(gateway.uploads.complete, tenant(), upload, stored.to_openai())).to_openai())


@router.post("/{upload_id}/cancel")
async def cancel_upload(upload_id: str, gateway: Gateway) -> Json:
    """Throw an upload and its parts away."""
    upload = await in_thread(gateway.uploads.get, tenant(), upload_id)
    if upload.status == "completed":
        raise FailedPrecondition(f"{upload_id} is completed; delete its file instead.", reason="UPLOAD_NOT_PENDING")
    return Json((await in_thread(gateway.uploads.cancel, tenant(), upload)).to_openai())
