"""Runs of evals: one evaluation job each. Submits it, and says what came of it."""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
from martlet.evaluator.v1 import evaluation_job_pb2
from martlet_core.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Unimplemented,
)
from martlet_core.grader_rules import grader_models, sample_fields, steps_of
from martlet_core.ids import ID_PATTERN

from martlet_gateway import eval_objects
from martlet_gateway.context import GatewayContext, in_thread, tenant
from martlet_gateway.eval_objects import FINAL
from martlet_gateway.eval_records import Records
from martlet_gateway.eval_request import DataSource, build_spec, read_source, rest_names
from martlet_gateway.eval_rows import FORMATS, RowNeeds, check_rows
from martlet_gateway.eval_store import RUN_PREFIX, StoredEval, StoredRun
from martlet_gateway.file_store import StoredFile, no_such_file
from martlet_gateway.job_kinds import EVALUATION
from martlet_gateway.schemas import CreateEvalRun

PURPOSES = ("evals", "fine-tune")
_FILE = "data_source.source.id"
#: Errors that say for sure that no job was made.
_REFUSALS = (InvalidArgument, NotFound, FailedPrecondition, PermissionDenied, AlreadyExists, Unimplemented)


async def submit(gateway: GatewayContext, stored: StoredEval, body: CreateEvalRun, request_id: str) -> StoredRun:
    """Make a run: check its rows, queue its job, keep its record. The same request id gives the same run.

    Raises:
        InvalidArgument: the data source or its rows don't fit the eval.
        NotFound: no such file or model.
        AlreadyExists: ``REQUEST_ID_TAKEN``: the request id made another run.
    """
    assert gateway.stages.evaluator.channel is not None  # raises where the deployment has none
    source = read_source(body.data_source, stored.testing_criteria, stored.item_schema)
    await _check_models(gateway, source, stored)
    artifact_id, rows, is_ours = await _dataset(gateway, stored, source, request_id)
    try:
        spec = build_spec(source, stored.testing_criteria, f"artifacts/{artifact_id}", rows, body.martlet)
        job = evaluation_job_pb2.EvaluationJob(spec=spec, display_name=(body.name or stored.name)[:128])
        job.labels["eval"] = stored.id
        message = EVALUATION.request("Create", evaluation_job=job, request_id=request_id)
        with rest_names():
            job = await EVALUATION.call(gateway.stages, "CreateEvaluationJob", message)
    except _REFUSALS as error:
        if is_ours and error.reason != "REQUEST_ID_TAKEN":
            await _drop(gateway, artifact_id)
        raise
    key = job.name.rpartition("/")[2]
    run = StoredRun(
        key=key,
        eval_key=stored.key,
        name=body.name or RUN_PREFIX + key,
        model=source.model,
        data_source=body.data_source,
        sampling=source.sampling,
        rows=min(rows, spec.max_rows) if spec.HasField("max_rows") else rows,
        rows_artifact=artifact_id if is_ours else "",
        created_at=job.create_time.seconds,
        metadata=body.metadata or {},
    )
    return await in_thread(gateway.evals.create_run, tenant(), run)


async def came_of(gateway: GatewayContext, run: StoredRun) -> dict[str, Any]:
    """What came of a run so far; kept once it is over."""
    kept = await in_thread(gateway.evals.result, tenant(), run)
    if kept is not None:
        return kept
    request = EVALUATION.request("Get", name=f"{EVALUATION.collection}/{run.key}")
    try:
        job = await EVALUATION.call(gateway.stages, "GetEvaluationJob", request)
    except NotFound as error:
        return eval_objects.lost(run, error)
    came, rows = eval_objects.outcome(job, run), None
    if came["status"] == "completed":
        try:
            summary, rows = await records_of(gateway, came).summary()
        except (NotFound, FailedPrecondition) as error:  # they were deleted, or aren't what they should be
            return {**came, "status": "failed", "error": {"code": error.reason.lower(), "message": error.message}}
        came |= summary
    if came["status"] in FINAL:
        await in_thread(gateway.evals.keep_result, tenant(), run, came, rows)
    return came


def records_of(gateway: GatewayContext, came: dict[str, Any]) -> Records:
    """The records of a run that is completed."""
    artifact = came["martlet"]["result"].get("records_artifact", "").removeprefix("artifacts/")
    return Records(gateway.stores.artifacts, gateway.scratch, artifact, tenant())


async def cancel(gateway: GatewayContext, run: StoredRun) -> None:
    """Stop a run for good. FailedPrecondition when it is over."""
    request = EVALUATION.request("Cancel", name=f"{EVALUATION.collection}/{run.key}")
    await EVALUATION.call(gateway.stages, "CancelEvaluationJob", request)


async def delete(gateway: GatewayContext, runs: Sequence[StoredRun]) -> None:
    """Forget runs, with the rows that came with their requests; their jobs and reports stay.

    Raises:
        FailedPrecondition: ``EVAL_RUN_ACTIVE``: one isn't over; none is forgotten.
    """
    for run in runs:
        if (await came_of(gateway, run))["status"] not in FINAL:
            text = f"{run.id} isn't over. Cancel it first, or wait for its end."
            raise FailedPrecondition(text, reason="EVAL_RUN_ACTIVE", metadata={"param": "run_id"})
    for run in runs:
        await in_thread(gateway.evals.delete_run, tenant(), run)
        if run.rows_artifact:
            await _drop(gateway, run.rows_artifact)


async def _check_models(gateway: GatewayContext, source: DataSource, stored: StoredEval) -> None:
    """NotFound for a model that nothing answers to, before a job finds out row by row."""
    named = [("data_source.model", source.model)] if source.asks else []
    for param, model in (*named, *grader_models(stored.testing_criteria)):
        try:
            await gateway.names.resolve(model, tenant())
        except NotFound as error:
            error.metadata |= {"param": param}
            raise


async def _dataset(
    gateway: GatewayContext, stored: StoredEval, source: DataSource, request_id: str
) -> tuple[str, int, bool]:
    """The artifact of a run's rows, how many there are, and whether it was made for this run."""
    await in_thread(gateway.scratch.mkdir, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=gateway.scratch, prefix="eval-") as name:
        directory, file = Path(name), None
        if source.file_id is not None:
            file = await _file(gateway, source)
            await in_thread(gateway.stores.artifacts.download, file.artifact_id, directory)
            path = directory / file.path
        else:
            path = directory / "rows" / "rows.jsonl"
            await in_thread(_write, path, source.content)
        rows = await check_rows(path, _needs(stored, source, file))
        if file is not None:
            return file.artifact_id, rows, False
        return await in_thread(_keep, gateway, path.parent, stored, request_id), rows, True


def _needs(stored: StoredEval, source: DataSource, file: StoredFile | None) -> RowNeeds:
    steps = steps_of(source.item_reference)[1:]
    return RowNeeds(
        item_schema=stored.item_schema,
        sample_fields=() if source.asks else sample_fields(stored.testing_criteria),
        reference=steps,
        is_chat=file is not None and file.purpose == "fine-tune",
    )


async def _file(gateway: GatewayContext, source: DataSource) -> StoredFile:
    assert source.file_id is not None
    try:
        file = await in_thread(gateway.files.get, tenant(), source.file_id)
    except NotFound as error:
        raise no_such_file(source.file_id, _FILE) from error
    if file.purpose not in PURPOSES:
        text = f"{file.id} has purpose `{file.purpose}`; upload it with purpose `evals`."
        raise InvalidArgument.field(_FILE, text)
    if Path(file.path).suffix.lower() not in FORMATS:
        text = f"`{file.filename:.100}` is no *.jsonl; runs of evals read JSON lines."
        raise InvalidArgument.field(_FILE, text, reason="INVALID_FILE_FORMAT")
    if source.asks and not source.messages and not source.item_reference and file.purpose != "fine-tune":
        text = "is required: what the model is asked. Only rows of chats, of purpose `fine-tune`, ask for themselves."
        raise InvalidArgument.field("data_source.input_messages", text, reason="MISSING_REQUIRED_PARAMETER")
    return file


def _write(path: Path, rows: Sequence[Any]) -> None:
    path.parent.mkdir()
    with open(path, "wb") as stream:
        stream.writelines(orjson.dumps(row) + b"\n" for row in rows)


def _keep(gateway: GatewayContext, directory: Path, stored: StoredEval, request_id: str) -> str:
    """Store rows that came with a request under an id that the request's repetitions find again."""
    bare = request_id.removeprefix("rest-")
    if bare == request_id or not ID_PATTERN.fullmatch(bare):
        bare = f"0{hashlib.sha256(f'{tenant()} {request_id}'.encode()).hexdigest()[:31]}"
    for leftover in directory.glob("*.needs"):
        leftover.unlink()
    try:
        artifact = gateway.stores.artifacts.put_directory(
            directory,
            kind="dataset",
            tenant=tenant(),
            artifact_id=f"{bare}rows",
            display_name=f"rows of a run of {stored.name}"[:128],
            metadata={"purpose": "evals", "eval": stored.id},
        )
    except AlreadyExists as error:
        text = "This Idempotency-Key made another run; use a key of its own for each."
        raise AlreadyExists(text, reason="REQUEST_ID_TAKEN") from error
    return artifact.id


async def _drop(gateway: GatewayContext, artifact_id: str) -> None:
    try:
        await asyncio.to_thread(gateway.stores.artifacts.delete, artifact_id, tenant=tenant())
    except NotFound:
        return  # it went before
