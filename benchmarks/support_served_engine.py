"""Results of trainings served by vLLM, in the environment of inference; each outcome is a line of JSON.

    .martlet/envs/inference/bin/python benchmarks/support_served_engine.py SPECS.json FD

An engine is a fork of this process, which has imported vLLM already. Adapters of one base model are asked of one engine in turns; whole models
with the same config.json, too: the first one starts the engine, which then loads the others in its place. What doesn't come out well there
gets an engine of its own, whose word counts.
"""

from __future__ import annotations

import json
import math
import os
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

from environment import ROOT
from martlet_core.model_tasks import ModelTask
from martlet_inference.engines.base import WholeModel
from martlet_inference.engines.vllm_process import VllmOptions
from martlet_inference.model_use import CAUSAL_LM, use_of
from replicas_vllm import SMALL, import_vllm, start
from support_fork import apart

#: How far vLLM's numbers may be from transformers', as a share of how far those are from the base model's; and at most, each of them.
_SHARE, _MOST = 0.01, 0.02
_LIMIT_BYTES = 8 << 30

Spec = Mapping[str, Any]


def main(specs_file: Path, fd: int) -> None:
    """Serve the results that the file lists; see ``support_served.result_of`` for the fields."""
    os.set_inheritable(fd, False)
    specs = json.loads(specs_file.read_text())
    import_vllm()
    with os.fdopen(fd, "w") as outcomes:
        for spec in specs:
            if "adapter" in spec:
                outcomes.write(json.dumps({"key": spec["key"], **architecture(spec)}) + "\n")
                outcomes.flush()
        for group in groups([spec for spec in specs if "adapter" not in spec]):
            for spec in serve(group, outcomes):
                serve([spec], outcomes)


def architecture(spec: Spec) -> dict[str, Any]:
    """What came of a model and of an adapter on it, by one engine; of the model alone, where vLLM takes no adapters of its kind."""
    begun = time.monotonic()
    found = apart(lambda: _architecture(spec, SMALL), spec["limit_seconds"])
    if found.get("served") != "yes":
        bare = apart(lambda: _architecture(spec, replace(SMALL, max_lora_rank=0)), spec["limit_seconds"])
        told = {"served": "no", **bare}
        found = {**told, "with_adapters": found.get("message", "")} if told["served"] == "yes" else told
    return {**found, "seconds": round(time.monotonic() - begun, 1)}


def _architecture(spec: Spec, options: VllmOptions) -> dict[str, Any]:
    resource.setrlimit(resource.RLIMIT_DATA, (_LIMIT_BYTES, _LIMIT_BYTES))
    from vllm.model_executor.models import registry

    unread: list[Exception] = []  # why a class couldn't be looked at: vLLM itself only logs that

    def look_here(look: Callable[[], Any]) -> Any:
        try:
            return look()
        except Exception as error:
            unread.append(error)
            raise

    # It looks at each class in a process of its own, so as to start no CUDA. That would be most of the time here.
    registry._run_in_subprocess = look_here
    found: dict[str, Any] = {}
    try:
        llm = start(WholeModel("model", Path(spec["model"])), options)
        found["class"] = llm.apply_model(_class_name)[0]
        found |= judge(spec, *answers(llm, spec, 1))
        if options.max_lora_rank and found["served"] == "yes":
            found["adapter"] = _of_adapter(llm, {"key": spec["key"], **spec["adapter"]})
    except Exception as error:  # noqa: BLE001  # whatever vLLM raises is the outcome
        found |= {"served": "no", "message": _told(unread[0] if unread else error, spec)}
    return found


def _class_name(model: Any) -> str:
    return type(model).__name__


def _of_adapter(llm: Any, spec: Spec) -> dict[str, Any]:
    try:
        return judge(spec, *answers(llm, spec, 1))
    except Exception as error:  # noqa: BLE001  # whatever vLLM raises is the outcome
        return {"served": "no", "message": _told(error, spec)}


def _told(error: Exception, spec: Spec) -> str:
    """What stands against it, without where this machine has it."""
    traceback.print_exc()
    where = traceback.extract_tb(error.__traceback__)[-1]
    said = (
        " ".join(str(error).split()).replace(spec["model"], "MODEL").replace(f"{ROOT}/", "")
        or f"{where.line} ({where.name})"
    )
    return f"{type(error).__name__}: {said[:400]}"


def groups(specs: Sequence[Spec]) -> list[list[Spec]]:
    """Results that one engine can serve."""
    found: dict[str, list[Spec]] = {}
    for spec in specs:
        if spec["form"] == "adapter":
            name = spec["base"]
        else:
            config = json.loads((Path(spec["model"]) / "config.json").read_text())
            told = [config, spec["task"], spec["kind"]]
            name = json.dumps(told, sort_keys=True)
        found.setdefault(name, []).append(spec)
    return list(found.values())


def serve(group: Sequence[Spec], outcomes: TextIO) -> list[Spec]:
    """Serve a group by an engine of its own; gives back those that are to have another engine. Good outcomes are written as they come."""
    own = len(group) == 1
    with tempfile.TemporaryFile("w+") as notes:

        def work() -> dict[str, Any]:
            resource.setrlimit(resource.RLIMIT_DATA, (_LIMIT_BYTES, _LIMIT_BYTES))
            begun = time.monotonic()
            for spec, outcome in outcomes_of(group):
                seconds = round(time.monotonic() - begun, 1)
                told = {"key": spec["key"], "form": spec["form"], **outcome, "engine": "own" if own else "shared"}
                if own or outcome["served"] == "yes":
                    outcomes.write(json.dumps({**told, "seconds": seconds}) + "\n")
                    outcomes.flush()
                    notes.write(spec["key"] + "\n")
                    notes.flush()
                begun = time.monotonic()
            return {}

        end = apart(work, group[0]["limit_seconds"])
        notes.seek(0)
        done = set(notes.read().splitlines())
    rest = [spec for spec in group if spec["key"] not in done]
    if own and rest:
        told = {"key": rest[0]["key"], "form": rest[0]["form"], "served": "no", **end, "engine": "own"}
        outcomes.write(json.dumps(told) + "\n")
        outcomes.flush()
    return [] if own else rest


def outcomes_of(group: Sequence[Spec]) -> Iterator[tuple[Spec, dict[str, Any]]]:
    """An engine, and what came of each result; ends with the first one that breaks it."""
    llm = None
    for number, spec in enumerate(group, start=1):
        try:
            if llm is None:
                llm = start(_first(spec), SMALL)
            elif spec["form"] != "adapter":
                llm.collective_rpc(_load_another, args=(spec["model"],))
                llm.reset_prefix_cache()
            yield spec, judge(spec, *answers(llm, spec, number))
        except Exception as error:  # noqa: BLE001  # whatever vLLM raises is the outcome
            yield spec, {"served": "no", "message": _told(error, spec)}
            if spec["form"] != "adapter" or llm is None:
                return


def _load_another(worker: Any, directory: str) -> None:
    """Load a model of the same shape, as the worker did when it started, in the place of the one that it has.

    vLLM's own ``reload_weights`` leaves a CPU's packed weights as they were.
    """
    from vllm.config import set_current_vllm_config

    runner = worker.model_runner
    layers = runner.vllm_config.compilation_config.static_forward_context
    had = dict(layers)
    layers.clear()
    runner.vllm_config.model_config.model = directory
    with set_current_vllm_config(runner.vllm_config):
        runner.load_model()
    for name, layer in had.items():  # the cache, and what else they got when it was made
        kept = {key: value for key, value in vars(layer).items() if key == "kv_cache" or key not in vars(layers[name])}
        vars(layers[name]).update(kept)


def _first(spec: Spec) -> WholeModel:
    if spec["form"] == "adapter":
        return WholeModel("model", Path(spec["base"]))
    directory = Path(spec["model"])
    return WholeModel("model", directory, use_of(directory, ModelTask(spec["task"])) if spec["task"] else CAUSAL_LM)


def answers(llm: Any, spec: Spec, number: int) -> tuple[list[float], list[int]]:
    """What vLLM says of the prompts, and the tokens that it writes."""
    if spec["kind"] == "causal":
        return _written(llm, spec, number)
    from vllm import PoolingParams

    bare = PoolingParams(use_activation=False)
    if spec["kind"] == "score":
        queries, documents = zip(*spec["prompts"], strict=True)
        scored = llm.score(list(queries), list(documents), pooling_params=bare, use_tqdm=False)
        return [one.outputs.score for one in scored], []
    params = None if spec["kind"] == "embed" else bare
    said = llm.encode(spec["prompts"], params, pooling_task=spec["kind"], use_tqdm=False)
    return [value for one in said for value in one.outputs.data.float().flatten().tolist()], []


def _written(llm: Any, spec: Spec, number: int) -> tuple[list[float], list[int]]:
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    adapter = LoRARequest(spec["key"], number, spec["model"]) if spec["form"] == "adapter" else None
    wanted = len(spec["tokens"])
    params = SamplingParams(temperature=0, max_tokens=wanted, ignore_eos=True, prompt_logprobs=0)
    prompts = [{"prompt_token_ids": ids} for ids in spec["prompts"]]
    values = []
    said = llm.generate(prompts, params, use_tqdm=False, lora_request=adapter)
    for answer in said:
        pairs = zip(answer.prompt_token_ids[1:], answer.prompt_logprobs[1:], strict=True)
        values += [found[token].logprob for token, found in pairs]
    return values, list(said[0].outputs[0].token_ids)


def judge(spec: Spec, values: Sequence[float], tokens: Sequence[int]) -> dict[str, Any]:
    """Whether these are the result's words, and not the base model's or another's."""
    if len(values) != len(spec["values"]):
        return {"served": "wrong", "message": f"it says {len(values)} numbers, and transformers {len(spec['values'])}"}
    off = math.dist(values, spec["values"])
    tuned = math.dist(spec["base_values"], spec["values"])
    most = max(abs(one - other) for one, other in zip(values, spec["values"], strict=True))
    told = {"share": float(f"{off / tuned if tuned else math.inf:.2g}"), "most": float(f"{most:.2g}")}
    if not (off <= _SHARE * tuned and most <= _MOST):
        message = f"its numbers are up to {most:.2g} off transformers', and as far off as {off / tuned:.2g} of what tuning changed"
        return {**told, "served": "wrong", "message": message}
    if list(tokens) != list(spec.get("tokens", [])):
        return {
            **told,
            "served": "wrong",
            "message": "its numbers are those of transformers, and it writes other tokens",
        }
    return {**told, "served": "yes"}


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
