"""A target over HTTP: repetitions, deadlines, labels, log-probabilities."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from martlet_evaluator.targets.base import Answer, Sampling
from martlet_evaluator.targets.http import Endpoint, HttpTarget, retry_after

ASK = [{"role": "user", "content": "hello"}]


def ask(url: str, call: Any, **endpoint: Any) -> Answer:
    """One question in a loop of its own."""

    async def run() -> Answer:
        target = HttpTarget("t", "model", Endpoint(url, {"authorization": "Bearer k"}, **endpoint))
        try:
            return await call(target)
        finally:
            await target.close()

    return asyncio.run(run())


def chat(target: HttpTarget) -> Any:
    return target.chat(ASK, Sampling(max_tokens=7, temperature=0.5, seed=3))


def in_turn(*said: Any) -> Any:
    """A model that says one thing after the other."""
    queue = list(said)
    return lambda body: queue.pop(0)


def test_a_question_and_its_answer(server: Any) -> None:
    server.models["model"] = lambda body: "hello there"
    answer = ask(server.url, chat)
    assert (answer.text, answer.completion_tokens, answer.prompt_tokens, answer.attempts) == ("hello there", 2, 5, 1)
    (body,) = server.requests
    assert (body["max_tokens"], body["temperature"], body["seed"]) == (7, 0.5, 3)


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_asked_again_when_it_says(server: Any, status: int) -> None:
    server.models["model"] = in_turn(
        (status, {"retry-after": "0"}, "busy"), (status, {"retry-after": "0.1"}, "busy"), "ok"
    )
    answer = ask(server.url, chat)
    assert (answer.text, answer.attempts, answer.error) == ("ok", 3, "")
    assert answer.seconds >= 0.1


def test_a_server_that_stays_busy_is_given_up_at_the_deadline(server: Any) -> None:
    server.models["model"] = lambda body: (503, {"retry-after": "0.1"}, "no replica")
    answer = ask(server.url, chat, deadline_seconds=0.35)
    assert answer.error.startswith("HTTP 503: no replica (after ")
    assert answer.attempts in (3, 4)


def test_a_wrong_request_is_not_repeated(server: Any) -> None:
    server.models["model"] = in_turn((404, {}, "no such model"))
    assert ask(server.url, chat).error == "HTTP 404: no such model"


def test_an_answer_that_is_none_is_an_error(server: Any) -> None:
    server.models["model"] = lambda body: {"object": "something"}
    assert "isn't OpenAI's" in ask(server.url, chat).error


def test_a_redirect_is_not_followed(server: Any) -> None:
    server.models["model"] = lambda body: (307, {"location": server.url + "/chat/completions"}, "elsewhere")
    assert ask(server.url, chat).error.startswith("HTTP 307")
    assert len(server.requests) == 1


def test_nobody_there(server: Any) -> None:
    answer = ask("http://127.0.0.1:9/v1", chat, deadline_seconds=0.2)
    assert "Cannot connect" in answer.error


def test_labels_are_asked_for_until_the_endpoint_refuses_them(server: Any) -> None:
    def strict(body: Any) -> Any:
        return (400, {}, "Unrecognized request argument: structured_outputs") if "structured_outputs" in body else "yes"

    server.models["model"] = strict

    async def twice(target: HttpTarget) -> Answer:
        assert target.constrains
        for _ in range(2):
            answer = await target.chat(ASK, Sampling(), choices=("yes", "no"))
        assert not target.constrains
        return answer

    assert ask(server.url, twice).text == "yes"
    assert ["structured_outputs" in body for body in server.requests] == [True, False, False]


def test_a_stream_is_timed(server: Any) -> None:
    def thinks(body: Any) -> str:
        threading.Event().wait(0.05)
        return "one two three"

    server.models["model"] = thinks
    answer = ask(server.url, lambda target: target.stream(ASK, Sampling()))
    assert answer.text == "one two three "
    assert answer.completion_tokens == 3
    assert len(answer.data["gaps"]) == 2
    assert answer.data["first_token_seconds"] >= 0.05
    assert sum(answer.data["gaps"]) < 0.05


def test_an_answer_is_scored_by_the_prompts_log_probabilities(server: Any) -> None:
    def vllm(body: Any) -> Any:
        if "prompt_logprobs" not in body:
            return "x"  # the conversation up to the answer: 5 tokens
        assert body["messages"][-1] == {"role": "assistant", "content": "fine"}
        assert body["continue_final_message"]
        assert body["add_generation_prompt"] is False
        entries = [None, *({str(i): {"logprob": -0.1 * i, "rank": 1, "decoded_token": "t"}} for i in range(1, 7))]
        return {"choices": [{"message": {"content": ""}}], "prompt_logprobs": entries, "usage": {"prompt_tokens": 7}}

    server.models["model"] = vllm
    answer = ask(server.url, lambda target: target.score_answer(ASK, "fine"))
    assert answer.data["logprobs"] == pytest.approx([-0.5, -0.6])


def test_an_engine_without_log_probabilities_is_named(server: Any) -> None:
    server.models["model"] = lambda body: "x"
    for call in (lambda t: t.score_answer(ASK, "fine"), lambda t: t.score_text("a", "b")):
        assert "no log-probabilities" in ask(server.url, call).error


def _echo(tokens: list[str], prompt_tokens: int) -> Any:
    numbers = [None, *(-0.1 * i for i in range(1, len(tokens)))]
    best = [None, *({token: -0.1 * i, "other": -0.25} for i, token in enumerate(tokens[1:], 1))]
    logprobs = {"tokens": tokens, "token_logprobs": numbers, "top_logprobs": best}
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": 1}
    return {"choices": [{"text": "", "logprobs": logprobs}], "usage": usage}


def test_a_continuation_is_scored_behind_its_context(server: Any) -> None:
    server.models["model"] = lambda body: _echo(["The", " sky", " is", " blue", "!"], 4)
    answer = ask(server.url, lambda target: target.score_text("The sky is", " blue"))
    assert answer.data["logprobs"] == pytest.approx([-0.3])
    assert answer.data["is_greedy"] is False  # " other" had -0.25
    answer = ask(server.url, lambda target: target.score_text("The sky", " is blue"))
    assert answer.data["logprobs"] == pytest.approx([-0.2, -0.3])


def test_a_text_of_one_token_has_no_probability(server: Any) -> None:
    server.models["model"] = lambda body: _echo(["yes", "!"], 1)
    answer = ask(server.url, lambda target: target.score_text("", "yes"))
    assert "one token" in answer.error


def test_a_token_over_the_border_is_settled_by_counting_the_contexts_tokens(server: Any) -> None:
    def engine(body: Any) -> Any:
        if not body["echo"]:
            assert body["prompt"] == "The sk"
            return {"choices": [{"text": ""}], "usage": {"prompt_tokens": 2, "completion_tokens": 1}}
        return _echo(["The", " sky", " is", "!"], 3)

    server.models["model"] = engine
    answer = ask(server.url, lambda target: target.score_text("The sk", "y is"))
    assert answer.data["logprobs"] == pytest.approx([-0.2])


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("3", 3.0), ("0.5", 0.5), ("-1", 0.0), (None, None), ("soon", None), ("Thu, 01 Jan 1970 00:01:40 GMT", 40.0)],
)
def test_retry_after(header: str | None, seconds: float | None) -> None:
    assert retry_after(header, now=60.0) == seconds
