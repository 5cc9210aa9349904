"""What the transformers engine reads of a body, and what it refuses by name. No torch is needed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from martlet_inference.engines.base import Route
from martlet_inference.engines.transformers_request import ASKS_FOR_NOTHING, HONOURED, LABELS, BadRequest, parse
from martlet_inference.engines.transformers_text import Detokenizer, StopTexts

MESSAGES = [{"role": "user", "content": "hi"}]


def chat(**fields: Any) -> Any:
    return parse(Route.CHAT_COMPLETIONS, json.dumps({"model": "m", "messages": MESSAGES, **fields}).encode())


def complete(**fields: Any) -> Any:
    return parse(Route.COMPLETIONS, json.dumps({"model": "m", "prompt": "a", **fields}).encode())


def refusal(ask: Any, **fields: Any) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        ask(**fields)
    return caught.value


def test_the_fields_of_a_chat() -> None:
    options = {"temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1}
    more = {"seed": 7, "stop": "x", "n": 2, "logprobs": True, "top_logprobs": 3, "max_completion_tokens": 9}
    request = chat(
        **options, **more, max_tokens=5, ignore_eos=True, stream=True, stream_options={"include_usage": True}
    )
    assert request.chat
    assert (request.model, request.input) == ("m", MESSAGES)
    assert request.sampling == options
    assert (request.seed, request.stop, request.choices, request.top_logprobs) == (7, ("x",), 2, 3)
    assert (request.max_tokens, request.stream, request.include_usage, request.ignore_eos) == (9, True, True, True)
    plain = chat()
    assert (plain.max_tokens, plain.sampling, plain.seed, plain.stop) == (None, {}, None, ())
    assert (plain.choices, plain.top_logprobs, plain.stream, plain.new_turn) == (1, None, False, True)
    assert not plain.ignore_eos


def test_the_fields_of_a_completion() -> None:
    assert complete().max_tokens == 16
    assert complete(prompt=[1, 2]).input == [1, 2]
    assert complete(logprobs=2).top_logprobs == 2
    assert not complete().chat


def test_text_in_parts_is_text() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert chat(messages=[{"role": "user", "content": parts}]).input == [{"role": "user", "content": "a\nb"}]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", [{"type": "function"}]),
        ("tool_choice", "required"),
        ("response_format", {"type": "json_object"}),
        ("structured_outputs", {"choice": ["a"]}),
        ("guided_json", {}),
        ("frequency_penalty", 0.5),
        ("presence_penalty", -1),
        ("logit_bias", {"5": 1}),
        ("modalities", ["text", "audio"]),
        ("store", True),
        ("min_tokens", 3),
        ("prompt_logprobs", 0),
        ("temprature", 0.5),
    ],
)
def test_what_is_not_honoured_is_refused_by_name(field: str, value: Any) -> None:
    refused = refusal(chat, **{field: value})
    assert refused.param == field
    assert f"`{field}`" in str(refused)


def test_a_field_of_the_other_route_is_refused() -> None:
    assert refusal(complete, top_logprobs=1).param == "top_logprobs"
    assert refusal(chat, prompt="x").param == "prompt"
    assert refusal(complete, echo=True).param == "echo"


def test_values_that_ask_for_nothing_and_labels_are_taken() -> None:
    for field, values in ASKS_FOR_NOTHING.items():
        for value in (*values, None):
            chat(**{field: value})
    chat(**dict.fromkeys(LABELS, "x"))


def test_the_lists_of_fields_do_not_overlap() -> None:
    for honoured in HONOURED.values():
        assert not honoured & LABELS
        assert not honoured & set(ASKS_FOR_NOTHING)
    assert not LABELS & set(ASKS_FOR_NOTHING)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "warm"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"seed": 1.5}, "seed"),
        ({"stop": ["a", ""]}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_obfuscation": True}}, "stream_options"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"messages": 7}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [{"content": "x"}]}, "messages[0]"),
        ({"messages": [*MESSAGES, {"role": "robot", "content": "x"}]}, "messages[1]"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content[0]",
        ),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": "1"}]}]}, "messages[0].tool_calls"),
        ({"continue_final_message": True}, "continue_final_message"),
    ],
)
def test_a_malformed_field_is_named(fields: dict[str, Any], param: str) -> None:
    assert refusal(chat, **fields).param == param


@pytest.mark.parametrize("prompt", [None, 7, [], ["a", "b"], [1, True], {}])
def test_a_malformed_prompt_is_named(prompt: Any) -> None:
    assert refusal(complete, prompt=prompt).param == "prompt"


@pytest.mark.parametrize("body", [b"{", b"[]", b"7"])
def test_a_body_that_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequest):
        parse(Route.CHAT_COMPLETIONS, body)


def test_characters_are_told_when_they_are_whole() -> None:
    letters = "a\N{EURO SIGN}b".encode()
    detokenizer = Detokenizer(lambda tokens: bytes(tokens).decode(errors="replace"))
    assert [detokenizer.add(byte) for byte in letters] == ["a", "", "", "\N{EURO SIGN}", "b"]
    assert detokenizer.rest() == ""
    broken = Detokenizer(lambda tokens: bytes(tokens).decode(errors="replace"))
    assert broken.add(letters[1]) == ""
    assert broken.rest() == "\ufffd"


def test_an_answer_ends_before_its_first_stop_text() -> None:
    stop = StopTexts(["END", "ever"])
    assert [stop.add(text) for text in ("one E", "N", "x EN", "D two ever")] == ["one ", "", "ENx ", ""]
    assert stop.found
    assert StopTexts(["bc", "abcd"]).add("xabcdy") == "x"


def test_what_only_looked_like_a_stop_text_is_told_in_the_end() -> None:
    stop = StopTexts(["END"])
    assert (stop.add("the EN"), stop.rest(), stop.found) == ("the ", "EN", False)
    assert StopTexts([]).add("all of it") == "all of it"


def test_tokens_are_told_where_that_is_asked_for() -> None:
    assert complete(return_token_ids=True).token_ids
    assert not complete().token_ids
    assert refusal(complete, return_token_ids=True, stream=True).param == "return_token_ids"
