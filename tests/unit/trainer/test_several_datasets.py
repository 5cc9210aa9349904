"""Several data sets in one training: which rows are drawn, what is counted, and tokens that are found again."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from martlet_core.errors import InvalidArgument
from martlet_inputs.rows.report import DataReport
from martlet_trainer.config import DatasetSample, parse_training_config
from martlet_trainer.data.mix import Rows, mix
from martlet_trainer.data.token_cache import make_room
from martlet_trainer.recipes.training import run
from martlet_trainer.testing import Recorder, chat_rows, lay_out, training_spec, write_jsonl


class Row:
    """A row of one token that knows its number."""

    token_count = 1

    def __init__(self, number: int) -> None:
        self.number = number


def loaded(*sources: tuple[int, dict[str, Any]]) -> list[tuple[DatasetSample, list[Row], DataReport]]:
    """Data sets of so many rows each; the second one's rows are numbered from 1000, and so on."""
    return [
        (
            DatasetSample(dataset=f"artifacts/{index}", **sample),
            [Row(1000 * index + i) for i in range(count)],
            DataReport(rows_read=count, rows_used=count),
        )
        for index, (count, sample) in enumerate(sources)
    ]


def numbers(rows: Rows[Row]) -> list[int]:
    return [row.number for row in rows]


def test_a_single_data_set_is_taken_as_it_is() -> None:
    rows, validation, report = mix(loaded((5, {})), 0.0, 42)
    assert numbers(rows) == [0, 1, 2, 3, 4]
    assert len(validation) == 0
    assert not report.sources


def test_rows_are_drawn_without_repeats_up_to_the_size_and_evenly_above() -> None:
    rows, _, report = mix(loaded((10, {"count": 4}), (3, {"count": 8}), (6, {"share": 0.5}), (2, {})), 0.0, 42)
    found = numbers(rows)
    first, second, third, fourth = (Counter(n for n in found if n // 1000 == index) for index in range(4))
    assert (first.total(), set(first.values())) == (4, {1})
    assert (second.total(), sorted(second.values())) == (8, [2, 3, 3])
    assert (third.total(), set(third.values())) == (3, {1})
    assert sorted(fourth.elements()) == [3000, 3001]
    assert [(count.rows_used, count.rows_drawn) for count in report.sources] == [(10, 4), (3, 8), (6, 3), (2, 2)]
    assert (report.rows_used, report.rows_read) == (21, 21)
    assert numbers(mix(loaded((10, {"count": 4})), 0.0, 42)[0]) == sorted(first), "the same seed, the same rows"
    assert numbers(mix(loaded((1000, {"count": 4})), 0.0, 43)[0]) != numbers(
        mix(loaded((1000, {"count": 4})), 0.0, 42)[0]
    )


def test_every_data_set_is_validated_on_and_no_row_is_in_both() -> None:
    rows, validation, _ = mix(loaded((10, {"count": 50}), (4, {})), 0.25, 42)
    assert Counter(n // 1000 for n in numbers(validation)) == {0: 2, 1: 1}
    assert not set(numbers(rows)) & set(numbers(validation))
    assert len(rows) == 50 + 3
    with pytest.raises(InvalidArgument, match="at least two usable rows in artifacts/1"):
        mix(loaded((10, {}), (1, {})), 0.25, 42)


def test_rows_are_a_sequence() -> None:
    rows = Rows([([1, 2, 3], np.array([2, 0])), ([], np.zeros(0, int)), ([7], np.array([0, 0]))])
    assert list(rows) == [3, 1, 7, 7]
    assert (rows[-1], rows[1:3], len(rows)) == (7, [1, 7], 4)
    with pytest.raises(IndexError):
        rows[4]


@pytest.mark.parametrize(
    ("samples", "field"),
    [
        ([{"dataset": "artifacts/b"}], "spec.training_datasets"),
        ([{"dataset": "artifacts/a", "count": 1, "share": 0.5}], "spec.training_datasets.0.share"),
        ([{"dataset": "artifacts/a"}, {"dataset": "rows.jsonl"}], "spec.training_datasets.1.dataset"),
        ([{"dataset": "artifacts/a"}, {"dataset": "hf:org/rows"}], "spec.training_datasets.1.dataset"),
        ([{"dataset": "artifacts/a", "count": 0}], "spec.training_datasets.0.count"),
        ([{"dataset": "artifacts/a"}] * 65, "spec.training_datasets"),
    ],
)
def test_what_cant_be_is_refused_by_field(samples: list[dict[str, Any]], field: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        parse_training_config(training_spec(training_datasets=samples))
    assert field in [violation.field for violation in refused.value.violations]


def train(
    workdir: Path, base: Path, cache: Path | None = None, **changes: Any
) -> tuple[Recorder, bytes, dict[str, Any]]:
    report = Recorder()
    spec = training_spec(**changes) | ({"token_cache": str(cache)} if cache else {})
    result = run(spec, workdir, report, lambda: False)
    return report, (workdir / "output/model/adapter_model.safetensors").read_bytes(), dict(result.values)


def test_a_training_on_three_data_sets_counts_what_each_gave(tiny_model_dir: Path, tmp_path: Path) -> None:
    samples = [
        {"dataset": "artifacts/a", "count": 5},
        {"dataset": "artifacts/b", "name": "sums"},
        {"dataset": "artifacts/c", "share": 2},
    ]
    work = lay_out(tmp_path / "work", tiny_model_dir, chat_rows(12))
    write_jsonl(work / "inputs/training_dataset_2/rows.jsonl", chat_rows(4, start=20))
    write_jsonl(work / "inputs/training_dataset_3/rows.jsonl", [*chat_rows(3, start=30), {"messages": []}])
    report, _, values = train(work, tiny_model_dir, training_datasets=samples, data={"on_bad_rows": "skip"})
    data = values["training_data"]
    assert [(s["name"], s["rows_used"], s["rows_drawn"]) for s in data["sources"]] == [
        ("artifacts/a", 12, 5),
        ("sums", 4, 4),
        ("artifacts/c", 3, 6),
    ]
    assert all(source["tokens"] > 0 for source in data["sources"])
    assert (data["rows_used"], data["rows_refused"]) == (19, 1)
    assert data["issues"][0]["message"].startswith("artifacts/c: ")
    assert any("5 of 12 rows of artifacts/a" in line for line in report.lines)


def test_a_second_job_tokenizes_nothing_and_ends_with_the_same_bytes(tiny_model_dir: Path, tmp_path: Path) -> None:
    cache, changes = tmp_path / "cache", {"data": {"validation_split": 0.25, "packing": True}}
    _, without, plain = train(lay_out(tmp_path / "w0", tiny_model_dir, chat_rows(12)), tiny_model_dir, **changes)
    first, made, _ = train(lay_out(tmp_path / "w1", tiny_model_dir, chat_rows(12)), tiny_model_dir, cache, **changes)
    second, found, values = train(
        lay_out(tmp_path / "w2", tiny_model_dir, chat_rows(12)), tiny_model_dir, cache, **changes
    )
    assert any("12 rows were tokenized" in line for line in first.lines)
    assert any("the tokens of 12 rows were in the cache" in line for line in second.lines)
    assert without == made == found
    assert json.dumps(values["training_data"]) == json.dumps(plain["training_data"])
    assert first.losses == second.losses
    other, _, _ = train(
        lay_out(tmp_path / "w3", tiny_model_dir, chat_rows(12)), tiny_model_dir, cache, data={"system": "Be brief."}
    )
    assert any("12 rows were tokenized" in line for line in other.lines), "other options are another entry"
    train(lay_out(tmp_path / "w4", tiny_model_dir, chat_rows(13)), tiny_model_dir, cache, **changes)
    assert len([path for path in cache.iterdir() if path.is_dir()]) == 3


def test_bad_rows_are_reported_from_the_cache_as_they_were(tiny_model_dir: Path, tmp_path: Path) -> None:
    rows = [*chat_rows(6), {"messages": []}]
    reports = [
        train(
            lay_out(tmp_path / name, tiny_model_dir, rows),
            tiny_model_dir,
            tmp_path / "cache",
            data={"on_bad_rows": "skip"},
        )[2]
        for name in ("w1", "w2")
    ]
    assert reports[0]["training_data"] == reports[1]["training_data"]
    with pytest.raises(InvalidArgument):
        train(lay_out(tmp_path / "w3", tiny_model_dir, rows), tiny_model_dir, tmp_path / "cache")


def test_what_was_used_last_stays_and_the_bound_is_kept(tmp_path: Path) -> None:
    import os

    for age, name in enumerate(("old", "middle", "new")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "input_ids").write_bytes(bytes(100))
        os.utime(tmp_path / name, (1000 + age, 1000 + age))
    make_room(tmp_path, tmp_path / "new", max_bytes=250)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["middle", "new"]
    make_room(tmp_path, tmp_path / "new", max_bytes=10)
    assert [path.name for path in tmp_path.iterdir()] == ["new"], "the entry at hand stays, however large"
