"""``chat``: talk to a model, once or in a conversation; the answer appears as it is made."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from martlet_core.errors import InvalidArgument
from rich.markup import escape

from martlet_cli.context import Context, Subparsers, command
from martlet_cli.gateway import translated
from martlet_cli.platform_options import DEFAULT_MODEL


def add(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = command(subparsers, "chat", _chat, "chat with a model; without a message, a conversation begins")
    parser.add_argument("message", nargs="?", help="one question; - reads it from stdin")
    parser.add_argument(
        "--model", default=DEFAULT_MODEL, help=f"any name of `martlet models list` (default {DEFAULT_MODEL})"
    )
    parser.add_argument("--system", help="system message")
    parser.add_argument(
        "--max_tokens", "--max_new_tokens", type=int, default=256, help="longest answer in tokens (default 256)"
    )
    parser.add_argument(
        "--temperature", type=float, help="0 always takes the likeliest token (default: the model's own)"
    )
    parser.add_argument("--top_p", type=float, help="share of probability to sample from")
    parser.add_argument("--seed", type=int, help="makes sampling repeatable")


def _chat(context: Context, arguments: argparse.Namespace) -> int:
    messages: list[dict[str, str]] = [{"role": "system", "content": arguments.system}] if arguments.system else []
    if arguments.message:
        text = sys.stdin.read() if arguments.message == "-" else arguments.message
        _answer(context, arguments, [*messages, {"role": "user", "content": text}])
        return 0
    if not sys.stdin.isatty():
        raise InvalidArgument(
            "a conversation needs a terminal; give the message as an argument, or - to read it from stdin"
        )
    context.output.say(f"[dim]{escape(arguments.model)}; an empty line or Ctrl-D ends[/]")
    while True:
        try:
            text = context.output.console.input("[bold cyan]you[/]    ")
        except EOFError:
            return 0
        if not text.strip():
            return 0
        messages.append({"role": "user", "content": text})
        context.output.console.print("[bold green]model[/]  ", end="")
        messages.append({"role": "assistant", "content": _answer(context, arguments, messages)})


def _answer(context: Context, arguments: argparse.Namespace, messages: list[Any]) -> str:
    """Stream one answer to stdout; returns its text."""
    options = {
        name: value for name in ("temperature", "top_p", "seed") if (value := getattr(arguments, name)) is not None
    }
    output = context.output
    client = context.gateway.openai.with_options(max_retries=0)  # a person wants to know why, and now
    with translated():
        if output.as_json:
            whole = client.chat.completions.create(
                model=arguments.model, messages=messages, max_tokens=arguments.max_tokens, **options
            )
            output.json(whole.model_dump())
            return whole.choices[0].message.content or ""
        stream = client.chat.completions.create(
            model=arguments.model, messages=messages, max_tokens=arguments.max_tokens, stream=True, **options
        )
        parts = []
        for chunk in stream:
            part = chunk.choices[0].delta.content if chunk.choices else None
            if part:
                parts.append(part)
                output.console.print(part, end="", markup=False, soft_wrap=True)
    output.console.print()
    return "".join(parts)
