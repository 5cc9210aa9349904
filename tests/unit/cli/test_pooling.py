"""``martlet embed``, ``classify`` and ``rerank``: what they ask the gateway for, and what they print."""

from __future__ import annotations

import io
from typing import Any

import pytest


def test_embed_prints_where_vectors_point_and_json_all_of_them(gateway: Any, martlet: Any) -> None:
    gateway.answers["POST /v1/embeddings"] = {"data": [{"index": 0, "embedding": [0.5, -1.0, 0.25, 0.125, 2.0]}]}
    ran = martlet("embed", "a swift", "--model", "minilm")
    assert ran.out.split("\n")[1] == "a swift\t5\t0.5000, -1.0000, 0.2500, 0.1250, …"
    assert martlet("embed", "a swift", "--model", "minilm", "--json").json[0]["embedding"][4] == 2.0
    assert gateway.bodies("/v1/embeddings") == [{"model": "minilm", "input": ["a swift"]}] * 2


def test_classify_reads_texts_from_stdin(gateway: Any, martlet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    data = [{"index": i, "label": label, "probs": [0.25, 0.75]} for i, label in enumerate(("good", "bad"))]
    gateway.answers["POST /v1/classify"] = {"data": data}
    monkeypatch.setattr("sys.stdin", io.StringIO("one\n\ntwo\n"))
    ran = martlet("classify", "-", "--model", "m")
    assert ran.out.split("\n")[1:3] == ["good\t0.75\tone", "bad\t0.75\ttwo"]
    assert gateway.bodies("/v1/classify") == [{"model": "m", "input": ["one", "two"]}]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    assert martlet("classify", "-", "--model", "m").code == 2


def test_rerank_prints_the_best_first(gateway: Any, martlet: Any) -> None:
    gateway.answers["POST /v1/rerank"] = {"results": [{"index": 1, "relevance_score": 0.5}]}
    ran = martlet("rerank", "fast bird", "stone", "swift", "--top_n", "1", "--model", "m")
    assert ran.out.split("\n")[1] == "0.5\tswift"
    assert gateway.bodies("/v1/rerank") == [
        {"model": "m", "query": "fast bird", "documents": ["stone", "swift"], "top_n": 1}
    ]
