"""Calibration: rows become windows, nothing is dropped, and what is measured was never calibrated with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from martlet_core.errors import InvalidArgument
from martlet_quantizer import testing
from martlet_quantizer.calibration import calibrate, choose
from martlet_quantizer.quality import windows
from martlet_quantizer.rows import Row, check_disjoint, read_rows
from martlet_quantizer.texts import calibration_rows, heldout_rows


def text_of(row: Row) -> str:
    return row["text"] if "text" in row else "\n".join(turn["content"] for turn in row["messages"])


def shingles(rows: list[Row], words: int = 6) -> set[tuple[str, ...]]:
    found = set()
    for row in rows:
        split = text_of(row).lower().split()
        found |= {tuple(split[i : i + words]) for i in range(len(split) - words + 1)}
    return found


def test_the_built_in_sets_are_disjoint() -> None:
    check_disjoint(calibration_rows(), heldout_rows())
    assert shingles(calibration_rows()) & shingles(heldout_rows()) == set()


def test_the_built_in_calibration_set_is_large_and_of_several_kinds() -> None:
    rows = calibration_rows()
    kinds = {"messages" if "messages" in row else "text" for row in rows}
    assert kinds == {"messages", "text"}
    assert sum(len(text_of(row)) for row in rows) > 32 * 256 * 3  # characters; SmolLM2's tokens have 3.3 here
    assert all(row["messages"][-1]["role"] == "assistant" for row in rows if "messages" in row)


def test_long_rows_are_chopped_and_nothing_is_lost() -> None:
    tokenizer = testing.byte_tokenizer()
    rows: list[Row] = [{"text": "x" * (10 * index)} for index in range(1, 21)]
    found = calibrate(tokenizer, rows, max_rows=64, sequence_length=64, seed=1)
    assert (found.read, found.used, found.chopped) == (20, 20, 14)
    assert sum(map(len, found.windows)) == sum(10 * index for index in range(1, 21))
    assert max(map(len, found.windows)) == 64


def test_conversations_get_the_chat_template() -> None:
    tokenizer = testing.byte_tokenizer()
    rows: list[Row] = [{"messages": [{"role": "user", "content": "hi"}]}] * 16
    found = calibrate(tokenizer, rows, max_rows=16, sequence_length=64, seed=1)
    assert tokenizer.decode(found.windows[0]) == "<|im_start|>user\nhi<|im_end|>\n"


def test_too_few_rows_are_refused_with_the_number() -> None:
    with pytest.raises(InvalidArgument, match="has 15 rows; at least 16 are needed") as caught:
        choose([{"text": "a"}] * 15, 128, 1)
    assert caught.value.reason == "TOO_FEW_CALIBRATION_ROWS"


def test_rows_are_drawn_by_the_seed_and_keep_their_order() -> None:
    rows: list[Row] = [{"text": str(index)} for index in range(100)]
    one, again, other = (choose(rows, 16, seed) for seed in (1, 1, 2))
    assert one == again != other
    assert [int(row["text"]) for row in one] == sorted(int(row["text"]) for row in one)


def test_rows_shared_with_the_evaluation_set_are_refused(tmp_path: Path) -> None:
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    first.write_text("".join(json.dumps({"query": f"row {i}", "response": "yes"}) + "\n" for i in range(20)))
    second.write_text('{"prompt": "row 3", "completion": "yes"}\n{"prompt": "row 3", "completion": "no"}\n')
    with pytest.raises(InvalidArgument, match="shares 1 of its 2 rows") as caught:
        check_disjoint(read_rows(first, "a"), read_rows(second, "b"))
    assert caught.value.reason == "CALIBRATION_OVERLAPS_EVALUATION"


def test_windows_are_spread_over_all_texts() -> None:
    found = windows([[index] * 8 for index in range(640)])
    assert [window[0] for window in found] == list(range(0, 640, 10))


def test_a_prefix_is_added_once() -> None:
    assert windows([[7, *range(8)], list(range(8))], [7]) == [[7, *range(8)], [7, *range(8)]]


def test_texts_that_are_too_short_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="no text of at least 8 tokens"):
        windows([[1, 2, 3]])
