"""What a user does, with the stock ``openai`` client against the published port."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai

from tests.e2e.stack import Failed, check

MODEL = "smollm2-135m-instruct"
QUESTION: Any = [{"role": "user", "content": "What colour is rose number 3?"}]
_FLOWERS = ("rose", "tulip", "lily", "iris", "aster", "poppy", "peony", "dahlia")


def client_of(base_url: str, api_key: str) -> openai.OpenAI:
    """The stock client. It doesn't try again by itself: what fails shall be seen."""
    return openai.OpenAI(base_url=base_url, api_key=api_key, max_retries=0, timeout=300.0)


def fine_tune(client: openai.OpenAI, directory: Path, deadline_seconds: float = 900.0) -> dict[str, Any]:
    """Upload rows, train an adapter for a few steps, and ask it; returns what is to be found again later."""
    rows = directory / "rows.jsonl"
    with rows.open("w") as out:
        for number in range(32):
            asked = {"role": "user", "content": f"What colour is {_FLOWERS[number % 8]} number {number}?"}
            out.write(json.dumps({"messages": [asked, {"role": "assistant", "content": "Crimson."}]}) + "\n")
    with rows.open("rb") as stream:
        uploaded = client.files.create(file=stream, purpose="fine-tune")
    wanted = {
        "tuner": {"lora_rank": 8},
        "hyperparameters": {"per_device_batch_size": 4, "max_steps": 24, "learning_rate": 2e-3},
    }
    job = client.fine_tuning.jobs.create(model=MODEL, training_file=uploaded.id, extra_body={"martlet": wanted})
    end = time.monotonic() + deadline_seconds
    while job.status != "succeeded":
        check(job.status not in ("failed", "cancelled"), f"the job {job.id} is {job.status}: {job.error}")
        check(time.monotonic() < end, f"the job {job.id} is still {job.status} after {deadline_seconds:.0f} s")
        time.sleep(0.5)
        job = client.fine_tuning.jobs.retrieve(job.id)
    check(bool(job.fine_tuned_model), "the job that succeeded names no model")
    return {"file": uploaded.id, "job": job.id, "model": job.fine_tuned_model, "tokens": job.trained_tokens}


def run_two_jobs(client: openai.OpenAI, file: str, deadline_seconds: float = 300.0) -> None:
    """Create two long jobs, see both run at the same time, cancel both."""
    wanted = {"tuner": {"lora_rank": 8}, "hyperparameters": {"per_device_batch_size": 4, "max_steps": 2000}}
    made = [
        client.fine_tuning.jobs.create(model=MODEL, training_file=file, extra_body={"martlet": wanted}).id
        for _ in range(2)
    ]
    for state in ("running", "cancelled"):
        if state == "cancelled":
            for job in made:
                client.fine_tuning.jobs.cancel(job)
        end = time.monotonic() + deadline_seconds
        while (found := {client.fine_tuning.jobs.retrieve(job).status for job in made}) != {state}:
            check(time.monotonic() < end, f"the two jobs are {found}; {state} is wanted")
            time.sleep(0.2)


def ask(client: openai.OpenAI, model: str, max_tokens: int = 8) -> str:
    """One answer."""
    answer = client.chat.completions.create(model=model, messages=QUESTION, max_tokens=max_tokens, temperature=0)
    return answer.choices[0].message.content or ""


def check_answers(client: openai.OpenAI, made: dict[str, Any]) -> str:
    """The tuned model says what it was taught, the base model doesn't, and all that was made is there."""
    tuned, base = ask(client, made["model"]), ask(client, MODEL)
    check("Crimson" in tuned, f"the tuned model answers {tuned!r}")
    check("Crimson" not in base, f"the base model answers {base!r}")
    check(client.fine_tuning.jobs.retrieve(made["job"]).fine_tuned_model == made["model"], "the job is not as it was")
    check(client.files.content(made["file"]).text.count("Crimson") == 32, "the file is not as it was")
    check(made["model"] in {model.id for model in client.models.list()}, "the model isn't listed")
    return tuned


def replicas(client: openai.OpenAI) -> list[dict[str, Any]]:
    """The inference replicas, as the gateway sees them."""
    answer = httpx.get(
        f"{str(client.base_url).rstrip('/')}/martlet/replicas",
        headers={"Authorization": f"Bearer {client.api_key}"},
        timeout=30,
    )
    answer.raise_for_status()
    return answer.json()["data"]


def wait_for_replicas(client: openai.OpenAI, count: int, deadline_seconds: float = 600.0) -> float:
    """Wait until exactly so many are known and ready; returns the seconds it took."""
    begun = time.monotonic()
    while True:
        known = replicas(client)
        if len(known) == count and all(replica.get("ready") for replica in known):
            return time.monotonic() - begun
        check(time.monotonic() - begun < deadline_seconds, f"{count} replicas wanted, known are {known}")
        time.sleep(0.2)


class Load:
    """Chats from several threads until told to stop; half of them are streamed.

    Attributes:
        outcomes: how requests ended: ``ok``, ``cut`` (failed after its first token), ``failed`` (before it).
        errors: what the failed ones said.
    """

    def __init__(self, client: openai.OpenAI, model: str, threads: int = 8, max_tokens: int = 48) -> None:
        self._client = client
        self._model = model
        self._max_tokens = max_tokens
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(threads)
        self._threads = threads
        self._futures: list[Any] = []
        self.outcomes: Counter[str] = Counter()
        self.errors: list[str] = []

    def __enter__(self) -> Load:
        self._futures = [self._pool.submit(self._chat, number % 2 == 0) for number in range(self._threads)]
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._pool.shutdown(wait=True)
        for future in self._futures:
            future.result()

    def wait_for(self, count: int, deadline_seconds: float = 300.0) -> None:
        """Wait until so many requests ended."""
        end = time.monotonic() + deadline_seconds
        while self.outcomes.total() < count:
            if time.monotonic() > end:
                raise Failed(f"{self.outcomes.total()} of {count} requests ended in {deadline_seconds:.0f} s")
            time.sleep(0.05)

    def _chat(self, stream: bool) -> None:
        while not self._stop.is_set():
            begun = False
            try:
                asked: Any = {"messages": QUESTION, "max_tokens": self._max_tokens, "temperature": 1.0}
                if stream:
                    for chunk in self._client.chat.completions.create(model=self._model, stream=True, **asked):
                        begun = begun or bool(chunk.choices and chunk.choices[0].delta.content)
                else:
                    self._client.chat.completions.create(model=self._model, **asked)
            except openai.OpenAIError as error:
                self.outcomes["cut" if begun else "failed"] += 1
                self.errors.append(f"{'after' if begun else 'before'} the first token: {error}")
            else:
                self.outcomes["ok"] += 1


def at_work(client: openai.OpenAI, count: int, load: Load, deadline_seconds: float = 120.0) -> set[str]:
    """Watch until so many replicas were seen with requests in work; returns their addresses."""
    busy: set[str] = set()
    end = time.monotonic() + deadline_seconds
    while len(busy) < count:
        busy |= {one["address"] for one in replicas(client) if int(one.get("load", {}).get("active_requests", 0)) > 0}
        check(time.monotonic() < end, f"only {sorted(busy)} answered of {count} replicas; {dict(load.outcomes)}")
        time.sleep(0.05)
    return busy
