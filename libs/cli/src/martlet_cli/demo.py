"""The main job, end to end: environments, platform, data, accuracy before, fine-tuning, accuracy after, a chat.

Everything that is measured goes through the gateway with the stock ``openai`` client: it is what a user gets.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from martlet_core.errors import FailedPrecondition, Unavailable
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from martlet_cli import environments, launcher, platform_state
from martlet_cli.accuracy import MAX_TOKENS, Answers, Question, ask, load_questions
from martlet_cli.gateway import Connection, Gateway, translated
from martlet_cli.layout import Layout, write_json
from martlet_cli.output import Output, duration
from martlet_cli.pip_config import base_python
from martlet_cli.platform_options import PlatformOptions
from martlet_cli.statistics import Gain, paired_gain
from martlet_cli.watch import JobView, follow

EXAMPLE = Path("examples/headlines")
#: The demo fails unless the lower end of the gain's 95 % interval is above this (a share: 5 points).
LEAST_GAIN = 0.05


@dataclass(frozen=True)
class DemoResult:
    """What ``.martlet/demo.json`` holds. Accuracies are shares, times are seconds unless the name says otherwise.

    Attributes:
        gain_low: lower end of the 95 % interval of the gain.
        gain_high: its upper end.
        base_unreadable: answers of the base model that were none of the labels; they count as wrong.
        tuned_unreadable: the same for the tuned model.
        submit_to_running_ms: from sending the request to the worker's claim.
        succeeded_to_first_token_ms: from the job's end to the first token of the tuned model; that includes the time
            until this command saw the end.
        setup_seconds: environments, data, and starting the platform.
        total_seconds: the whole command.
    """

    model: str
    dataset: str
    train_rows: int
    test_rows: int
    base_accuracy: float
    tuned_accuracy: float
    gain: float
    gain_low: float
    gain_high: float
    base_unreadable: int
    tuned_unreadable: int
    train_seconds: float
    train_tokens_per_second: float
    submit_to_running_ms: float
    succeeded_to_first_token_ms: float
    setup_seconds: float
    total_seconds: float
    fine_tuned_model: str


@dataclass(frozen=True)
class Example:
    """The prepared example: where its rows are, and the job to make of them."""

    name: str
    train: Path
    test: Path
    request: dict[str, Any]


@dataclass(frozen=True)
class Tuned:
    """What came of the fine-tuning job."""

    job: JobView
    submit_to_running_ms: float
    succeeded_to_first_token_ms: float


def run(layout: Layout, output: Output, up_arguments: list[str], *, keep: bool) -> DemoResult:
    """Run the demo; a platform that it starts is stopped again unless ``keep``.

    Raises:
        MartletError: if a step fails.
    """
    begun = time.monotonic()
    say = output.say
    with background(lambda: prepare(layout, say)) as example_of:
        for name in PlatformOptions(stages=("trainer",)).services:
            environments.sync(layout, name, say=lambda line: say(f"[dim]{escape(line)}[/]"))
        with demo_platform(layout, up_arguments, say, keep):
            example = example_of()
            setup_seconds = time.monotonic() - begun
            gateway = Gateway(Connection.discover(layout))
            return _measure(layout, output, gateway, example, begun, setup_seconds)


def _measure(
    layout: Layout, output: Output, gateway: Gateway, example: Example, begun: float, setup_seconds: float
) -> DemoResult:
    questions = load_questions(example.test)
    train_rows = sum(1 for line in example.train.read_bytes().split(b"\n") if line.strip())
    output.say(f"\n[bold]before[/]: {len(questions)} held-out rows, {example.request['model']}")
    before = _ask(output, gateway, example.request["model"], questions)
    output.say(f"\n[bold]fine-tuning[/] on {train_rows} rows")
    tuned = fine_tune(output, gateway, example, questions[0])
    output.say(f"\n[bold]after[/]: the same rows, {escape(tuned.job.fine_tuned_model)}")
    after = _ask(output, gateway, tuned.job.fine_tuned_model, questions)
    gain = paired_gain(before.right, after.right)
    outcome = tuned.job.raw["martlet"]["result"]
    train_seconds = float(outcome["train_seconds"])
    result = DemoResult(
        model=example.request["model"],
        dataset=example.name,
        train_rows=train_rows,
        test_rows=len(questions),
        base_accuracy=gain.before,
        tuned_accuracy=gain.after,
        gain=gain.gain,
        gain_low=gain.low,
        gain_high=gain.high,
        base_unreadable=before.unreadable,
        tuned_unreadable=after.unreadable,
        train_seconds=train_seconds,
        train_tokens_per_second=outcome["trained_tokens"] / train_seconds if train_seconds else 0.0,
        submit_to_running_ms=tuned.submit_to_running_ms,
        succeeded_to_first_token_ms=tuned.succeeded_to_first_token_ms,
        setup_seconds=setup_seconds,
        total_seconds=time.monotonic() - begun,
        fine_tuned_model=tuned.job.fine_tuned_model,
    )
    write_json(layout.home / "demo.json", {name: _rounded(value) for name, value in asdict(result).items()})
    _show(output, result, before, after)
    if not output.as_json:
        _chat(output, gateway, result.fine_tuned_model, questions, before, after)
    _require_gain(gain)
    return result


def prepare(layout: Layout, say: Callable[[str], None]) -> Example:
    """Fetch the example's data and make the rows; kept for the next time.

    Raises:
        FailedPrecondition: if its script fails.
    """
    directory = layout.home / "examples" / EXAMPLE.name
    config = json.loads((layout.root / EXAMPLE / "config.json").read_text())
    script = layout.root / EXAMPLE / "prepare.py"
    done = subprocess.run(
        [sys.executable, str(script), "--out", str(directory), "--python", base_python()],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise FailedPrecondition(f"{script} failed with exit code {done.returncode}:\n{done.stderr[-2000:]}")
    say(f"[dim]data: {escape(done.stdout.strip() or str(directory))}[/]")
    return Example(config["name"], directory / "train.jsonl", directory / "test.jsonl", config["request"])


def fine_tune(output: Output, gateway: Gateway, example: Example, sample: Question) -> Tuned:
    """Upload, train with live progress, and ask the tuned model the moment it is there.

    Raises:
        FailedPrecondition: if the job doesn't succeed.
    """
    request = dict(example.request)
    extension = request.pop("martlet")
    with translated():
        with open(example.train, "rb") as rows:
            uploaded = gateway.openai.files.create(file=(example.train.name, rows), purpose="fine-tune")
        submitted = time.time()
        job = gateway.openai.fine_tuning.jobs.create(
            training_file=uploaded.id, **request, extra_body={"martlet": extension}
        )
    seen = follow(gateway, job.id, output)
    if seen.status != "succeeded":
        raise FailedPrecondition(f"the job {seen.id} {seen.status}: {seen.error}")
    first_token = _first_token_time(gateway, seen.fine_tuned_model, sample)
    started, ended = (
        datetime.fromisoformat(seen.raw["martlet"][name]).timestamp() for name in ("start_time", "end_time")
    )
    return Tuned(seen, max(0.0, started - submitted) * 1000, (first_token - ended) * 1000)


def _first_token_time(gateway: Gateway, model: str, sample: Question) -> float:
    """When the first token arrived, in seconds since the epoch."""
    for _part in _stream(gateway, model, sample):
        return time.time()
    raise Unavailable(f"{model} answered without a token")


def _stream(gateway: Gateway, model: str, question: Question) -> Iterator[str]:
    """The parts of an answer as they come."""
    messages: Any = list(question.messages)
    with (
        translated(),
        gateway.openai.chat.completions.create(
            model=model, messages=messages, max_tokens=MAX_TOKENS, temperature=0.0, stream=True
        ) as stream,
    ):
        for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content:
                yield chunk.choices[0].delta.content


def _ask(output: Output, gateway: Gateway, model: str, questions: list[Question]) -> Answers:
    bar = Progress(
        TextColumn("asking"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=output.console,
        transient=True,
        disable=not output.live,
    )
    begun = time.monotonic()
    with bar:
        task = bar.add_task("asking", total=len(questions))
        answers = ask(gateway.openai, model, questions, done=lambda count: bar.update(task, completed=count))
    output.say(f"accuracy {answers.accuracy:.1%} in {duration(time.monotonic() - begun)}")
    return answers


def _show(output: Output, result: DemoResult, before: Answers, after: Answers) -> None:
    if output.as_json:
        output.json({name: _rounded(value) for name, value in asdict(result).items()})
        return
    rows = [
        {
            "model": result.model,
            "right": f"{sum(before.right)}/{result.test_rows}",
            "accuracy": f"{before.accuracy:.1%}",
            "unreadable": before.unreadable,
        },
        {
            "model": result.fine_tuned_model,
            "right": f"{sum(after.right)}/{result.test_rows}",
            "accuracy": f"{after.accuracy:.1%}",
            "unreadable": after.unreadable,
        },
    ]
    output.console.print()
    output.table(rows, ("model", "right", "accuracy", "unreadable"), title=f"{result.dataset}, held-out rows")
    output.console.print(
        f"gain {result.gain * 100:+.1f} points, 95 % interval {result.gain_low * 100:+.1f} to "
        f"{result.gain_high * 100:+.1f}; trained {result.train_seconds:.0f} s at "
        f"{result.train_tokens_per_second:.0f} tokens/s; whole command {duration(result.total_seconds)}"
    )


def _chat(
    output: Output, gateway: Gateway, model: str, questions: list[Question], before: Answers, after: Answers
) -> None:
    """One question that the tuned model learned to answer, asked again, streamed."""
    picked = next((i for i in range(len(questions)) if after.right[i] and not before.right[i]), 0)
    for message in questions[picked].messages:
        output.console.print(f"\n[bold cyan]{message['role']:<9}[/] {escape(message['content'])}", end="")
    output.console.print(f"\n[bold]{'before':<9}[/] {escape(before.texts[picked].strip())}")
    output.console.print(f"[bold green]{'after':<9}[/] ", end="")
    for part in _stream(gateway, model, questions[picked]):
        output.console.print(part, end="", markup=False, soft_wrap=True)
    output.console.print("\n")


def _require_gain(gain: Gain) -> None:
    if gain.low <= LEAST_GAIN:
        raise FailedPrecondition(
            f"the gain's 95 % interval begins at {gain.low * 100:+.1f} points; it must begin above "
            f"{LEAST_GAIN * 100:+.0f}. The numbers are in demo.json."
        )


@contextmanager
def demo_platform(layout: Layout, up_arguments: list[str], say: Callable[[str], None], keep: bool) -> Iterator[None]:
    """The platform, with inference ready: the one that runs already, or one of our own."""
    if platform_state.running_launcher(layout):
        say("[dim]the platform is up already; it stays up[/]")
        yield
        return
    say("starting the platform")
    try:
        launcher.start_detached(layout, up_arguments, lambda line: say(f"[dim]{escape(line)}[/]"), wait_for="all")
        yield
    finally:
        if not keep:
            say("[dim]stopping the platform; `make up` starts it again with everything in it[/]")
            platform_state.stop(layout, lambda line: None)


@contextmanager
def background(work: Callable[[], Example]) -> Iterator[Callable[[], Example]]:
    """Do the work in a thread; yields a function that waits for it and gives its result or its error."""
    outcome: list[Example | BaseException] = []

    def do() -> None:
        try:
            outcome.append(work())
        except Exception as error:  # noqa: BLE001 - raised again in the thread that waits
            outcome.append(error)

    thread = threading.Thread(target=do, name="demo-data")
    thread.start()

    def result() -> Example:
        thread.join()
        if isinstance(outcome[0], BaseException):
            raise outcome[0]
        return outcome[0]

    try:
        yield result
    finally:
        thread.join()


def _rounded(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value
