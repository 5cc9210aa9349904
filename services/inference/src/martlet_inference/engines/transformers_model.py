"""A model in this process and the answers it is writing, token by token in turn: one thread owns all of it.

Requests are not batched: each turn gives every answer in work one token, so that none waits for another's end, and one
that is given up stops at its next turn. What is alone computes exactly as transformers' greedy search does.
"""

from __future__ import annotations

import inspect
import logging
import os
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from martlet_core.loading_info import check_loading_info
from peft import PeftConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from martlet_inference.engines.transformers_request import BadRequest, Request
from martlet_inference.engines.transformers_sampling import processors
from martlet_inference.engines.transformers_text import Detokenizer, StopTexts

log = logging.getLogger(__name__)

#: Answers written at a time; each has a KV cache of its own. More wait.
MAX_ANSWERS = 16
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


@dataclass(frozen=True)
class TokenLogprobs:
    """A token, its log-probability, and the most likely tokens with theirs, best first."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Piece:
    """A part of an answer; ``finish_reason`` and the ``tokens`` of all of it in the last one alone. ``error`` ends an answer that can't
    go on.
    """

    choice: int
    text: str = ""
    logprobs: tuple[TokenLogprobs, ...] = ()
    finish_reason: str | None = None
    completion_tokens: int = 0
    error: str = ""
    tokens: tuple[int, ...] = ()


@dataclass
class Call:
    """A request's side of its answers: where their parts go, and whether anybody still wants them."""

    emit: Callable[[Piece], None]
    given_up: bool = False


@dataclass(eq=False)
class Answer:
    """An answer in work."""

    call: Call
    choice: int
    adapter: str
    tokens: list[int]
    prompt_tokens: int
    longest: int
    temperature: float
    processors: Any
    generator: torch.Generator
    detokenizer: Detokenizer
    stop: StopTexts
    top_logprobs: int | None
    ends: frozenset[int]
    tells_end: bool = False
    cache: Any = None
    held: list[TokenLogprobs] = field(default_factory=list)

    @property
    def new_tokens(self) -> int:
        """Tokens written so far."""
        return len(self.tokens) - self.prompt_tokens


class Model:
    """A whole model, adapters on it, and the thread that computes. Other methods than ``do`` belong to that thread.

    Args:
        directory: an ordinary Hugging Face model; code in it is not run, and only safetensors are read.
        name: what it is called in requests.
        device: ``cpu`` or ``cuda``.
        dtype: by torch's name, or ``auto`` for the model's own.
        max_model_len: longest context; less where the model's own is.
        gpu_memory_share: most of a GPU's memory that it takes.
    """

    def __init__(
        self,
        directory: Path,
        name: str,
        *,
        device: str,
        dtype: str,
        max_model_len: int,
        gpu_memory_share: float = 1.0,
    ) -> None:
        if device == "cuda":
            torch.cuda.set_per_process_memory_fraction(gpu_memory_share)
        self.name = name
        self.tokenizer: Any = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
        kind = dtype if dtype == "auto" else getattr(torch, dtype)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=kind,
            device_map=device,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
        model, info = loaded
        check_loading_info(info, f"{name}: its files")
        self._model = model.eval().requires_grad_(False)
        self._device = device
        own = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self.context_length = min(max_model_len, own or max_model_len)
        self._defaults = {k: v for k, v in model.generation_config.to_diff_dict().items() if k in _SAMPLING and v}
        ends = model.generation_config.eos_token_id
        ends = self.tokenizer.eos_token_id if ends is None else ends
        self._ends = frozenset(ends if isinstance(ends, list) else [] if ends is None else [ends])
        takes = inspect.signature(model.forward).parameters
        self._forward = {"use_cache": True} | ({"logits_to_keep": 1} if "logits_to_keep" in takes else {})
        self._peft: PeftModel | None = None
        self._adapters: dict[str, str] = {}  # by the name that requests say; peft's names may hold no dot
        self._adapters_made = 0
        self._active = ""
        self._orders: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._answers: list[Answer] = []
        self._waiting: list[Answer] = []
        self.tokens_counted = 0
        threading.Thread(target=self._run, name="model", daemon=True).start()

    @property
    def waiting(self) -> int:
        """Answers that aren't begun yet."""
        return len(self._waiting)

    def do(self, work: Callable[[], Any]) -> Future[Any]:
        """Do something between two turns, in the model's thread; what it raises is the future's."""
        future: Future[Any] = Future()

        def order() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(work())
            except Exception as exc:  # noqa: BLE001  # it is for whoever waits
                future.set_exception(exc)

        self._orders.put(order)
        return future

    # Adapters

    def load_adapter(self, name: str, directory: Path) -> None:
        """Load a peft directory. ValueError says what is wrong with it."""
        if name in self._adapters:
            raise ValueError(f"the adapter {name!r} is loaded already")
        if not (directory / "adapter_model.safetensors").is_file():
            raise ValueError(f"{directory.name} has no adapter_model.safetensors")
        self._adapters_made += 1
        inner = f"a{self._adapters_made}"
        config = PeftConfig.from_pretrained(str(directory))
        config.inference_mode = True
        try:
            if self._peft is None:
                made = get_peft_model(self._model, config, adapter_name=inner, autocast_adapter_dtype=False)
                assert isinstance(made, PeftModel)
                self._peft = made
            else:
                self._peft.add_adapter(inner, config, autocast_adapter_dtype=False)
            result = self._peft.load_adapter(
                str(directory), inner, torch_device=self._device, autocast_adapter_dtype=False
            )
            if result.missing_keys or result.unexpected_keys:
                wrong = [*result.missing_keys, *result.unexpected_keys]
                raise ValueError(f"its weights don't fit the model: {len(wrong)} keys, the first is {wrong[0]}")
        except Exception:
            self._drop(inner)
            raise
        self._adapters[name] = inner
        self._active = inner  # peft's first adapter is active at once
        self._activate("")

    def unload_adapter(self, name: str) -> bool:
        """Forget an adapter; False if it isn't there. Answers it is writing end with an error."""
        inner = self._adapters.pop(name, None)
        if inner is None:
            return False
        for answer in self._answers + self._waiting:
            if answer.adapter == inner:
                self._end(answer, Piece(answer.choice, error=f"the adapter {name!r} was unloaded"))
        self._drop(inner)
        return True

    def _drop(self, inner: str) -> None:
        if self._peft is not None and inner in self._peft.peft_config:
            self._peft.delete_adapter(inner)
            self._active = "?"  # peft may have chosen another
            self._activate("")

    def _activate(self, inner: str) -> None:
        if self._peft is None or inner == self._active:
            return
        tuner: Any = self._peft.base_model
        if inner:
            tuner.enable_adapter_layers()
            self._peft.set_adapter(inner, inference_mode=True)
        else:
            tuner.disable_adapter_layers()
        self._active = inner

    # Answers

    def begin(self, request: Request, call: Call) -> int:
        """Put a request's answers in line; how many tokens its prompt has. BadRequest if it can't be answered."""
        if request.model != self.name and request.model not in self._adapters:
            raise BadRequest(f"The model `{request.model}` does not exist.", "model", 404)
        prompt = self._encode(request)
        room = self.context_length - len(prompt)
        if room < 1 or (request.max_tokens or 1) > room:
            wanted = f" and {request.max_tokens} more are asked for" if request.max_tokens else ""
            raise BadRequest(
                f"The prompt has {len(prompt)} tokens{wanted}; the context holds {self.context_length}.",
                "max_tokens" if room > 0 else ("messages" if request.chat else "prompt"),
            )
        adapter = self._adapters.get(request.model, "")
        self._waiting += [self._answer(request, prompt, choice, adapter, call) for choice in range(request.choices)]
        return len(prompt)

    def _answer(self, request: Request, prompt: Sequence[int], choice: int, adapter: str, call: Call) -> Answer:
        sampling = {**self._defaults, **request.sampling}
        generator = torch.Generator(self._device)
        if request.seed is None:
            generator.seed()
        else:
            generator.manual_seed((request.seed + choice) % 2**63)
        return Answer(
            call=call,
            choice=choice,
            adapter=adapter,
            tokens=list(prompt),
            prompt_tokens=len(prompt),
            longest=request.max_tokens or self.context_length - len(prompt),
            temperature=sampling.get("temperature", 1.0),
            processors=processors(sampling),
            generator=generator,
            detokenizer=Detokenizer(lambda tokens: self.tokenizer.decode(tokens, skip_special_tokens=True)),
            stop=StopTexts(request.stop),
            top_logprobs=request.top_logprobs,
            ends=frozenset() if request.ignore_eos else self._ends,
            tells_end=request.token_ids,
        )

    def _encode(self, request: Request) -> list[int]:
        tokens: Any
        if isinstance(request.input, str):
            tokens = self.tokenizer(request.input)["input_ids"]
        elif request.chat:
            if not self.tokenizer.chat_template:
                raise BadRequest("The model has no chat template; ask it through /v1/completions.", "messages")
            try:
                text = self.tokenizer.apply_chat_template(
                    request.input,
                    tokenize=False,
                    add_generation_prompt=request.new_turn,
                    continue_final_message=request.open_turn,
                )
            except Exception as exc:  # a template raises what it likes about messages it doesn't take
                raise BadRequest(f"The model's chat template refuses the messages: {exc}", "messages") from exc
            tokens = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        else:
            tokens = request.input
            vocabulary = self._model.get_input_embeddings().num_embeddings
            if not all(isinstance(token, int) and 0 <= token < vocabulary for token in tokens):
                raise BadRequest(f"prompt holds a token outside 0 to {vocabulary - 1}.", "prompt")
        if not tokens:
            raise BadRequest("The prompt is empty.", "messages" if request.chat else "prompt")
        return list(tokens)

    # The thread

    def _run(self) -> None:
        try:
            with torch.inference_mode():
                while True:
                    self._turn()
        except BaseException:
            log.exception("the model's thread failed")
            os._exit(1)  # the replica starts the server again

    def _turn(self) -> None:
        """Do what was ordered, then give each answer a token; sleeps while there is nothing to do."""
        while not (self._answers or self._waiting) or not self._orders.empty():
            self._orders.get()()
        self._waiting = [answer for answer in self._waiting if not answer.call.given_up]
        while self._waiting and len(self._answers) < MAX_ANSWERS:
            self._answers.append(self._waiting.pop(0))
        for answer in list(self._answers):
            if answer.call.given_up:
                self._answers.remove(answer)
                continue
            try:
                self._write(answer)
            except (RuntimeError, ValueError, IndexError) as exc:
                log.exception("an answer failed")
                self._end(answer, Piece(answer.choice, error=f"{type(exc).__name__}: {exc}"))

    def _write(self, answer: Answer) -> None:
        """One token more."""
        token = self._next_token(answer)
        answer.tokens.append(token)
        self.tokens_counted += 1
        if token in answer.ends:
            self._finish(answer, answer.stop.add(answer.detokenizer.rest()), "stop")
            return
        text = answer.stop.add(answer.detokenizer.add(token))
        if answer.stop.found:
            self._finish(answer, text, "stop")
        elif answer.new_tokens >= answer.longest:
            self._finish(answer, text + answer.stop.add(answer.detokenizer.rest()), "length")
        elif text:
            answer.call.emit(Piece(answer.choice, text, self._told(answer)))

    def _finish(self, answer: Answer, text: str, reason: str) -> None:
        found = answer.stop.found
        text += "" if found else answer.stop.rest()
        reason, tokens = "stop" if found else reason, tuple(answer.tokens[answer.prompt_tokens :])
        self._end(answer, Piece(answer.choice, text, self._told(answer), reason, len(tokens), tokens=tokens))

    def _end(self, answer: Answer, piece: Piece) -> None:
        for line in (self._answers, self._waiting):
            if answer in line:
                line.remove(answer)
        answer.call.emit(piece)

    def _told(self, answer: Answer) -> tuple[TokenLogprobs, ...]:
        told, answer.held = tuple(answer.held), []
        return told

    def _next_token(self, answer: Answer) -> int:
        self._activate(answer.adapter)
        new = answer.tokens if answer.cache is None else answer.tokens[-1:]
        ids = torch.tensor([new], device=self._device)
        out = self._model(input_ids=ids, past_key_values=answer.cache, **self._forward)
        answer.cache = out.past_key_values
        logits = out.logits[:, -1].float()
        scores = logits
        if answer.processors:
            scores = answer.processors(torch.tensor([answer.tokens], device=self._device), logits)
        if answer.temperature > 0:
            scores = torch.multinomial(scores.softmax(-1), 1, generator=answer.generator)
        token = int(scores if answer.temperature > 0 else scores.argmax(-1))
        if answer.top_logprobs is not None and (answer.tells_end or token not in answer.ends):
            answer.held.append(_logprobs(logits[0].log_softmax(-1), token, answer.top_logprobs))
        return token


def _logprobs(row: torch.Tensor, token: int, count: int) -> TokenLogprobs:
    values, indices = row.topk(min(count, row.shape[-1]))
    top = tuple(zip(indices.tolist(), values.tolist(), strict=True))
    return TokenLogprobs(token, float(row[token]), top)
