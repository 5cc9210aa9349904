"""Suites for models that don't generate, end to end against a server over real HTTP; their numbers beside hand-made ones."""

from __future__ import annotations

import math
from typing import Any

import pytest
from martlet_core.errors import FailedPrecondition, InvalidArgument
from martlet_evaluator import ranking
from martlet_evaluator.config import parse_evaluation_config
from martlet_evaluator.suites.embedding import spearman

#: Directions of texts in the plane, in degrees.
ANGLES = {"swift": 0, "fast bird": 10, "stone": 90, "rock": 80, "bread": 200, "loaf": 215, "lost": 170}


def vector(text: str) -> list[float]:
    angle = math.radians(ANGLES[text])
    return [3 * math.cos(angle), 3 * math.sin(angle)]


def embed(body: Any) -> Any:
    data = [{"index": index, "embedding": vector(text)} for index, text in enumerate(body["input"])]
    return {"data": data[::-1], "usage": {"prompt_tokens": len(data), "total_tokens": len(data)}}


def test_ranks_are_counted_from_one_and_ties_count_against_the_model() -> None:
    assert ranking.ranks([0.9, 0.1, 0.5], [0]) == [1]
    assert ranking.ranks([0.1, 0.9, 0.5], [0]) == [3]
    assert ranking.ranks([0.1, 0.9, 0.5], [0, 2]) == [2, 3]
    assert ranking.ranks([0.5, 0.5, 0.5], [0]) == [3]
    assert ranking.reciprocal_rank([2, 3]) == 0.5
    assert [ranking.recall([2, 30], k) for k in (1, 2, 30)] == [0, 0.5, 1]
    assert ranking.ndcg([1, 3], 10) == pytest.approx((1 + 1 / math.log2(4)) / (1 + 1 / math.log2(3)))
    assert ranking.ndcg([1, 2, 3], 2) == pytest.approx(1)
    assert ranking.ndcg([11], 10) == 0


def test_retrieval_looks_among_the_texts_of_all_rows(server: Any, evaluate: Any) -> None:
    server.models["model"] = embed
    rows = [
        {"query": "swift", "positive": "fast bird"},
        {
            "messages": [{"role": "user", "content": "stone"}],
            "positive_messages": [[{"role": "user", "content": "rock"}]],
        },
        {"anchor": "bread", "positive": "lost", "negative": ["loaf"]},
    ]
    done = evaluate(rows, [{"suite": "embedding", "options": {"k": 2, "batch_size": 3}}])
    metrics = done.metrics["model"]
    assert metrics["embedding.recall@1"]["value"] == pytest.approx(2 / 3)  # loaf is nearer to bread than lost
    assert metrics["embedding.recall@2"]["value"] == 1
    assert metrics["embedding.mrr"]["value"] == pytest.approx((1 + 1 + 1 / 2) / 3)
    assert metrics["embedding.ndcg@2"]["value"] == pytest.approx((2 + 1 / math.log2(3)) / 3)
    assert metrics["embedding.mrr"]["low"] <= metrics["embedding.mrr"]["high"]
    assert [len(request["input"]) for request in server.requests] == [3, 3, 1]
    assert {request["path"] for request in server.requests} == {"/v1/embeddings"}
    assert done.records[2]["details"]["texts"] == 7


def test_a_text_is_not_to_find_itself(server: Any, evaluate: Any) -> None:
    server.models["model"] = embed
    rows = [{"query": "swift", "positive": "fast bird"}, {"query": "fast bird", "positive": "swift"}]
    assert evaluate(rows, ["embedding"]).metrics["model"]["embedding.recall@1"]["value"] == 1


def test_similarity_is_the_rank_correlation_with_the_rows_numbers(server: Any, evaluate: Any) -> None:
    server.models["model"] = embed
    pairs = [("swift", "fast bird", 0.9), ("stone", "rock", 0.8), ("bread", "loaf", 0.95), ("swift", "lost", 0.1)]
    rows = [{"sentence1": one, "sentence2": two, "score": score} for one, two, score in pairs]
    done = evaluate(rows, [{"suite": "embedding", "options": {"measure": "similarity"}}])
    cosines = [math.cos(math.radians(ANGLES[one] - ANGLES[two])) for one, two, _ in pairs]
    assert [record["scores"]["cosine"] for record in done.records] == pytest.approx(cosines)
    # The two pairs of 10 degrees share ranks 3.5: computed by hand from the ranks (3.5, 3.5, 2, 1) and (3, 2, 4, 1).
    x, y = (1.0, 1.0, -0.5, -1.5), (0.5, -0.5, 1.5, -1.5)
    expected = sum(a * b for a, b in zip(x, y, strict=True)) / math.sqrt(sum(a * a for a in x) * sum(b * b for b in y))
    assert done.metrics["model"]["embedding.spearman"]["value"] == pytest.approx(expected)


def test_spearman_of_the_same_order_is_one_whatever_the_numbers() -> None:
    assert spearman(range(4), [1, 2, 3, 40], [-1, 0, 5, 6]).value == pytest.approx(1)
    assert spearman(range(4), [1, 2, 3, 4], [4, 3, 2, 1]).value == pytest.approx(-1)


def test_vectors_that_do_not_come_fail_the_job_and_not_a_row(server: Any, evaluate: Any) -> None:
    server.models["model"] = lambda body: (400, {}, "no vectors today")
    with pytest.raises(FailedPrecondition, match="no vectors today"):
        evaluate([{"query": "swift", "positive": "stone"}], ["embedding"], max_failed_rows=5)


def test_a_reranker_is_measured_by_each_querys_own_documents(server: Any, evaluate: Any) -> None:
    scores = {"good": 0.9, "fair": 0.5, "bad": 0.1}
    reverse = {"a": scores, "b": {text: -score for text, score in scores.items()}}

    def model(name: str) -> Any:
        def answer(body: Any) -> Any:
            results = [{"index": i, "relevance_score": reverse[name][text]} for i, text in enumerate(body["documents"])]
            return {"results": sorted(results, key=lambda r: -r["relevance_score"]), "usage": {"prompt_tokens": 3}}

        return answer

    server.models.update({name: model(name) for name in reverse})
    rows = [{"query": f"q{i}", "positive": ["good"], "negative": ["fair", "bad"]} for i in range(12)]
    done = evaluate(rows, ["rerank"], targets=["a", "b"])
    assert done.metrics["a"]["rerank.mrr"]["value"] == 1
    assert done.metrics["b"]["rerank.mrr"]["value"] == pytest.approx(1 / 3)
    assert done.metrics["b"]["rerank.ndcg@10"]["value"] == pytest.approx(1 / math.log2(4))
    compared = {found["metric"]: found for found in done.result.values["comparisons"]}
    assert compared["rerank.mrr"]["difference"] == pytest.approx(-2 / 3)
    assert compared["rerank.mrr"]["p_value"] < 0.01


def test_a_reward_model_is_right_where_the_chosen_answer_scores_higher(server: Any, evaluate: Any) -> None:
    rewards = {"yes": 2.0, "no": -1.0, "so": 2.0}

    def answer(body: Any) -> Any:
        assert body["use_activation"] is False, "a sigmoid would make ties of large rewards"
        return {"data": [{"index": 0, "label": "LABEL_0", "probs": [rewards[body["messages"][-1]["content"]]]}]}

    server.models["model"] = answer
    asked = [{"role": "user", "content": "?"}]
    rows = [
        {"messages": [*asked, {"role": "assistant", "content": chosen}], "rejected_response": rejected}
        for chosen, rejected in (("yes", "no"), ("no", "yes"), ("yes", "so"), ("so", "no"))
    ]
    done = evaluate(rows, ["reward"])
    assert done.metrics["model"]["reward.accuracy"]["value"] == 0.5  # a tie is not in order
    assert done.metrics["model"]["reward.margin"]["value"] == pytest.approx((3 - 3 + 0 + 3) / 4)
    assert done.records[0]["details"] == {"chosen": 2.0, "rejected": -1.0}


def test_a_model_of_several_labels_is_no_reward_model(server: Any, evaluate: Any) -> None:
    server.models["model"] = lambda body: {"data": [{"index": 0, "label": "x", "probs": [0.1, 0.9]}]}
    rows = [
        {
            "messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "a"}],
            "rejected_response": "b",
        }
    ]
    with pytest.raises(FailedPrecondition, match="has 2 labels; a reward model has one"):
        evaluate(rows, ["reward"])


def test_a_classifier_is_asked_on_its_route(server: Any, evaluate: Any) -> None:
    def answer(body: Any) -> Any:
        probabilities = [0.8, 0.2] if "good" in body["input"] else [0.3, 0.7]
        return {"data": [{"index": 0, "label": ("pos", "neg")[probabilities[1] > 0.5], "probs": probabilities}]}

    server.models["model"] = answer
    suite = {"suite": "classification", "options": {"ask": "classify"}}
    named = [{"text": "good", "label": "pos"}, {"query": "poor", "label": "neg"}, {"text": "good?", "label": "neg"}]
    done = evaluate(named, [suite])
    assert done.metrics["model"]["classification.accuracy"]["value"] == pytest.approx(2 / 3)
    assert done.metrics["model"]["classification.macro_f1"]["value"] == pytest.approx(2 / 3)
    assert done.json["details"]["classification"]["model"]["confusion"]["counts"] == [[1, 1], [0, 1]]
    assert done.json["details"]["classification"]["model"]["notes"] == []
    stranger = evaluate([{"text": "good", "label": "other"}], [suite], name="stranger")
    assert stranger.metrics["model"]["classification.unreadable"]["value"] == 1
    assert "no row expects" in stranger.json["details"]["classification"]["model"]["notes"][0]
    numbered = [{**row, "label": ("pos", "neg").index(row["label"])} for row in named]
    again = evaluate(numbered, [suite], name="numbered")
    assert again.metrics["model"]["classification.accuracy"]["value"] == pytest.approx(2 / 3)
    assert {request["path"] for request in server.requests} == {"/v1/classify"}


def test_a_message_alone_is_a_text_for_a_classifier_without_a_template(server: Any, evaluate: Any) -> None:
    server.models["model"] = lambda body: (
        (400, {}, "the model has no chat template")
        if "messages" in body
        else {"data": [{"index": 0, "label": body["input"], "probs": [1.0]}]}
    )
    rows = [{"messages": [{"role": "user", "content": "pos"}], "label": "pos"}]
    done = evaluate(rows, [{"suite": "classification", "options": {"ask": "classify"}}])
    assert done.metrics["model"]["classification.accuracy"]["value"] == 1


@pytest.mark.parametrize(
    ("suite", "row", "said"),
    [
        ("embedding", {"query": "a"}, "has no known format"),
        ("embedding", {"query": "a", "positive": " "}, "positive"),
        ("rerank", {"query": "a", "positive": "b"}, "negative: is missing"),
        ("reward", {"messages": [{"role": "user", "content": "a"}]}, "has no known format"),
        ({"suite": "classification", "options": {"ask": "classify"}}, {"text": "a"}, "label: is None"),
        (
            {"suite": "embedding", "options": {"measure": "similarity"}},
            {"query": "a", "positive": "b"},
            "score: is missing",
        ),
    ],
)
def test_rows_that_do_not_fit_are_named(evaluate: Any, suite: Any, row: Any, said: str) -> None:
    with pytest.raises(InvalidArgument, match=said) as caught:
        evaluate([row], [suite])
    assert caught.value.reason == "BAD_ROWS"


def test_a_target_in_the_jobs_process_is_refused_at_submission() -> None:
    spec = {
        "targets": [{"model": "m", "engine": "transformers"}],
        "suites": [{"suite": "exact_match"}, {"suite": "embedding"}],
        "dataset": "artifacts/a",
    }
    with pytest.raises(InvalidArgument, match="leave engine at gateway") as caught:
        parse_evaluation_config(spec)
    assert [violation.field for violation in caught.value.violations] == ["spec.suites.1.suite"]
