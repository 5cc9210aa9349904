"""Files and uploads, with the stock client."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import time
from pathlib import Path
from typing import Any

import openai
import pytest
from martlet_core.artifacts.types import Artifact, ArtifactFile
from martlet_core.errors import NotFound, Unavailable
from martlet_core.ids import new_id
from martlet_core.job_archive import mark_whole
from martlet_core.jobs import Job
from martlet_gateway.chores import gateway_chores
from martlet_gateway.settings import GatewaySettings

LIMIT = 8 * 1024 * 1024


@pytest.fixture
async def settings(tmp_path: Path, trainer: Any) -> GatewaySettings:
    """Small limits, so that going over them is quick."""
    return GatewaySettings(
        http_port=0,
        grpc_address="127.0.0.1:0",
        trainer_address=trainer[1],
        internal_token="internal-token",
        upload_dir=tmp_path / "uploads",
        max_file_bytes=LIMIT,
        max_part_bytes=1024 * 1024,
        lingering_seconds=2.0,
    )


async def test_round_trip(gateway: Any, tools: Any) -> None:
    client = gateway.openai()
    data = tools.dataset(3)
    made = await client.files.create(
        file=("my rows (1).jsonl", data), purpose="fine-tune", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert made.id.startswith("file-")
    assert (made.bytes, made.filename, made.purpose, made.status) == (
        len(data),
        "my rows (1).jsonl",
        "fine-tune",
        "processed",
    )
    assert made.expires_at == made.created_at + 3600
    assert await client.files.retrieve(made.id) == made
    assert (await client.files.content(made.id)).content == data
    assert await client.files.wait_for_processing(made.id) == made
    deleted = await client.files.delete(made.id)
    assert (deleted.id, deleted.deleted) == (made.id, True)
    with pytest.raises(openai.NotFoundError):
        await client.files.retrieve(made.id)


async def test_listing_pages_by_id_and_purpose(gateway: Any) -> None:
    client = gateway.openai()
    made = [(await client.files.create(file=(f"{i}.txt", b"x"), purpose="user_data")).id for i in range(5)]
    tune = await gateway.upload()
    assert [file.id async for file in client.files.list(limit=2)] == [tune, *reversed(made)]
    assert [file.id async for file in client.files.list(limit=2, order="asc", purpose="user_data")] == made
    assert [file.id async for file in client.files.list(purpose="fine-tune")] == [tune]
    assert [file.id async for file in gateway.openai(gateway.other_key).files.list()] == []


async def test_bad_rows_are_named_and_the_rest_is_kept(gateway: Any, tools: Any) -> None:
    data = tools.dataset(1) + b"{broken\n" + b"[1]\n" + tools.dataset(1)
    made = await gateway.openai().files.create(file=("a.jsonl", data), purpose="fine-tune")
    assert made.status == "error"
    assert "2 of 4 rows" in made.status_details
    assert "line 2: not valid JSON (" in made.status_details
    assert "line 3" in made.status_details
    job = await gateway.openai().fine_tuning.jobs.create(
        model=tools.base, training_file=made.id, extra_body={"martlet": {"data": {"on_bad_rows": "skip"}}}
    )
    assert job.training_file == made.id


@pytest.mark.parametrize(
    ("name", "data", "text"),
    [
        ("a.json", b'{"messages": []}', "must be one list"),
        ("a.json", b'[{"a": 1},\n {]', "line 2"),
        ("a.csv", b"prompt,completion\n", "no rows"),
        ("a.csv", b"prompt,completion\na\n", "has 1 cells"),
        ("a.parquet", b"PAR1 cut off", "Parquet"),
        ("a.xlsx", b"PK", "*.jsonl"),
        ("blank.jsonl", b"\n\n", "no rows"),
    ],
)
async def test_files_without_a_readable_row_are_refused(gateway: Any, name: str, data: bytes, text: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await gateway.openai().files.create(file=(name, data), purpose="fine-tune")
    assert text in caught.value.message
    assert caught.value.param == "file"


@pytest.mark.parametrize(
    ("name", "data"),
    [("a.json", b'[{"a": 1}]'), ("a.csv", b'p,c\n"x, y",z\n'), ("a.jsonl", b'\xef\xbb\xbf{"a": 1}\r\n')],
)
async def test_other_formats_are_taken(gateway: Any, name: str, data: bytes) -> None:
    made = await gateway.openai().files.create(file=(name, data), purpose="fine-tune")
    assert made.status == "processed"


async def test_large_data_sets_are_checked_elsewhere(gateway: Any, tools: Any) -> None:
    data = tools.dataset(30_000) + b"{broken\n"
    assert len(data) > 2 * 1024 * 1024
    made = await gateway.openai().files.create(file=("a.jsonl", io.BytesIO(data)), purpose="fine-tune")
    assert "line 30001" in made.status_details


async def test_stock_client_sees_413(gateway: Any, tmp_path: Path) -> None:
    big = tmp_path / "big.bin"
    big.touch()
    os.truncate(big, 5 * LIMIT)
    with pytest.raises(openai.APIStatusError) as caught:
        await gateway.openai(max_retries=2).files.create(file=big, purpose="user_data")
    assert caught.value.status_code == 413
    assert caught.value.code == "payload_too_large"


async def test_endless_chunked_body_is_cut(gateway: Any) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.server.http_port)
    writer.write(
        b"POST /v1/files HTTP/1.1\r\nhost: x\r\nauthorization: Bearer %s\r\ntransfer-encoding: chunked\r\n"
        b"content-type: multipart/form-data; boundary=b\r\n\r\n" % gateway.key.encode()
    )
    part = b'--b\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\n'
    writer.write(b"%x\r\n%s\r\n" % (len(part), part))

    async def send_for_ever() -> None:
        chunk = b"10000\r\n" + b"\0" * 0x10000 + b"\r\n"
        while True:
            writer.write(chunk)
            await writer.drain()

    sending = asyncio.create_task(send_for_ever())
    async with asyncio.timeout(20):
        head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 413")
    assert b"connection: close" in head
    async with asyncio.timeout(20):
        with pytest.raises(ConnectionError):  # the gateway stops reading
            await sending
    writer.close()
    assert not list(gateway.settings.upload_dir.iterdir()), "nothing may be left behind"


async def test_cut_off_upload_leaves_nothing(gateway: Any) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", gateway.server.http_port)
    writer.write(
        b"POST /v1/files HTTP/1.1\r\nhost: x\r\nauthorization: Bearer %s\r\ncontent-length: 1000\r\n"
        b'content-type: multipart/form-data; boundary=b\r\n\r\n--b\r\ncontent-disposition: form-data; name="file"; '
        b'filename="a"\r\n\r\nabc' % gateway.key.encode()
    )
    await writer.drain()
    writer.close()
    assert [file async for file in gateway.openai().files.list()] == []


async def test_retry_of_an_upload_returns_the_same_file(gateway: Any) -> None:
    http = gateway.http()
    form = {"files": {"file": ("a.txt", b"x")}, "data": {"purpose": "user_data"}}
    first = (await http.post("/v1/files", **form)).json()
    again = (await http.post("/v1/files", **form, headers={"x-stainless-retry-count": "1"})).json()
    other = (await http.post("/v1/files", **form, headers={"x-stainless-retry-count": "0"})).json()
    assert first["id"] == again["id"] != other["id"]


async def test_file_in_use_is_kept(gateway: Any, tools: Any) -> None:
    client = gateway.openai()
    file_id = await gateway.upload()
    job = await client.fine_tuning.jobs.create(model=tools.base, training_file=file_id)
    with pytest.raises(openai.ConflictError) as caught:
        await client.files.delete(file_id)
    assert "trainingJobs/" in caught.value.message
    gateway.trainer.finish(job.id)
    assert (await client.files.delete(file_id)).deleted


async def test_metrics_of_a_job_are_a_file(gateway: Any, tmp_path: Path) -> None:
    directory = tmp_path / "metrics"
    directory.mkdir()
    (directory / "metrics.csv").write_bytes(b"step,train_loss\n1,2.5\n")
    artifact = gateway.stores.artifacts.put_directory(directory, kind="report", tenant="acme")
    assert artifact.files == (ArtifactFile("metrics.csv", artifact.files[0].sha256, 22),)
    client = gateway.openai()
    file = await client.files.retrieve(f"file-{artifact.id}")
    assert (file.purpose, file.filename, file.bytes) == ("fine-tune-results", "metrics.csv", 22)
    content = await client.files.content(file.id)
    assert content.content == b"step,train_loss\n1,2.5\n"
    assert content.response.headers["content-type"].startswith("text/csv")
    assert [f.id async for f in client.files.list(purpose="fine-tune-results")] == [file.id]


async def test_upload_in_parts(gateway: Any, tools: Any) -> None:
    client = gateway.openai()
    data = tools.dataset(20)
    upload = await client.uploads.create(
        bytes=len(data), filename="train.jsonl", mime_type="text/jsonl", purpose="fine-tune"
    )
    assert upload.status == "pending"
    later = await client.uploads.parts.create(upload.id, data=data[700:])
    sooner = await client.uploads.parts.create(upload.id, data=data[:700])
    done = await client.uploads.complete(upload.id, part_ids=[sooner.id, later.id], md5=hashlib.md5(data).hexdigest())
    assert done.status == "completed"
    assert done.file
    assert (await client.files.content(done.file.id)).content == data
    assert (await client.uploads.complete(upload.id, part_ids=[sooner.id, later.id])).file == done.file


async def test_upload_helper_of_the_stock_client(gateway: Any, tmp_path: Path, tools: Any) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes(tools.dataset(1000))
    done = await gateway.openai().uploads.upload_file_chunked(
        file=path, mime_type="text/jsonl", purpose="fine-tune", part_size=10_000
    )
    assert done.file
    assert done.file.bytes == path.stat().st_size


@pytest.mark.parametrize("fault", ["md5", "missing", "foreign", "short"])
async def test_upload_that_does_not_add_up_is_refused(gateway: Any, fault: str) -> None:
    client = gateway.openai()
    upload = await client.uploads.create(bytes=6, filename="a.txt", mime_type="text/plain", purpose="user_data")
    part = await client.uploads.parts.create(upload.id, data=b"abc" if fault == "short" else b"abcdef")
    ids = {"missing": ["part-0"], "foreign": [part.id, "part-x1"]}.get(fault, [part.id])
    with pytest.raises(openai.BadRequestError) as caught:
        await client.uploads.complete(upload.id, part_ids=ids, md5="0" * 32 if fault == "md5" else openai.omit)
    expected = {"md5": "md5", "missing": "part_ids[0]", "foreign": "part_ids[1]", "short": "part_ids"}
    assert caught.value.param == expected[fault]
    assert (await client.uploads.complete(upload.id, part_ids=[part.id])).status if fault == "md5" else True


async def test_cancelled_upload_takes_no_parts(gateway: Any) -> None:
    client = gateway.openai()
    upload = await client.uploads.create(bytes=6, filename="a.txt", mime_type="text/plain", purpose="user_data")
    await client.uploads.parts.create(upload.id, data=b"abc")
    assert (await client.uploads.cancel(upload.id)).status == "cancelled"
    with pytest.raises(openai.ConflictError):
        await client.uploads.parts.create(upload.id, data=b"def")
    assert not [key for key in gateway.stores.objects.list("uploads/") if not key.endswith(".json")]


async def test_parts_beyond_the_declared_size_are_refused(gateway: Any) -> None:
    client = gateway.openai()
    upload = await client.uploads.create(bytes=4, filename="a.txt", mime_type="text/plain", purpose="user_data")
    with pytest.raises(openai.APIStatusError) as caught:
        await client.uploads.parts.create(upload.id, data=b"abcdef")
    assert caught.value.status_code == 413


def _let_expire(gateway: Any, file_id: str) -> str:
    """Put a file's end into the past; returns its artifact's id."""
    artifact_id = file_id.removeprefix("file-")
    key = f"files/acme/{artifact_id}.json"
    record = json.loads(gateway.stores.objects.get(key))
    gateway.stores.objects.put(key, json.dumps(record | {"expires_at": record["created_at"] - 1}).encode())
    return artifact_id


def _sweep(gateway: Any) -> None:
    """Do the gateway's chores."""
    context = gateway.server.context
    chores = gateway_chores(gateway.stores.jobs, ["trainer"], context.files, context.uploads, context.artifact_uploads)
    for chore in chores:
        chore.run(lambda: False)


async def test_expired_file_is_gone_and_the_sweep_deletes_its_bytes(gateway: Any) -> None:
    client = gateway.openai()
    made, kept = [await client.files.create(file=("a.txt", text), purpose="user_data") for text in (b"hello", b"bye")]
    _let_expire(gateway, made.id)
    assert [file.id async for file in client.files.list()] == [kept.id]
    with pytest.raises(openai.NotFoundError):
        await client.files.content(made.id)
    mark_whole(gateway.stores.jobs, "trainer")
    mark_whole(gateway.stores.jobs, "runs")
    _sweep(gateway)
    assert gateway.stores.objects.list("files/") == [f"files/acme/{kept.id.removeprefix('file-')}.json"]
    assert len(gateway.stores.objects.list("blobs/")) == 1
    assert (await client.files.content(kept.id)).content == b"bye"


async def test_expired_file_that_a_job_needs_stays_until_it_is_over(gateway: Any) -> None:
    artifact_id = _let_expire(gateway, await gateway.upload())
    jobs = gateway.stores.jobs
    with pytest.raises(Unavailable):  # the trainer hasn't said yet that all jobs are there
        _sweep(gateway)
    mark_whole(jobs, "trainer")
    mark_whole(jobs, "runs")
    job, _ = jobs.create(
        Job(new_id(), "trainer", "training", "acme", {"training_dataset": f"artifacts/{artifact_id}"}, "trainer")
    )
    _sweep(gateway)
    assert gateway.stores.artifacts.get(artifact_id)
    jobs.request_cancel(job.id)
    _sweep(gateway)
    with pytest.raises(NotFound):
        gateway.stores.artifacts.get(artifact_id)


async def test_sweep_ends_abandoned_uploads(gateway: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    client, objects = gateway.openai(), gateway.stores.objects
    upload = await client.uploads.create(bytes=4, filename="a.txt", mime_type="text/plain", purpose="user_data")
    await client.uploads.parts.create(upload.id, data=b"abcd")
    artifact = Artifact("", "dataset", "acme", (ArtifactFile("a.txt", hashlib.sha256(b"abcd").hexdigest(), 4),))
    announced, _ = gateway.server.context.artifact_uploads.announce("acme", artifact)
    objects.put(f"artifact-uploads/acme/{announced.id}/000000", b"abcd")
    mark_whole(gateway.stores.jobs, "trainer")
    mark_whole(gateway.stores.jobs, "runs")
    before = set(objects.list("uploads/")) | set(objects.list("artifact-uploads/"))
    assert len(before) == 4
    _sweep(gateway)
    assert before == set(objects.list("uploads/")) | set(objects.list("artifact-uploads/"))
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + gateway.settings.upload_ttl_seconds + 24 * 3600 + 1)
    _sweep(gateway)
    (record,) = objects.list("uploads/")
    assert json.loads(objects.get(record))["status"] == "expired"
    assert objects.list("artifact-uploads/") == []
