"""Rows: every file type, every format, and what is said about a bad one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from martlet_core.errors import InvalidArgument
from martlet_inputs.rows.report import MAX_ISSUES, DataReport
from martlet_inputs.rows.validate import check_dataset, valid_conversations, validate_dataset

USER, ANSWER = {"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}
GOOD = {"messages": [USER, ANSWER]}
CALL = {
    "role": "assistant",
    "tool_calls": [{"id": "c", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}],
}


def write(path: Path, *lines: Any) -> Path:
    texts = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


def turns(path: Path) -> list[list[tuple[str, str]]]:
    rows = valid_conversations(path, DataReport())
    return [[(m["role"], m["content"]) for m in row.content.messages] for row in rows]


@pytest.mark.parametrize(
    ("row", "name", "expected"),
    [
        (GOOD, "messages", [("user", "1+1?"), ("assistant", "2")]),
        ({"messages": [{"role": "developer", "content": "s"}, USER, ANSWER]}, "messages",
         [("system", "s"), ("user", "1+1?"), ("assistant", "2")]),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "1+1?"}]}, ANSWER]}, "messages",
         [("user", "1+1?"), ("assistant", "2")]),
        ({"prompt": "p", "completion": "c"}, "prompt_completion", [("user", "p"), ("assistant", "c")]),
        ({"prompt": [USER], "completion": [ANSWER]}, "prompt_completion", [("user", "1+1?"), ("assistant", "2")]),
        ({"query": "q", "response": "r", "history": [["a", "b"]], "system": "s"}, "query_response",
         [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "q"), ("assistant", "r")]),
        ({"instruction": "i", "input": "x", "output": "o"}, "alpaca", [("user", "i\nx"), ("assistant", "o")]),
        ({"instruction": "i", "input": "", "output": "o"}, "alpaca", [("user", "i"), ("assistant", "o")]),
        ({"conversations": [{"from": "human", "value": "h"}, {"from": "gpt", "value": "g"}], "system": "s"}, "sharegpt",
         [("system", "s"), ("user", "h"), ("assistant", "g")]),
        ({"conversation": [{"from": "human", "value": "h"}, {"from": "gpt", "value": "g"}]}, "sharegpt",
         [("user", "h"), ("assistant", "g")]),
    ],
)  # fmt: skip
def test_formats_are_recognised_by_their_fields(
    tmp_path: Path, row: dict[str, Any], name: str, expected: list[tuple[str, str]]
) -> None:
    path = write(tmp_path / "rows.jsonl", row)
    assert turns(path) == [expected]
    assert validate_dataset(path).format == name


@pytest.mark.parametrize(
    ("row", "field", "words"),
    [
        ('{"messages": [', "", "not valid JSON at column"),
        ("[1, 2]", "", "is an array, not an object"),
        ('{"messages": NaN}', "", "NaN is no JSON number"),
        ({}, "", "has no known format (fields: none)"),
        ({"text": "x"}, "", "has no known format (fields: text)"),
        ({"messages": []}, "messages", "at least one turn"),
        ({"messages": "hi"}, "messages", "must be a list"),
        ({"messages": ["hi"]}, "messages[0]", "must be an object"),
        ({"messages": [USER]}, "messages", "no assistant turn"),
        ({"messages": [USER, ANSWER, USER]}, "messages[2].role", "the last turn must be the assistant's"),
        ({"messages": [USER, {"role": "system", "content": "s"}, ANSWER]}, "messages[1].role", "only the first turn"),
        ({"messages": [{"role": "usr", "content": "x"}, ANSWER]}, "messages[0].role", "must be one of: system"),
        ({"messages": [{"content": "x"}, ANSWER]}, "messages[0].role", "is missing"),
        ({"messages": [USER, {"role": "assistant", "content": "  "}]}, "messages[1].content", "is empty"),
        ({"messages": [USER, {"role": "assistant", "content": 2}]}, "messages[1].content", "is int; must be text"),
        ({"messages": [USER, {"role": "assistant"}]}, "messages[1].content", "is empty"),
        ({"messages": [USER, {**ANSWER, "wieght": 0}]}, "messages[1].wieght", "is not known"),
        ({"messages": [USER, {**ANSWER, "weight": 0.5}]}, "messages[1].weight", "must be 0 or 1"),
        ({"messages": [USER, {**ANSWER, "weight": 0}]}, "messages", "every assistant turn has weight 0"),
        ({"messages": [USER, {**ANSWER, "loss": "yes"}]}, "messages[1].loss", "true or false"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}, ANSWER]}, "messages[0].content[0]", "text parts"),
        ({"messages": [USER, {"role": "tool", "content": "3"}, ANSWER]}, "messages[1].role", "must follow an assistant"),
        ({"messages": [USER, {**CALL, "tool_calls": [{"function": {}}]}]}, "messages[1].tool_calls[0].function", "name"),
        ({"messages": [USER, {**CALL, "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]},
         "messages[1].tool_calls[0].function.arguments", "not valid JSON"),
        ({**GOOD, "tools": "{"}, "tools", "not valid JSON"),
        ({**GOOD, "rejected_response": "3"}, "rejected_response", "preference pairs"),
        ({**GOOD, "images": ["a.png"]}, "images", "multimodal"),
        ({"prompt": "p", "completion": ""}, "completion", "is empty"),
        ({"prompt": "p", "completion": [ANSWER]}, "completion", "both text or both lists"),
        ({"query": 1, "response": "r"}, "query", "must be text"),
        ({"query": "q", "response": "r", "history": [["a"]]}, "history[0]", "pair of texts"),
        ({"instruction": "i", "output": None}, "output", "must be text"),
        ({"conversations": [{"from": "human", "value": "h"}, {"from": "function_call", "value": "{}"}]},
         "conversations[1].from", "tool_calls"),
        ({"conversations": [{"from": "human"}, {"from": "gpt", "value": "g"}]}, "conversations[0].value", "is missing"),
    ],
)  # fmt: skip
def test_a_bad_row_is_named_with_its_remedy(tmp_path: Path, row: Any, field: str, words: str) -> None:
    path = write(tmp_path / "rows.jsonl", row)
    report = validate_dataset(path)
    assert (report.rows_read, report.rows_used, report.rows_refused) == (1, 0, 1)
    issue = report.issues[0]
    assert (issue.line, issue.field) == (1, field)
    assert words in issue.message
    with pytest.raises(InvalidArgument) as caught:
        check_dataset(path, "skip")
    assert caught.value.reason == "BAD_ROWS"


def test_tool_turns_are_kept(tmp_path: Path) -> None:
    rows = {"messages": [USER, CALL, {"role": "tool", "content": "2", "tool_call_id": "c"}, ANSWER], "tools": "[]"}
    row = next(iter(valid_conversations(write(tmp_path / "rows.jsonl", rows), DataReport())))
    assert row.content.messages[1]["tool_calls"][0]["function"]["arguments"] == {"a": 1}
    assert row.content.messages[2]["tool_call_id"] == "c"
    assert row.content.trained == (False, True, False, True)


def test_lines_are_counted_as_an_editor_counts_them(tmp_path: Path) -> None:
    """U+2028 inside a string breaks no row, blank lines count, and a byte order mark is no part of the first row."""
    path = tmp_path / "rows.jsonl"
    odd = json.dumps({"messages": [{"role": "user", "content": "a\u2028b"}, ANSWER]}, ensure_ascii=False)
    good = json.dumps(GOOD)
    path.write_bytes(("\ufeff" + odd + "\r\n\n" + good + "\n{oops\n" + good).encode())
    report = validate_dataset(path)
    assert (report.rows_read, report.rows_used) == (4, 3)
    assert [issue.line for issue in report.issues] == [4]


def test_one_bad_row_in_many_fails_or_is_skipped(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", *[GOOD] * 811, '{"messages": [}', *[GOOD] * 10)
    with pytest.raises(InvalidArgument) as caught:
        check_dataset(path, "fail")
    assert caught.value.reason == "BAD_ROWS"
    assert "1 of 822 rows were refused" in caught.value.message
    assert "line 812" in caught.value.violations[0].description
    report = check_dataset(path, "skip")
    assert (report.rows_read, report.rows_used, report.rows_refused) == (822, 821, 1)
    assert set(report.to_dict()) == {
        "rows_read", "rows_used", "rows_truncated", "rows_refused", "tokens", "loss_tokens", "issues", "format", "sources"
    }  # fmt: skip


def test_formats_do_not_mix(tmp_path: Path) -> None:
    report = validate_dataset(write(tmp_path / "rows.jsonl", GOOD, {"prompt": "p", "completion": "c"}))
    assert (report.format, report.rows_refused) == ("messages", 1)
    assert "keep one format" in report.issues[0].message


def test_issues_are_counted_beyond_those_that_are_kept(tmp_path: Path) -> None:
    report = validate_dataset(write(tmp_path / "rows.jsonl", *["{"] * (MAX_ISSUES + 20)))
    assert (report.rows_refused, len(report.issues)) == (MAX_ISSUES + 20, MAX_ISSUES)


def test_unused_fields_are_named(tmp_path: Path) -> None:
    assert validate_dataset(write(tmp_path / "rows.jsonl", {**GOOD, "id": 1, "source": "x"})).ignored_fields == [
        "id",
        "source",
    ]


@pytest.mark.parametrize(
    ("name", "content", "reason", "words"),
    [
        ("rows.jsonl", b"", "EMPTY_DATASET", "is empty"),
        ("rows.jsonl", b"\n\n", "EMPTY_DATASET", "has no rows"),
        ("rows.json", b'[{"messages": []},\n{"a": }]', "UNREADABLE_DATASET", "line 2, column 7"),
        ("rows.json", b'"text"', "UNREADABLE_DATASET", "is a string"),
        ("rows.csv", b"prompt,prompt\na,b\n", "UNREADABLE_DATASET", "name every column once"),
        ("rows.csv", b"prompt,completion\n\xff,b\n", "UNREADABLE_DATASET", "not UTF-8"),
        ("rows.parquet", b"PAR1 no", "UNREADABLE_DATASET", "not a readable Parquet"),
        ("rows.bin", b"\x00\x01", "UNREADABLE_DATASET", "type not known"),
    ],
)
def test_a_broken_file_is_refused_as_a_whole(
    tmp_path: Path, name: str, content: bytes, reason: str, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidArgument) as caught:
        check_dataset(tmp_path, "skip")
    assert caught.value.reason == reason
    assert words in caught.value.message


def test_other_file_types_give_the_same_rows(tmp_path: Path) -> None:
    expected = [[("user", "p, 1"), ("assistant", "c\n2")]]
    (tmp_path / "rows.json").write_text(json.dumps([{"prompt": "p, 1", "completion": "c\n2"}]))
    (tmp_path / "rows.csv").write_text('prompt,completion\n"p, 1","c\n2"\n')
    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["p, 1"], "completion": ["c\n2"]}), tmp_path / "rows.parquet")
    write(tmp_path / "without_suffix", {"prompt": "p, 1", "completion": "c\n2"})
    for name in ("rows.json", "rows.csv", "rows.parquet", "without_suffix"):
        assert turns(tmp_path / name) == expected, name


def test_parquet_nulls_are_absent_fields(tmp_path: Path) -> None:
    rows = [
        {
            "messages": [
                {"role": "user", "content": "a", "weight": None},
                {"role": "assistant", "content": "b", "weight": 1},
            ]
        }
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    assert turns(tmp_path) == [[("user", "a"), ("assistant", "b")]]


def test_csv_rows_are_named_by_their_line(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text('prompt,completion\n"a\nb",c\nonly\n\np,\n')
    report = validate_dataset(tmp_path)
    assert [(issue.line, issue.field) for issue in report.issues] == [(4, ""), (6, "completion")]


def test_several_files_are_told_apart(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", GOOD)
    write(tmp_path / "b.jsonl", GOOD, "{")
    report = validate_dataset(tmp_path)
    assert report.rows_used == 2
    assert report.issues[0].describe().startswith("b.jsonl line 2: ")


def test_validation_needs_no_ml_library() -> None:
    """The service validates at submission, and it has to stay small."""
    import subprocess
    import sys

    code = "import sys, martlet_inputs.rows.validate, martlet_trainer.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
