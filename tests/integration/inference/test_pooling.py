"""Models that don't generate, from published files to the stock client: gateway, placement, replica, engine `transformers`.
``MARTLET_TEST_POOLING_ENGINE=vllm`` asks the same of vLLM, whose starts take minutes.

Slow, because torch is imported for the reference, and by the engine for each of five models that are put into one replica. It earns
that: nothing else shows that a directory alone makes the right server, and that its numbers are those of plain transformers.
"""

from __future__ import annotations

import base64
import json
import struct
from typing import TYPE_CHECKING

import grpc
import openai
import pytest
from martlet.inference.v1 import inference_pb2 as pb
from martlet.inference.v1 import inference_service_pb2_grpc as service_grpc
from martlet_core.rpc.client import error_from_rpc

if TYPE_CHECKING:
    from conftest import Served

pytestmark = [pytest.mark.slow, pytest.mark.timeout(290)]

QUERY = "which bird is fast"
CLOSE = {"rel": 1e-4, "abs": 1e-5}  # padding and batches change the order of sums


def test_embeddings_by_the_stock_client(served: Served) -> None:
    texts, vectors = list(served.said["embedding"]), list(served.said["embedding"].values())
    whole = served.client.embeddings.create(model="embedding", input=texts)  # asks for base64 and reads it by itself
    assert [item.index for item in whole.data] == [0, 1, 2]
    for item, vector in zip(whole.data, vectors, strict=True):
        assert item.embedding == pytest.approx(vector, **CLOSE)
    assert whole.usage.total_tokens == whole.usage.prompt_tokens == sum(len(text) + 2 for text in texts)
    floats = served.client.embeddings.create(model="embedding", input=texts[0], encoding_format="float")
    raw = served.post("/embeddings", model="embedding", input=texts[0], encoding_format="base64")
    packed = base64.b64decode(raw["data"][0]["embedding"])
    assert list(struct.unpack(f"<{len(packed) // 4}f", packed)) == pytest.approx(floats.data[0].embedding, abs=1e-7)
    tokens = [2, *(ord(letter) - 32 + 6 for letter in texts[0]), 3]  # [CLS] and [SEP] around the letters
    by_token = served.client.embeddings.create(model="embedding", input=[tokens])
    assert by_token.data[0].embedding == pytest.approx(vectors[0], **CLOSE)


def test_texts_that_are_too_long_are_refused_or_cut_as_asked(served: Served) -> None:
    with pytest.raises(openai.BadRequestError, match="64"):
        served.client.embeddings.create(model="embedding", input="x" * 100)
    cut = {"truncate_prompt_tokens": -1}
    assert served.client.embeddings.create(model="embedding", input="x" * 100, extra_body=cut).usage.prompt_tokens == 64
    with pytest.raises(openai.BadRequestError, match="Matryoshka"):
        served.client.embeddings.create(model="embedding", input="x", dimensions=8)


def test_an_embedding_model_scores_by_the_cosine(served: Served) -> None:
    (first, one), (second, two), *_ = served.said["embedding"].items()
    cosine = sum(a * b for a, b in zip(one, two, strict=True))
    scored = served.post("/score", model="embedding", text_1=first, text_2=[first, second])
    assert [item["score"] for item in scored["data"]] == pytest.approx([1.0, cosine], **CLOSE)
    ranked = served.post("/rerank", model="embedding", query=first, documents=[second, first], top_n=1)
    assert [(item["index"], item["document"]["text"]) for item in ranked["results"]] == [(1, first)]


def test_a_chat_is_refused_with_the_routes_that_answer(served: Served) -> None:
    for name, route in (("embedding", "/v1/embeddings"), ("classes", "/v1/classify")):
        with pytest.raises(openai.BadRequestError, match=route) as caught:
            served.client.chat.completions.create(model=name, messages=[{"role": "user", "content": "hi"}])
        assert caught.value.code == "wrong_route"
        assert caught.value.param == "model"
    with grpc.insecure_channel(served.grpc_address) as channel:
        stub = service_grpc.InferenceServiceStub(channel)
        metadata = (("authorization", f"Bearer {served.key}"),)
        with pytest.raises(grpc.RpcError) as failed:
            list(stub.Generate(pb.GenerateRequest(model="embedding", prompt="hi"), metadata=metadata))
        assert error_from_rpc(failed.value).reason == "WRONG_ROUTE"
        body = json.dumps({"model": "embedding", "input": "a swift flies"}).encode()
        request = pb.CallOpenAIRequest(route=pb.OPEN_AI_ROUTE_EMBEDDINGS, model="embedding", body=body)
        [message] = list(stub.CallOpenAI(request, metadata=metadata))
        assert json.loads(message.data)["data"][0]["embedding"] == pytest.approx(
            served.said["embedding"]["a swift flies"], **CLOSE
        )


def test_a_classifier_is_placed_by_its_first_request(served: Served) -> None:
    said = served.said["classes"]
    answer = served.post("/classify", model="classes", input=list(said))
    labels = ("negative", "neutral", "positive")
    for item, probabilities in zip(answer["data"], said.values(), strict=True):
        assert item["probs"] == pytest.approx(probabilities, **CLOSE)
        assert item["label"] == labels[max(range(3), key=probabilities.__getitem__)]
    assert served.client.models.retrieve("classes").martlet["task"] == "sequence_classification"
    with pytest.raises(openai.BadRequestError, match="use /v1/classify or /v1/pooling"):
        served.post("/rerank", model="classes", query="a", documents=["b"])


def test_a_reranker_orders_documents(served: Served) -> None:
    said = served.said["reranker"]
    answer = served.post("/rerank", model="reranker", query=QUERY, documents=list(said))
    assert [item["document"]["text"] for item in answer["results"]] == sorted(said, key=lambda text: -said[text])
    for item in answer["results"]:
        assert item["relevance_score"] == pytest.approx(said[item["document"]["text"]], **CLOSE)


def test_a_reward_model_scores_conversations(served: Served) -> None:
    for text, reward in served.said["reward"].items():
        messages = [{"role": "user", "content": "name a bird"}, {"role": "assistant", "content": text}]
        answer = served.post("/classify", model="reward", messages=messages, use_activation=False)
        assert answer["data"][0]["probs"] == pytest.approx([reward], **CLOSE)


def test_a_token_classifier_says_a_list_a_token(served: Served) -> None:
    said = served.said["tokens"]
    answer = served.post("/pooling", model="tokens", input=list(said))
    for item, rows in zip(answer["data"], said.values(), strict=True):
        assert len(item["data"]) == len(rows)
        for row, expected in zip(item["data"], rows, strict=True):
            assert row == pytest.approx(expected, **CLOSE)
    with pytest.raises(openai.BadRequestError, match="use /v1/pooling"):
        served.post("/classify", model="tokens", input="a")
