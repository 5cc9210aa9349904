"""``embed``, ``classify``, ``rerank``: ask models that don't generate."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import httpx
from martlet_core.errors import InvalidArgument

from martlet_cli.context import Context, Subparsers, command
from martlet_cli.gateway import translated

_SHOWN = 4


def add(subparsers: Subparsers) -> None:
    """Add the commands."""
    embed = command(subparsers, "embed", _embed, "vectors of texts; --json prints them whole")
    classify = command(subparsers, "classify", _classify, "the likeliest class of each text, or a reward model's score")
    rerank = command(subparsers, "rerank", _rerank, "texts by how well they fit a query")
    rerank.add_argument("query", help="what the texts are to fit")
    rerank.add_argument("--top_n", type=int, metavar="N", help="the best N (default: all)")
    for parser in (embed, classify, rerank):
        parser.add_argument("texts", nargs="+", metavar="TEXT", help="a text; - reads texts from stdin, one a line")
        parser.add_argument("--model", required=True, help="any name of `martlet models` with a task that fits")


def _embed(context: Context, arguments: argparse.Namespace) -> int:
    texts = _texts(arguments)
    data = _post(context, "/embeddings", model=arguments.model, input=texts)["data"]
    rows = [
        {"text": text, "dimensions": len(item["embedding"]), "vector": _beginning(item["embedding"]), **item}
        for text, item in zip(texts, data, strict=True)
    ]
    context.output.table(rows, ("text", "dimensions", "vector"))
    return 0


def _classify(context: Context, arguments: argparse.Namespace) -> int:
    texts = _texts(arguments)
    data = _post(context, "/classify", model=arguments.model, input=texts)["data"]
    rows = [{"text": text, "score": max(item["probs"]), **item} for text, item in zip(texts, data, strict=True)]
    context.output.table(rows, ("label", "score", "text"))
    return 0


def _rerank(context: Context, arguments: argparse.Namespace) -> int:
    texts = _texts(arguments)
    fields = {"top_n": arguments.top_n} if arguments.top_n else {}
    answer = _post(context, "/rerank", model=arguments.model, query=arguments.query, documents=texts, **fields)
    rows = [{**item, "text": texts[item["index"]]} for item in answer["results"]]
    context.output.table(rows, ("relevance_score", "text"))
    return 0


def _post(context: Context, path: str, **body: Any) -> Any:
    client = context.gateway.openai.with_options(max_retries=0)  # a person wants to know why, and now
    with translated():
        return client.post(path, body=body, cast_to=httpx.Response).json()


def _texts(arguments: argparse.Namespace) -> list[str]:
    if arguments.texts != ["-"]:
        return arguments.texts
    texts = [line for line in sys.stdin.read().split("\n") if line.strip()]
    if not texts:
        raise InvalidArgument("there is no text on stdin; give one a line")
    return texts


def _beginning(vector: list[float]) -> str:
    return ", ".join(f"{number:.4f}" for number in vector[:_SHOWN]) + (", …" if len(vector) > _SHOWN else "")
