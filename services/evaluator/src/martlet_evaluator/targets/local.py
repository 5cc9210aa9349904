"""A model in this process, by transformers: tells an engine's fault from a model's. One request at a time, in a thread of its own.

The tokens, the template and the rules are the engine's: greedy or sampled, labels enforced token by token as a grammar would,
log-probabilities in 32 bit.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from martlet_core.errors import FailedPrecondition
from martlet_core.gpu_memory import limit_memory
from martlet_core.loading_info import check_loading_info
from transformers import AutoModelForCausalLM, AutoTokenizer

from martlet_evaluator.targets.base import Answer, Messages, Sampling
from martlet_evaluator.targets.logprobs import FIRST_TOKEN_ALONE


class LocalTarget:
    """A whole model, and an adapter on it if there is one.

    Args:
        name: in tables.
        model: its name, for tables alone.
        directory: the whole model.
        adapter: the adapter; None for none.

    Raises:
        FailedPrecondition: there are no safetensors.
    """

    def __init__(self, name: str, model: str, directory: Path, adapter: Path | None = None) -> None:
        self.name = name
        self.model = model
        for place in (directory, adapter):
            if place is not None and not any(place.glob("*.safetensors")):
                raise FailedPrecondition(
                    f"target {name}: {place.name} has no safetensors; other weights are not loaded"
                )
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._tokenizer: Any = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
        limit_memory(torch.cuda)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = "auto" if device == "cuda" else torch.float32
        pair: Any = AutoModelForCausalLM.from_pretrained(
            directory, dtype=dtype, trust_remote_code=False, use_safetensors=True, output_loading_info=True
        )
        loaded, info = pair
        check_loading_info(info, f"target {name}: its files")
        if adapter is not None:
            from peft import PeftModel

            loaded = PeftModel.from_pretrained(loaded, str(adapter))
        self._model: Any = loaded.to(device).eval()
        self._device = device
        self._pieces: list[str] | None = None

    @property
    def constrains(self) -> bool:
        return True

    async def chat(
        self,
        messages: Messages,
        sampling: Sampling,
        *,
        choices: Sequence[str] = (),
        tools: Messages = (),
        extra: Mapping[str, Any] | None = None,
    ) -> Answer:
        return await self._run(lambda: self._generate(self._encode(messages, tools), sampling, choices, ()))

    async def complete(self, prompt: str, sampling: Sampling, *, stop: Sequence[str] = ()) -> Answer:
        return await self._run(lambda: self._generate(self._tokenizer(prompt)["input_ids"], sampling, (), stop))

    async def stream(self, messages: Messages, sampling: Sampling, *, extra: Mapping[str, Any] | None = None) -> Answer:
        return await self._run(lambda: self._timed(self._encode(messages, ()), sampling))

    async def score_answer(self, messages: Messages, answer: str, tools: Messages = ()) -> Answer:
        def score() -> Answer:
            before = self._encode(messages, tools)
            whole = [*messages, {"role": "assistant", "content": answer}]
            return self._score(before, self._encode(whole, tools, is_open=True))

        return await self._run(score)

    async def score_text(self, context: str, continuation: str) -> Answer:
        def score() -> Answer:
            before = self._tokenizer(context)["input_ids"] if context else []
            return self._score(before, self._tokenizer(context + continuation)["input_ids"])

        return await self._run(score)

    async def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _run(self, work: Callable[[], Answer]) -> Answer:
        begun = time.monotonic()

        def guarded() -> Answer:
            try:
                with torch.inference_mode():
                    return work()
            except (ValueError, RuntimeError, IndexError) as error:
                return Answer(error=f"{type(error).__name__}: {str(error)[:500]}")

        answer = await asyncio.get_running_loop().run_in_executor(self._thread, guarded)
        return replace(answer, seconds=time.monotonic() - begun)

    def _encode(self, messages: Messages, tools: Messages, *, is_open: bool = False) -> list[int]:
        text = self._tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            tools=[dict(tool) for tool in tools] or None,
            tokenize=False,
            add_generation_prompt=not is_open,
            continue_final_message=is_open,
        )
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]

    def _generate(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        choices: Sequence[str],
        stop: Sequence[str],
        streamer: Any = None,
    ) -> Answer:
        torch.manual_seed(sampling.seed)
        ids = torch.tensor([list(prompt)], device=self._device)
        options: dict[str, Any] = {"max_new_tokens": sampling.max_tokens, "do_sample": sampling.temperature > 0}
        if sampling.temperature > 0:
            options |= {"temperature": sampling.temperature, "top_p": 1.0, "top_k": 0}
        if choices:
            options["prefix_allowed_tokens_fn"] = self._only(choices, len(prompt))
        if stop:
            options |= {"stop_strings": list(stop), "tokenizer": self._tokenizer}
        pad = self._tokenizer.pad_token_id
        options["pad_token_id"] = pad if pad is not None else self._ends()[0]
        whole = self._model.generate(ids, attention_mask=torch.ones_like(ids), streamer=streamer, **options)
        new = whole[0, len(prompt) :].tolist()
        text = self._tokenizer.decode(new, skip_special_tokens=True)
        is_over = bool(new) and new[-1] in self._ends()
        for word in stop:
            if word in text:
                text, is_over = text[: text.index(word)], True
        return Answer(
            text, finish_reason="stop" if is_over else "length", prompt_tokens=len(prompt), completion_tokens=len(new)
        )

    def _timed(self, prompt: Sequence[int], sampling: Sampling) -> Answer:
        begun = time.monotonic()
        times: list[float] = []

        class Clock:
            """Told of the prompt first, then of each token."""

            def put(self, _value: Any) -> None:
                times.append(time.monotonic() - begun)

            def end(self) -> None:
                pass

        answer = self._generate(prompt, sampling, (), (), Clock())
        tokens = times[1:]
        gaps = [after - before for before, after in itertools.pairwise(tokens)]
        return replace(
            answer, data={"first_token_seconds": tokens[0] if tokens else None, "gaps": gaps, "chunks": len(tokens)}
        )

    def _score(self, before: Sequence[int], whole: Sequence[int]) -> Answer:
        if len(whole) <= len(before):
            return Answer(error=f"the text has {len(whole)} tokens with the answer and {len(before)} without")
        if len(whole) < 2:
            return Answer(error=FIRST_TOKEN_ALONE)
        ids = torch.tensor([list(whole)], device=self._device)
        logits = self._model(ids).logits[0].float()
        start = max(1, len(before))  # the first token of all has no probability
        rows = logits[start - 1 : -1].log_softmax(-1)
        targets = ids[0, start:]
        found = rows.gather(1, targets[:, None])[:, 0]
        greedy = bool((rows.argmax(-1) == targets).all())
        return Answer(prompt_tokens=len(whole), data={"logprobs": found.tolist(), "is_greedy": greedy})

    def _only(self, choices: Sequence[str], prompt_tokens: int) -> Callable[[int, Any], list[int]]:
        """Which tokens may follow, so that nothing but one of the labels comes out, however it is cut into tokens."""
        pieces = self._token_texts()
        ends = self._ends()
        by_rest: dict[tuple[str, ...], list[int]] = {}

        def allowed(_batch: int, ids: Any) -> list[int]:
            said = self._tokenizer.decode(ids[prompt_tokens:], skip_special_tokens=True)
            rests = tuple(choice[len(said) :] for choice in choices if choice.startswith(said))
            if rests not in by_rest:
                found = [i for i, piece in enumerate(pieces) if piece and any(rest.startswith(piece) for rest in rests)]
                by_rest[rests] = found + (ends if "" in rests or not found else [])
            return by_rest[rests]

        return allowed

    def _token_texts(self) -> list[str]:
        if self._pieces is None:
            special = set(self._tokenizer.all_special_ids)
            self._pieces = [
                "" if token in special else self._tokenizer.decode([token]) for token in range(len(self._tokenizer))
            ]
        return self._pieces

    def _ends(self) -> list[int]:
        configured = self._model.generation_config.eos_token_id
        if configured is None:
            configured = self._tokenizer.eos_token_id
        return list(configured) if isinstance(configured, (list, tuple)) else [int(configured)]
