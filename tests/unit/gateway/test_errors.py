"""Bad input over REST: each case has its status, code, param and message, and none is a 500."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import httpx
import httpx2
import openai
import pytest
from martlet_core.api_keys import ApiKeyStore
from martlet_core.artifacts.types import PublishedModel
from martlet_core.errors import FieldViolation, InvalidArgument

MESSAGES: Any = [{"role": "user", "content": "hi"}]


@dataclass(frozen=True)
class Expected:
    """What an answer must say; ``text`` are parts of the message."""

    status: int
    code: str
    param: str | None
    text: tuple[str, ...]


Case = Callable[[Any, Any], Awaitable[Any]]


async def unknown_model(gateway: Any, file_id: str) -> Any:
    return await gateway.openai().fine_tuning.jobs.create(model="smolm2", training_file=file_id)


async def empty_file(gateway: Any, file_id: str) -> Any:
    return await gateway.openai().files.create(file=("train.jsonl", b""), purpose="fine-tune")


async def line_812_is_not_json(gateway: Any, file_id: str) -> Any:
    lines = [b'{"messages":[]}'] * 900
    lines[811] = b'{"messages": [}'
    made = await gateway.openai().files.create(file=("train.jsonl", b"\n".join(lines)), purpose="fine-tune")
    assert made.status == "error"
    assert "line 812" in made.status_details
    return await gateway.openai().fine_tuning.jobs.create(model="smollm2-135m-instruct", training_file=made.id)


async def row_without_assistant_turn(gateway: Any, file_id: str) -> Any:
    """Only the trainer knows what a row must contain; this is how its servicer says it."""
    field = "spec.training_dataset"
    violation = FieldViolation(field, "line 2: messages has no assistant turn; add one")
    gateway.trainer.failures["CreateTrainingJob"] = [
        InvalidArgument(
            f"{field}: 1 of 3 rows were refused. First: {violation.description}.",
            reason="BAD_ROWS",
            violations=[violation],
        )
    ]
    return await gateway.openai().fine_tuning.jobs.create(model="smollm2-135m-instruct", training_file=file_id)


async def nothing_but_garbage(gateway: Any, file_id: str) -> Any:
    return await gateway.openai().files.create(file=("train.jsonl", b"not json\nnor this\n"), purpose="fine-tune")


async def wrong_type(gateway: Any, file_id: str) -> Any:
    numbers: Any = {"n_epochs": "three"}
    return await gateway.openai().fine_tuning.jobs.create(
        model="smollm2-135m-instruct",
        training_file=file_id,
        method={"type": "supervised", "supervised": {"hyperparameters": numbers}},
    )


async def out_of_range(gateway: Any, file_id: str) -> Any:
    return await gateway.openai().fine_tuning.jobs.create(
        model="smollm2-135m-instruct", training_file=file_id, hyperparameters={"n_epochs": 51}
    )


async def martlet_wrong_type(gateway: Any, file_id: str) -> Any:
    body = {"martlet": {"tuner": {"lora_rank": "eight"}}}
    return await gateway.openai().fine_tuning.jobs.create(
        model="smollm2-135m-instruct", training_file=file_id, extra_body=body
    )


async def martlet_out_of_range(gateway: Any, file_id: str) -> Any:
    body = {"martlet": {"learning_rate": 11}}
    return await gateway.openai().fine_tuning.jobs.create(
        model="smollm2-135m-instruct", training_file=file_id, extra_body=body
    )


async def martlet_misspelt(gateway: Any, file_id: str) -> Any:
    body = {"martlet": {"lora_rnk": 8}}
    return await gateway.openai().fine_tuning.jobs.create(
        model="smollm2-135m-instruct", training_file=file_id, extra_body=body
    )


async def unknown_field(gateway: Any, file_id: str) -> Any:
    return await gateway.openai().fine_tuning.jobs.create(
        model="smollm2-135m-instruct", training_file=file_id, extra_body={"lora_rank": 8}
    )


async def missing_field(gateway: Any, file_id: str) -> Any:
    answer = await gateway.http().post("/v1/fine_tuning/jobs", json={"model": "smollm2-135m-instruct"})
    return await _raise(gateway, answer)


async def body_is_not_json(gateway: Any, file_id: str) -> Any:
    answer = await gateway.http().post(
        "/v1/fine_tuning/jobs", content=b"{", headers={"content-type": "application/json"}
    )
    return await _raise(gateway, answer)


async def chat_body_is_not_json(gateway: Any, file_id: str) -> Any:
    return await _raise(gateway, await gateway.http().post("/v1/chat/completions", content=b"{"))


async def chat_without_model(gateway: Any, file_id: str) -> Any:
    return await _raise(gateway, await gateway.http().post("/v1/chat/completions", json={"messages": MESSAGES}))


async def file_of_another_tenant(gateway: Any, file_id: str) -> Any:
    client = gateway.openai(gateway.other_key)
    return await client.fine_tuning.jobs.create(model="smollm2-135m-instruct", training_file=file_id)


async def reading_another_tenants_file(gateway: Any, file_id: str) -> Any:
    return await gateway.openai(gateway.other_key).files.content(file_id)


async def file_of_another_purpose(gateway: Any, file_id: str) -> Any:
    made = await gateway.openai().files.create(file=("notes.txt", b"text"), purpose="user_data")
    return await gateway.openai().fine_tuning.jobs.create(model="smollm2-135m-instruct", training_file=made.id)


async def no_key(gateway: Any, file_id: str) -> Any:
    return await _raise(gateway, await gateway.http().get("/v1/models", headers={"authorization": ""}))


async def wrong_key(gateway: Any, file_id: str) -> Any:
    return await gateway.openai("mk-" + "x" * 43).models.list()


async def no_such_job(gateway: Any, file_id: str) -> Any:
    return await gateway.openai().fine_tuning.jobs.retrieve("ftjob-doesnotexist")


async def cancel_of_a_finished_job(gateway: Any, file_id: str) -> Any:
    client = gateway.openai(max_retries=2)
    job = await client.fine_tuning.jobs.create(model="smollm2-135m-instruct", training_file=file_id)
    gateway.trainer.finish(job.id, fine_tuned_model="ft:x")
    try:
        return await client.fine_tuning.jobs.cancel(job.id)
    finally:
        calls = [call for call in gateway.trainer.calls if call.method == "CancelTrainingJob"]
        assert len(calls) == 1, "the stock client must not try a final conflict again"


async def chat_with_an_unknown_model(gateway: Any, file_id: str) -> Any:
    return await gateway.openai().chat.completions.create(model="smollm2-135m-instrct", messages=MESSAGES)


async def chat_when_the_base_is_not_loaded(gateway: Any, file_id: str) -> Any:
    gateway.stores.models.publish(PublishedModel("ft:q", "adapter", "acme", "a1", "qwen-tiny", lora_rank=8))
    return await gateway.openai().chat.completions.create(model="ft:q", messages=MESSAGES)


async def unknown_route(gateway: Any, file_id: str) -> Any:
    return await _raise(gateway, await gateway.http().get("/v1/nothing"))


async def bad_limit(gateway: Any, file_id: str) -> Any:
    return await gateway.openai().fine_tuning.jobs.list(limit=0)


async def bad_purpose(gateway: Any, file_id: str) -> Any:
    purpose: Any = "finetune"
    return await gateway.openai().files.create(file=("a.jsonl", b"{}"), purpose=purpose)


async def upload_over_the_limit(gateway: Any, file_id: str) -> Any:
    answer = await _head_only(gateway, content_length=600 * 1024 * 1024)
    assert b"x-should-retry: false" in answer
    status = int(answer[9:12])
    body = answer.split(b"\r\n\r\n", 1)[1]
    return await _raise(gateway, httpx.Response(status, content=body))


CASES: dict[Case, Expected] = {
    unknown_model: Expected(
        404, "model_not_found", "model", ("model: 'smolm2' is not", "did you mean smollm2-135m-instruct")
    ),
    row_without_assistant_turn: Expected(
        400, "invalid_training_file", "training_file", ("training_file: 1 of 3", "line 2")
    ),
    empty_file: Expected(400, "empty_file", "file", ("train.jsonl", "empty")),
    line_812_is_not_json: Expected(400, "invalid_training_file", "training_file", ("line 812", "skip")),
    nothing_but_garbage: Expected(400, "invalid_file_format", "file", ("line 1", "line 2", "JSON")),
    wrong_type: Expected(400, "invalid_argument", "method.supervised.hyperparameters.n_epochs", ('"auto"', "'three'")),
    out_of_range: Expected(400, "invalid_argument", "hyperparameters.n_epochs", ("1 to 50", "51")),
    martlet_wrong_type: Expected(400, "invalid_argument", "martlet.tuner.lora_rank", ("integer", "eight")),
    martlet_out_of_range: Expected(
        400, "invalid_argument", "martlet.hyperparameters.learning_rate", ("is 11.0", "<= 10")
    ),
    martlet_misspelt: Expected(400, "unknown_parameter", "martlet.lora_rnk", ("`lora_rank`",)),
    unknown_field: Expected(400, "unknown_parameter", "lora_rank", ("`martlet`",)),
    missing_field: Expected(400, "missing_required_parameter", "training_file", ("required",)),
    body_is_not_json: Expected(400, "invalid_argument", None, ("not valid JSON",)),
    chat_body_is_not_json: Expected(400, "invalid_json", None, ("not valid JSON",)),
    chat_without_model: Expected(400, "missing_required_parameter", "model", ("required",)),
    file_of_another_tenant: Expected(404, "file_not_found", "training_file", ("No such File object",)),
    reading_another_tenants_file: Expected(404, "file_not_found", "id", ("No such File object",)),
    file_of_another_purpose: Expected(400, "invalid_argument", "training_file", ("user_data", "fine-tune")),
    no_key: Expected(401, "invalid_api_key", None, ("API key",)),
    wrong_key: Expected(401, "invalid_api_key", None, ("API key",)),
    no_such_job: Expected(404, "fine_tune_not_found", "fine_tuning_job_id", ("ftjob-doesnotexist",)),
    cancel_of_a_finished_job: Expected(409, "illegal_transition", None, ("SUCCEEDED",)),
    chat_with_an_unknown_model: Expected(404, "model_not_found", "model", ("Did you mean `smollm2-135m-instruct`",)),
    chat_when_the_base_is_not_loaded: Expected(503, "model_not_loaded", "model", ("`qwen-tiny`", "not loaded")),
    unknown_route: Expected(404, "not_found", None, ("GET /v1/nothing", "/docs")),
    bad_limit: Expected(400, "invalid_argument", "limit", ("greater than or equal to 1",)),
    bad_purpose: Expected(400, "invalid_argument", "purpose", ("finetune", "fine-tune")),
    upload_over_the_limit: Expected(413, "payload_too_large", "file", ("536870912", "/v1/uploads")),
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
async def test_bad_input_says_what_to_do(gateway: Any, case: Case) -> None:
    expected = CASES[case]
    file_id = await gateway.upload()
    with pytest.raises(openai.APIStatusError) as caught:
        await case(gateway, file_id)
    error = caught.value
    assert (error.status_code, error.code, error.param) == (expected.status, expected.code, expected.param)
    message = error.body["message"]  # type: ignore[index]
    assert all(part in message for part in expected.text), message
    assert error.body["type"]  # type: ignore[index]


async def test_answers_to_no_key_and_wrong_keys_are_the_same(gateway: Any) -> None:
    http = gateway.http()
    bodies = set()
    for value in ("", "Basic abc", "Bearer", "Bearer sk-123", "Bearer mk-" + "y" * 43):
        answer = await http.get("/v1/files", headers={"authorization": value})
        assert answer.status_code == 401
        assert answer.headers["x-request-id"]
        bodies.add(answer.content)
    assert len(bodies) == 1


async def test_deleted_key_stops_working(gateway: Any) -> None:
    keys = ApiKeyStore(gateway.stores.objects)
    secret, key = keys.create("acme")
    http = gateway.http(secret)
    assert (await http.get("/v1/files")).status_code == 200
    keys.revoke(key.id)
    deadline = asyncio.get_running_loop().time() + 5
    while (await http.get("/v1/files")).status_code != 401:
        assert asyncio.get_running_loop().time() < deadline


async def test_no_key_is_asked_for_where_none_can_be(gateway: Any) -> None:
    http = gateway.http()
    http.headers.pop("authorization")
    for path in ("/healthz", "/readyz", "/metrics", "/docs", "/openapi.json"):
        assert (await http.get(path)).status_code == 200, path
    assert (await http.get("/redoc")).status_code == 401


async def test_retry_after_is_a_header(gateway: Any) -> None:
    gateway.stores.models.publish(PublishedModel("ft:q", "adapter", "acme", "a1", "qwen-tiny", lora_rank=8))
    answer = await gateway.http().post("/v1/chat/completions", json={"model": "ft:q", "messages": MESSAGES})
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) > 0


async def test_fault_of_ours_hides_its_text(gateway: Any, caplog: pytest.LogCaptureFixture) -> None:
    gateway.trainer.failures["ListTrainingJobs"] = [RuntimeError("secret detail")]
    answer = await gateway.http().get("/v1/fine_tuning/jobs")
    assert answer.status_code == 500
    assert "secret detail" not in answer.text
    assert answer.headers["x-request-id"] in answer.json()["error"]["message"]


async def _head_only(gateway: Any, content_length: int) -> bytes:
    """Announce a large upload, send none of it, and return the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.server.http_port)
    writer.write(
        b"POST /v1/files HTTP/1.1\r\nhost: x\r\nauthorization: Bearer %s\r\ncontent-length: %d\r\n"
        b"content-type: multipart/form-data; boundary=b\r\n\r\n" % (gateway.key.encode(), content_length)
    )
    async with asyncio.timeout(10):
        answer = await reader.readuntil(b"\r\n\r\n")
        length = int(answer.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        answer += await reader.readexactly(length)
    writer.close()
    return answer


async def _raise(gateway: Any, answer: Any) -> Any:
    """Raise as the stock client would, for requests that it can't be made to send."""
    body = answer.json()["error"]
    client = gateway.openai()
    request = httpx2.Request("GET", "http://test")
    response = httpx2.Response(answer.status_code, request=request, content=answer.content)
    raise client._make_status_error(body["message"], body=body, response=response)
