"""/v1/files: uploads in one request, listing, contents, deletion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Query, Request
from martlet_core.errors import InvalidArgument
from starlette.concurrency import iterate_in_threadpool
from starlette.responses import StreamingResponse

from martlet_gateway import idempotency
from martlet_gateway.context import Gateway, GatewayContext, Json, in_thread, tenant
from martlet_gateway.dataset_check import check_dataset
from martlet_gateway.file_store import StoredFile, artifact_id_of
from martlet_gateway.multipart import FormFile, read_form
from martlet_gateway.proto_json import close_hint

router = APIRouter(prefix="/v1/files", tags=["files"])

PURPOSES = ("fine-tune", "evals", "batch", "user_data", "assistants", "vision")
_FIELDS = ("purpose", "expires_after[anchor]", "expires_after[seconds]")
_REMEDY = "Send it in parts with POST /v1/uploads, or have the operator raise MARTLET_MAX_FILE_BYTES."
_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"type": "string", "enum": list(PURPOSES)},
                        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
                        "expires_after[seconds]": {"type": "integer", "minimum": 3600, "maximum": 2592000},
                    },
                }
            }
        },
    }
}


@router.post("", openapi_extra=_FORM)
async def create_file(request: Request, gateway: Gateway) -> Json:
    """Store a file.

    A data set for fine-tuning is read once through: one without a readable row is refused; rows that can't be read are
    named in ``status_details``, and the file's status is ``error``.
    """
    limit = gateway.settings.max_file_bytes
    async with read_form(request, gateway.scratch, file_field="file", limit_bytes=limit, remedy=_REMEDY) as form:
        for name in form.fields:
            if name not in _FIELDS:
                raise InvalidArgument.field(
                    name, f"is not known.{close_hint(name, list(_FIELDS))}", reason="UNKNOWN_PARAMETER"
                )
        purpose = check_purpose(form.fields.get("purpose"))
        seconds = _expires_after(form.fields)
        if form.file is None:
            raise InvalidArgument.field("file", "is required.", reason="MISSING_REQUIRED_PARAMETER")
        return Json(await _once(gateway, request, form.file, purpose, seconds))


async def _once(
    gateway: GatewayContext, request: Request, file: FormFile, purpose: str, seconds: int | None
) -> dict[str, Any]:
    """Store a file, or return what the first attempt of this very request stored."""
    owner = tenant()
    key = idempotency.explicit_key(request.headers, owner, "/v1/files")
    body_key = idempotency.digest("file", owner, file.sha256, file.filename, purpose, str(seconds))
    known = await gateway.retries.get(key or body_key) if key or idempotency.retry_count(request.headers) else None
    if known is not None:
        return orjson.loads(known)
    stored = await store_file(gateway, file, purpose, seconds)
    answer = stored.to_openai()
    await gateway.retries.put(key or body_key, orjson.dumps(answer).decode())
    return answer


async def store_file(gateway: GatewayContext, file: FormFile, purpose: str, seconds: int | None) -> StoredFile:
    """Check and store a file that lies on disk."""
    status, details, metadata = "processed", None, {}
    if file.size_bytes == 0:
        raise InvalidArgument.field("file", f"`{file.filename}` is empty.", reason="EMPTY_FILE")
    if purpose == "fine-tune":
        check = await check_dataset(file.path, file.filename, file.size_bytes)
        metadata = {"format": check.format} | ({"rows": check.rows} if check.rows >= 0 else {})
        if check.bad_rows:
            status, details = "error", check.summary()
    return await in_thread(
        gateway.files.create,
        tenant(),
        file.path,
        filename=file.filename,
        purpose=purpose,
        expires_after_seconds=seconds,
        status=status,
        status_details=details,
        metadata=metadata,
    )


@router.get("")
async def list_files(
    gateway: Gateway,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
    purpose: str | None = None,
) -> Json:
    """The tenant's files, newest first unless asked otherwise."""
    files, more = await in_thread(
        gateway.files.list, tenant(), after=after, limit=limit, descending=order == "desc", purpose=purpose
    )
    return Json(page([file.to_openai() for file in files], more))


@router.get("/{file_id}")
async def retrieve_file(file_id: str, gateway: Gateway) -> Json:
    """One file."""
    return Json((await in_thread(gateway.files.get, tenant(), file_id)).to_openai())


@router.get("/{file_id}/content")
async def file_content(file_id: str, gateway: Gateway) -> StreamingResponse:
    """A file's bytes as they were stored; metrics of a job are plain CSV."""
    stored = await in_thread(gateway.files.get, tenant(), file_id)
    chunks = await in_thread(gateway.files.content, tenant(), stored)
    media_type = "text/csv; charset=utf-8" if stored.path.endswith(".csv") else "application/octet-stream"
    name = stored.path.rsplit("/", 1)[-1].encode("ascii", "replace").decode().replace('"', "_")
    headers = {"content-length": str(stored.bytes), "content-disposition": f'attachment; filename="{name}"'}
    return StreamingResponse(iterate_in_threadpool(chunks), media_type=media_type, headers=headers)


@router.delete("/{file_id}")
async def delete_file(file_id: str, gateway: Gateway) -> Json:
    """Delete a file and its bytes. 409 while a job that isn't over needs it."""
    stored = await in_thread(gateway.files.get, tenant(), file_id)
    await gateway.use.refuse_if_needed(artifact_id_of(file_id))
    await in_thread(gateway.files.delete, tenant(), file_id)
    return Json({"id": stored.id, "object": "file", "deleted": True})


def page(items: list[dict[str, Any]], has_more: bool) -> dict[str, Any]:
    """OpenAI's list envelope; the next page is asked for with ``after=<last_id>``."""
    return {
        "object": "list",
        "data": items,
        "has_more": has_more,
        "first_id": items[0]["id"] if items else None,
        "last_id": items[-1]["id"] if items else None,
    }


def check_purpose(purpose: str | None) -> str:
    """A purpose that files may have. InvalidArgument for others."""
    if not purpose:
        raise InvalidArgument.field("purpose", "is required.", reason="MISSING_REQUIRED_PARAMETER")
    if purpose not in PURPOSES:
        raise InvalidArgument.field("purpose", f"`{purpose:.40}` is not one of: {', '.join(PURPOSES)}.")
    return purpose


def _expires_after(fields: Mapping[str, str]) -> int | None:
    anchor, seconds = fields.get("expires_after[anchor]"), fields.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return None
    if anchor != "created_at":
        raise InvalidArgument.field("expires_after[anchor]", "must be `created_at`.")
    if seconds is None or not seconds.isdecimal() or not 3600 <= int(seconds) <= 2592000:
        raise InvalidArgument.field("expires_after[seconds]", "must be an integer from 3600 to 2592000.")
    return int(seconds)
