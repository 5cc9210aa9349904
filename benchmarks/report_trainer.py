"""The lines and tables of ``RESULTS.md`` that tell of the trainer's speed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from report_row import Row, rounds_of


def _beside(workload: str, peer: str, key: str) -> Callable[[Any], float]:
    return lambda record: record["workloads"][workload]["ratio"][peer][key]


def _speed(workload: str, peer: str) -> Callable[[Any], str]:
    def text(record: Any) -> str:
        found = record["workloads"][workload]["median"]
        mine, theirs = (found[side]["tokens_per_second"] for side in ("martlet", peer))
        return f"{mine:.0f} against {theirs:.0f} tokens/s: {_beside(workload, peer, 'tokens_per_second')(record):.2f}"

    return text


def _memory(workload: str, peer: str) -> Callable[[Any], str]:
    def text(record: Any) -> str:
        found = record["workloads"][workload]["median"]
        mine, theirs = (found[side]["peak_memory_mb"] for side in ("martlet", peer))
        return f"{mine:,.0f} against {theirs:,.0f} MB: {_beside(workload, peer, 'peak_memory_mb')(record):.2f}"

    return text


def peer_rows(name: str, precision: str) -> Iterator[Row]:
    """Speed beside each peer and workload, then memory beside TRL."""
    answers = {"classify": "one-word answers", "write": "longer answers"}
    peers = {"trl": ("bare TRL", 1.0), "ms-swift": ("ms-swift", 1.15), "llamafactory": ("LLaMA-Factory", 1.15)}
    for peer, (title, least) in peers.items():
        for workload, kind in answers.items():
            ratio = _beside(workload, peer, "tokens_per_second")
            yield Row(
                f"training in {precision} beside {title}, {kind}: tokens/s",
                name,
                f">= {least:.2f}",
                _speed(workload, peer),
                lambda r, ratio=ratio, least=least: ratio(r) >= least,
            )
    for workload, kind in answers.items():
        memory = _beside(workload, "trl", "peak_memory_mb")
        yield Row(
            f"training in {precision} beside bare TRL, {kind}: peak memory",
            name,
            "<= 1.02",
            _memory(workload, "trl"),
            lambda r, memory=memory: memory(r) <= 1.02,
        )


def _packed(record: Any, precision: str) -> float:
    """By CPU seconds, which other work on the machine disturbs less; one thread has as many of them as there are seconds."""
    found = record[precision]["median"]
    return found["packed"]["tokens_per_cpu_second"] / found["single"]["tokens_per_cpu_second"]


def _as_good(record: Any, precision: str) -> bool:
    """Whether packs end with no larger loss than single rows; the order of rows alone moves it by more than 2 %."""
    found = record[precision]["median"]
    return found["packed"]["valid_loss"] <= 1.02 * found["single"]["valid_loss"]


def _packing(precision: str) -> Callable[[Any], str]:
    def text(record: Any) -> str:
        found = record[precision]
        rates = ", ".join(f"{side} {row['tokens_per_cpu_second']:.0f}" for side, row in found["median"].items())
        losses = ", ".join("/".join(f"{run['valid_loss']:.3f}" for run in runs) for runs in found["runs"].values())
        return f"{rates} tokens/CPU-s: {_packed(record, precision):.2f}; held-out loss by seed {losses}"

    return text


def packing_rows() -> Iterator[Row]:
    """Packing in each precision."""
    for precision in ("bfloat16", "float32"):
        yield Row(
            f"packing of short rows in {precision}, beside micro-batches of one row and of twelve: tokens/CPU-s",
            "packing",
            ">= 3.0, loss no larger",
            _packing(precision),
            lambda r, precision=precision: _packed(r, precision) >= 3.0 and _as_good(r, precision),
        )


def parts_table(record: Any) -> list[str]:
    """What each part of the trainer's computation is worth."""
    if record is None:
        return []
    columns = [(p, w, part["median"]) for p, found in record["precisions"].items() for w, part in found.items()]
    names = [f"{precision}, {workload}" for precision, workload, _ in columns]
    lines = [
        f"The trainer's `sft`, with one part taken out at a time (`trainer_parts`; threads: {record['threads']}; {rounds_of(record)}): tokens/s, "
        "peak MB.",
        "",
        "| taken out | " + " | ".join(names) + " |",
        "|---" * (len(names) + 1) + "|",
    ]
    for side in columns[0][2]:
        cells = [
            f"{found[side]['tokens_per_second']:.0f}, {found[side]['peak_memory_mb']:,.0f}" for *_, found in columns
        ]
        lines.append(f"| {'nothing' if side == 'as it is' else side} | " + " | ".join(cells) + " |")
    return lines


def profile_table(record: Any) -> list[str]:
    """Where a training's time goes."""
    if record is None:
        return []
    columns = [(f"{p}, {w}", part["shares"]) for p, found in record["precisions"].items() for w, part in found.items()]
    lines = [
        "Where the time of the trainer's `sft` goes (`trainer_profile`): shares of CPU seconds.",
        "",
        "| kind of work | " + " | ".join(name for name, _ in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for kind in columns[0][1]:
        lines.append(f"| {kind} | " + " | ".join(f"{shares[kind]:.1%}" for _, shares in columns) + " |")
    return lines
