"""OpenAI's reinforcement fine-tuning: its graders as rewards, and the routes that try one, with the stock client."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from google.protobuf.json_format import MessageToDict
from martlet_gateway.testing.replica import scripted

CHECK: dict[str, Any] = {
    "type": "string_check",
    "name": "exact",
    "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}",
    "operation": "eq",
}
ALIKE: dict[str, Any] = {
    "type": "text_similarity",
    "name": "alike",
    "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}",
    "evaluation_metric": "fuzzy_match",
}
BOTH: dict[str, Any] = {
    "type": "multi",
    "name": "both",
    "graders": {"exact": CHECK, "alike": ALIKE},
    "calculate_output": "0.25 * exact + 0.75 * alike",
}
JUDGE: dict[str, Any] = {
    "type": "score_model",
    "name": "judge",
    "model": "m",
    "input": [{"role": "user", "content": "Rate {{sample.output_text}}"}],
}

LABEL: dict[str, Any] = {**JUDGE, "type": "label_model", "labels": ["good", "bad"], "passing_labels": ["good"]}


@pytest.fixture
async def client(gateway: Any) -> openai.AsyncOpenAI:
    return gateway.openai()


async def create(gateway: Any, client: openai.AsyncOpenAI, tools: Any, reinforcement: Any, **fields: Any) -> Any:
    method: Any = {"type": "reinforcement", "reinforcement": reinforcement}
    train = await gateway.upload()
    return await client.fine_tuning.jobs.create(model=tools.base, training_file=train, method=method, **fields)


async def test_a_grader_becomes_a_reward_of_grpo(gateway: Any, client: openai.AsyncOpenAI, tools: Any) -> None:
    numbers = {"n_epochs": 2, "batch_size": 16, "eval_interval": 5, "compute_multiplier": "auto"}
    valid = await gateway.upload(5)
    asked = {"grader": BOTH, "hyperparameters": numbers, "response_format": {"type": "text"}}
    extension = {"martlet": {"recipe_options": {"num_generations": 4}}}
    job = await create(gateway, client, tools, asked, validation_file=valid, extra_body=extension)
    spec = gateway.trainer.calls[-1].request.training_job.spec
    assert spec.recipe == "grpo"
    assert MessageToDict(spec.recipe_options) == {"num_generations": 4.0, "graders": [BOTH]}
    assert (spec.hyperparameters.epoch_count, spec.hyperparameters.eval_steps) == (2, 5)
    assert spec.hyperparameters.per_device_batch_size * spec.hyperparameters.gradient_accumulation_steps == 16
    assert job.method.type == "reinforcement"
    assert job.method.reinforcement.grader.model_dump(exclude_none=True) == BOTH
    found = job.method.reinforcement.hyperparameters
    assert (found.n_epochs, found.batch_size, found.eval_interval) == (2, 16, 5)


@pytest.mark.parametrize(
    ("asked", "param", "words"),
    [
        ({"grader": LABEL}, "method.reinforcement.grader.type", "score_model"),
        ({"grader": {**ALIKE, "evaluation_metric": "bleu"}}, "method.reinforcement.grader.evaluation_metric", "evals"),
        ({"grader": {"type": "python", "name": "p", "source": "x"}}, "method.reinforcement.grader.type", "sandbox"),
        (
            {"grader": {**BOTH, "graders": {"exact": CHECK, "alike": LABEL}}},
            "method.reinforcement.grader.graders.alike.type",
            "score_model",
        ),
        (
            {"grader": {**BOTH, "calculate_output": "exact + ugly"}},
            "method.reinforcement.grader.calculate_output",
            "ugly",
        ),
        ({"grader": {**CHECK, "input": "{{sample.thoughts}}"}}, "method.reinforcement.grader", "output_json"),
        ({"grader": {**CHECK, "operation": "near"}}, "method.reinforcement.grader.operation", "near"),
        (
            {"grader": CHECK, "hyperparameters": {"compute_multiplier": 2}},
            "method.reinforcement.hyperparameters.compute_multiplier",
            "",
        ),
        (
            {"grader": CHECK, "hyperparameters": {"reasoning_effort": "high"}},
            "method.reinforcement.hyperparameters.reasoning_effort",
            "",
        ),
        (
            {"grader": CHECK, "response_format": {"type": "json_schema", "json_schema": {}}},
            "method.reinforcement.response_format",
            "",
        ),
    ],
)
async def test_what_is_not_offered_is_refused(
    gateway: Any, client: openai.AsyncOpenAI, tools: Any, asked: Any, param: str, words: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await create(gateway, client, tools, asked)
    assert caught.value.param.startswith(param)  # type: ignore[union-attr]
    assert words in caught.value.message
    assert not gateway.trainer.calls


async def test_graders_are_given_in_one_place(gateway: Any, client: openai.AsyncOpenAI, tools: Any) -> None:
    extension = {"martlet": {"recipe_options": {"graders": [CHECK]}}}
    with pytest.raises(openai.BadRequestError, match="can't be given together"):
        await create(gateway, client, tools, {"grader": CHECK}, extra_body=extension)


async def test_a_grader_is_tried(client: openai.AsyncOpenAI) -> None:
    graders: Any = client.fine_tuning.alpha.graders
    found = await graders.run(grader=BOTH, model_sample="Lisbo", item={"answer": "Lisbon"})
    alike = 10 / 11  # difflib: twice the five letters in common, of eleven
    assert found.reward == pytest.approx(0.75 * alike)
    assert found.sub_rewards == {"exact": 0.0, "alike": pytest.approx(alike)}
    assert (found.metadata.name, found.metadata.type) == ("both", "multi")
    assert found.metadata.execution_time > 0
    assert not any(value for value in found.metadata.errors.model_dump().values())


@pytest.mark.parametrize(("sample", "reward"), [('{"answer": {"city": "Lisbon"}}', 1.0), ("Lisbon", 0.0), ("[1]", 0.0)])
async def test_an_answer_that_is_json_has_fields(client: openai.AsyncOpenAI, sample: str, reward: float) -> None:
    graders: Any = client.fine_tuning.alpha.graders
    grader = {**CHECK, "input": "{{sample.output_json.answer.city}}"}
    found = await graders.run(grader=grader, model_sample=sample, item={"answer": "Lisbon"})
    assert found.reward == reward
    assert found.metadata.errors.invalid_variable_error == (reward == 0.0)


async def test_a_definition_is_checked(client: openai.AsyncOpenAI) -> None:
    graders: Any = client.fine_tuning.alpha.graders
    assert (await graders.validate(grader=BOTH)).grader.model_dump(exclude_none=True) == BOTH
    assert (await graders.validate(grader=JUDGE)).grader.name == "judge"
    for call in (graders.validate(grader=LABEL), graders.run(grader=LABEL, model_sample="a")):
        with pytest.raises(openai.BadRequestError, match="use `score_model`") as caught:
            await call
        assert caught.value.param == "grader.type"


def said(text: str) -> bytes:
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()


async def judged(client: openai.AsyncOpenAI, answer: str, **changes: Any) -> Any:
    graders: Any = client.fine_tuning.alpha.graders
    return await graders.run(grader={**JUDGE, **changes}, model_sample=answer, item={"answer": "Lisbon"})


async def test_a_judge_is_tried_as_the_caller(gateway: Any, client: openai.AsyncOpenAI) -> None:
    async with scripted(gateway, "replica", models=["m"]) as replica:
        for text, reward in (("0.5", 0.5), ("I say 1", 1.0)):
            replica.answer = said(text)
            found = await judged(client, "Lisbon")
            assert (found.reward, found.metadata.sampled_model_name) == (reward, "m")
            assert not any(found.metadata.errors.model_dump().values())
        replica.answer = said("no idea")
        found = await judged(client, "Lisbon")
        assert (found.reward, found.metadata.errors.model_grader_parse_error) == (0.0, True)
    found = await judged(client, "Lisbon", model="nobody")
    assert (found.reward, found.metadata.errors.model_grader_server_error) == (0.0, True)
    assert "nobody" in found.metadata.errors.model_grader_server_error_details
    asking = [{"role": "user", "content": "{{sample.output_json.city}}"}]
    found = await judged(client, "no json", input=asking)
    assert (found.reward, found.metadata.errors.invalid_variable_error) == (0.0, True)
