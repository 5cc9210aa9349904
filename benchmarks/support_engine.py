"""Models of the table of support served by vLLM, in the environment of inference; each outcome is a line of JSON.

    .martlet/envs/inference/bin/python benchmarks/support_engine.py SPECS.json FD

Real weights are served by the replica's own engine: a server process of vLLM. Tiny models (``forked``) get vLLM in a fork of
this process, which has imported it already, with the arguments, environment and plugins that the replica starts it with.
Either way the model writes eight tokens and scores held-out text, and so does the unquantized one: the ratio of the perplexities
tells whether the answers are those of the model.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from martlet_core.errors import MartletError
from martlet_inference.engines.base import EngineCall, Route, WholeModel
from martlet_inference.engines.server import ServerEngine
from martlet_inference.engines.vllm import installed_vllm, vllm_program
from replicas_vllm import OPTIONS, import_vllm, start
from support_fork import apart

_NEW_TOKENS = 8
#: Texts that are scored, and tokens of each.
_TEXTS, _TEXT_TOKENS = 3, 300
#: What is served is another model where its perplexity is more than this, by the ratio that the quantizer measured.
_STRAY = 1.25


def main(specs_file: Path, fd: int) -> None:
    """Serve the models that the file lists in turns; see ``support_quantization.serve`` for the fields."""
    os.set_inheritable(fd, False)
    specs = json.loads(specs_file.read_text())
    version = f"{installed_vllm()[0]} ({installed_vllm()[1]})"
    if any(spec["forked"] for spec in specs):
        import_vllm()
    bases: dict[str, Mapping[str, Any]] = {}
    with os.fdopen(fd, "w") as outcomes:
        for spec in specs:
            begun = time.monotonic()
            found = _serve(spec, spec["model"])
            if "perplexity" in found:
                base = bases.get(spec["base"]) or _serve(spec, spec["base"])
                bases[spec["base"]] = base
                found = _judge(found, base, spec["measured_ratio"])
            outcome = {**found, "vllm": version, "key": spec["key"], "seconds": round(time.monotonic() - begun, 1)}
            outcomes.write(json.dumps(outcome) + "\n")
            outcomes.flush()


def _serve(spec: Mapping[str, Any], model: str) -> dict[str, Any]:
    work = _in_this_process if spec["forked"] else _by_the_replicas_engine
    found = apart(lambda: work(Path(model), Path(spec["rows"])), spec["limit_seconds"])
    return found if "perplexity" in found else {"served": "no", **found}


def _judge(found: Mapping[str, Any], base: Mapping[str, Any], measured: float) -> dict[str, Any]:
    if "perplexity" not in base:
        return {**found, "served": "no", "message": f"the unquantized model isn't served: {base['message']}"}
    ratio = found["perplexity"] / base["perplexity"]
    told = {**found, "base_perplexity": base["perplexity"], "perplexity_ratio": ratio}
    if found["tokens"] != _NEW_TOKENS or not ratio <= _STRAY * max(measured, 1.0):
        message = f"its perplexity is {ratio:.3g} times the unquantized model's, where the quantizer measured {measured:.3g} times"
        return {**told, "served": "wrong", "message": message}
    return {**told, "served": "yes"}


def _windows(tokenizer: Any, rows: Path) -> list[list[int]]:
    texts = [json.loads(line) for line in rows.read_text().splitlines()][:_TEXTS]
    answers = [row["messages"][-1]["content"] for row in texts]
    return [tokenizer(text)["input_ids"][:_TEXT_TOKENS] for text in answers]


def _perplexity(scored: Sequence[Sequence[float]]) -> float:
    logs = [value for text in scored for value in text]
    mean = -sum(logs) / len(logs)
    return math.exp(mean) if mean < 700 else math.inf


def _in_this_process(model: Path, rows: Path) -> dict[str, Any]:
    try:
        return _generate(model, rows)
    except Exception as error:  # noqa: BLE001  # whatever vLLM raises is the outcome
        text = " ".join(str(error).split())
        return {"message": f"{type(error).__name__}: {text[:400]}"}


def _generate(model: Path, rows: Path) -> dict[str, Any]:
    from vllm import SamplingParams

    llm = start(WholeModel("model", model))
    windows = [{"prompt_token_ids": ids} for ids in _windows(llm.get_tokenizer(), rows)]
    params = SamplingParams(temperature=0, max_tokens=_NEW_TOKENS, ignore_eos=True, prompt_logprobs=0)
    answers = llm.generate(windows, params, use_tqdm=False)
    scored = []
    for answer in answers:
        pairs = zip(answer.prompt_token_ids[1:], answer.prompt_logprobs[1:], strict=True)
        scored.append([found[token].logprob for token, found in pairs])
    first = answers[0].outputs[0]
    return {"perplexity": _perplexity(scored), "tokens": len(first.token_ids), "text": first.text}


def _by_the_replicas_engine(model: Path, rows: Path) -> dict[str, Any]:
    try:
        return asyncio.run(_ask_engine(model, rows))
    except MartletError as error:
        return {"message": error.message[:400]}


async def _ask_engine(model: Path, rows: Path) -> dict[str, Any]:
    from transformers import AutoTokenizer

    windows = _windows(AutoTokenizer.from_pretrained(model), rows)
    engine = ServerEngine(vllm_program(OPTIONS, installed_vllm()[0]))
    await engine.start(WholeModel("model", model))
    try:
        scored, answers = [], []
        for ids in windows:
            body = {"model": "model", "prompt": ids, "max_tokens": _NEW_TOKENS, "temperature": 0}
            body |= {"ignore_eos": True, "prompt_logprobs": 0}
            async with engine.call(EngineCall(Route.COMPLETIONS, json.dumps(body).encode(), False)) as reply:
                answer = json.loads(b"".join([chunk async for chunk in reply.chunks]))
            if reply.http_status != 200:
                return {"message": f"it answers {reply.http_status}: {str(answer)[:300]}"}
            choice = answer["choices"][0]
            entries = zip(ids[1:], choice["prompt_logprobs"][1:], strict=True)
            scored.append([found[str(token)]["logprob"] for token, found in entries])
            answers.append((choice["text"], answer["usage"]["completion_tokens"]))
    finally:
        await engine.stop()
    return {"perplexity": _perplexity(scored), "tokens": answers[0][1], "text": answers[0][0]}


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
