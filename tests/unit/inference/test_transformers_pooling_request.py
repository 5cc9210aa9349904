"""What the transformers engine reads in a body of a pooling route, and what it refuses by name. No torch is needed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from martlet_inference.engines.base import Route
from martlet_inference.engines.transformers_pooling_request import PoolingRequest, parse
from martlet_inference.engines.transformers_request import BadRequest

MESSAGES = [{"role": "user", "content": "hi"}]


def ask(route: Route, **fields: Any) -> PoolingRequest:
    return parse(route, json.dumps({"model": "m", **fields}).encode())


@pytest.mark.parametrize(
    ("given", "read"),
    [("a", ["a"]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1, 2], [3]], [[1, 2], [3]])],
)
def test_input_is_a_text_tokens_or_a_list_of_either(given: Any, read: list[Any]) -> None:
    assert ask(Route.EMBEDDINGS, input=given).inputs == read


@pytest.mark.parametrize("wrong", [None, [], [[]], 7, ["a", [1]], ["a", 1], [True], [[1], ["a"]]])
def test_other_inputs_are_refused(wrong: Any) -> None:
    with pytest.raises(BadRequest) as caught:
        ask(Route.EMBEDDINGS, input=wrong)
    assert caught.value.param == "input"


def test_the_fields_of_an_embedding() -> None:
    options = {"encoding_format": "base64", "dimensions": 8, "truncate_prompt_tokens": -1, "use_activation": False}
    request = ask(Route.EMBEDDINGS, input="a", user="u", add_special_tokens=False, **options)
    assert (request.base64, request.dimensions, request.truncate) == (True, 8, -1)
    assert (request.activation, request.special_tokens) == (False, False)
    plain = ask(Route.EMBEDDINGS, input="a")
    assert (plain.base64, plain.dimensions, plain.truncate, plain.activation) == (False, None, None, None)


def test_a_conversation_takes_the_place_of_the_input() -> None:
    request = ask(Route.CLASSIFY, messages=MESSAGES)
    assert (request.inputs, list(request.messages), request.new_turn) == ((), MESSAGES, False)
    with pytest.raises(BadRequest, match="both given"):
        ask(Route.CLASSIFY, messages=MESSAGES, input="a")


@pytest.mark.parametrize(
    ("first", "second"), [("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2")]
)
def test_a_score_has_two_sides(first: str, second: str) -> None:
    assert ask(Route.SCORE, **{first: "q", second: ["a", "b"]}).inputs == [("q", "a"), ("q", "b")]
    assert ask(Route.SCORE, **{first: ["p", "q"], second: ["a", "b"]}).inputs == [("p", "a"), ("q", "b")]
    with pytest.raises(BadRequest, match=f"{first} has 2 texts and {second} 1") as caught:
        ask(Route.SCORE, **{first: ["p", "q"], second: ["a"]})
    assert caught.value.param == second


def test_a_score_without_its_sides_or_with_two_pairs_is_refused() -> None:
    for fields in ({}, {"text_1": "a"}, {"text_1": "a", "text_2": "b", "data_1": "a", "data_2": "b"}):
        with pytest.raises(BadRequest, match="Give two sides"):
            ask(Route.SCORE, **fields)


def test_a_rerank_pairs_the_query_with_each_document() -> None:
    request = ask(Route.RERANK, query="q", documents=["a", "b"], top_n=1, return_documents=False)
    assert request.inputs == [("q", "a"), ("q", "b")]
    assert (request.top_n, request.return_documents) == (1, False)
    for fields, param in (
        ({"documents": ["a"]}, "query"),
        ({"query": "q"}, "documents"),
        ({"query": "q", "documents": []}, "documents"),
        ({"query": "q", "documents": ["a", {"text": "b"}]}, "documents[1]"),
        ({"query": "q", "documents": ["a"], "top_n": -1}, "top_n"),
    ):
        with pytest.raises(BadRequest) as caught:
            ask(Route.RERANK, **fields)
        assert caught.value.param == param


@pytest.mark.parametrize(
    ("route", "field", "value"),
    [
        (Route.CLASSIFY, "dimensions", 8),
        (Route.EMBEDDINGS, "task", "embed"),
        (Route.EMBEDDINGS, "normalize", True),
        (Route.EMBEDDINGS, "dimensions", 0),
        (Route.EMBEDDINGS, "truncate_prompt_tokens", 0),
        (Route.EMBEDDINGS, "encoding_format", "bytes"),
        (Route.POOLING, "use_activation", 1),
        (Route.RERANK, "max_tokens_per_doc", 5),
    ],
)
def test_what_is_not_honoured_is_refused_by_name(route: Route, field: str, value: Any) -> None:
    rest = {"query": "q", "documents": ["a"]} if route is Route.RERANK else {"input": "a"}
    with pytest.raises(BadRequest) as caught:
        ask(route, **rest, **{field: value})
    assert caught.value.param == field
