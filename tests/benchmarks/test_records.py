"""Rows that outlive a kill, and the intervals of their means."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from benchmarks.records import Records, dump_json, mean_interval, merge_records, open_records, parse_shard

SETTINGS = {"model": "tiny", "sizes": (3, 5)}


def test_a_second_start_finds_what_is_there(tmp_path: Path):
    path = tmp_path / "new" / "records.jsonl"
    first = Records(path, SETTINGS)
    first.add("a", {"error": 0.25, "nfe": [50, 1]})
    first.add("b", {"key": "its own"})
    again = Records(path, SETTINGS)
    assert "a" in again
    assert "c" not in again
    assert again.rows() == first.rows() == {"a": {"error": 0.25, "nfe": [50, 1]}, "b": {"key": "its own"}}
    again.add("c", {"error": 1})
    assert list(Records(path, SETTINGS).rows()) == ["a", "b", "c"]


def test_a_row_is_on_the_disk_as_soon_as_it_is_added(tmp_path: Path):
    records = Records(tmp_path / "records.jsonl", SETTINGS)
    records.add("a", {"error": 0.5})
    lines = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text("utf-8").splitlines()]
    assert lines == [{"settings": {"model": "tiny", "sizes": [3, 5]}}, {"key": "a", "row": {"error": 0.5}}]


def test_other_settings_are_refused_by_name(tmp_path: Path):
    path = tmp_path / "records.jsonl"
    Records(path, SETTINGS)
    with pytest.raises(ValueError, match=r"^settings: must be those of .*: model is 'tiny' there, got 'large'$"):
        Records(path, {**SETTINGS, "model": "large"})
    with pytest.raises(ValueError, match=r"seed is None there, got 0; sizes is \[3, 5\] there, got None"):
        Records(path, {"model": "tiny", "seed": 0})


@pytest.mark.parametrize("cut", [1, 9])
def test_a_line_that_a_kill_cut_off_is_measured_again(tmp_path: Path, cut: int):
    path = tmp_path / "records.jsonl"
    records = Records(path, SETTINGS)
    records.add("a", {"error": 1})
    records.add("b", {"error": 2})
    path.write_text(path.read_text("utf-8")[:-cut], "utf-8")
    again = Records(path, SETTINGS)
    assert list(again.rows()) == ["a"]
    again.add("b", {"error": 3})
    assert Records(path, SETTINGS).rows()["b"] == {"error": 3}


def test_what_is_no_number_is_refused_and_not_written(tmp_path: Path):
    records = Records(tmp_path / "records.jsonl", SETTINGS)
    with pytest.raises(ValueError, match=r"^psnr: must be a number, got NaN$"):
        records.add("a", {"rows": [{"psnr": math.nan}]})
    assert "a" not in records
    records.add("a", {"psnr": math.inf, "low": [-math.inf, 1.5]})
    assert Records(records.path, SETTINGS).rows() == records.rows() == {"a": {"psnr": None, "low": [None, 1.5]}}
    with pytest.raises(ValueError, match=r"^key: must be new to .*, got 'a'$"):
        records.add("a", {})


def test_infinity_of_a_result_is_null():
    assert dump_json({"db": math.inf, "name": "inf"}) == '{"db": null, "name": "inf"}'


def test_processes_share_the_work_by_a_file_each(tmp_path: Path):
    for shard, key in ((1, "b"), (0, "c"), (0, "a")):
        open_records(tmp_path, SETTINGS, shard).add(key, {"shard": shard})
    open_records(tmp_path, SETTINGS, 2)
    # Another process is in the middle of a line; merging must leave it alone.
    with (tmp_path / "records-1.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"key": "d", "ro')
    before = (tmp_path / "records-1.jsonl").read_bytes()
    assert list(merge_records(tmp_path, SETTINGS).items()) == [
        ("a", {"shard": 0}),
        ("b", {"shard": 1}),
        ("c", {"shard": 0}),
    ]
    assert (tmp_path / "records-1.jsonl").read_bytes() == before
    with pytest.raises(ValueError, match="model is 'tiny' there"):
        merge_records(tmp_path, {**SETTINGS, "model": "other"})
    assert merge_records(tmp_path / "nothing", SETTINGS) == {}


def test_a_shard_is_k_of_n():
    assert parse_shard("1/2") == (1, 2)
    for text in ("2/2", "1", "-1/2", "a/b"):
        with pytest.raises(ValueError, match=r"^shard: must be k/n with 0 <= k < n, got '"):
            parse_shard(text)


def test_the_interval_is_that_of_the_mean():
    values = (3.0 + 2.0 * torch.randn(400, generator=torch.Generator().manual_seed(1))).tolist()
    mean, low, high = mean_interval(values)
    assert mean == pytest.approx(sum(values) / 400)
    # The mean of 400 draws of deviation 2 has the deviation 0.1; its central 95 % reach 1.96 of them either way.
    deviation = float(torch.tensor(values).std()) / 20
    assert high - mean == pytest.approx(1.96 * deviation, rel=0.1)
    assert mean - low == pytest.approx(1.96 * deviation, rel=0.1)
    assert mean_interval(values) == (mean, low, high)
    _, low_half, high_half = mean_interval(values, confidence=0.5)
    assert high_half - low_half == pytest.approx(2 * 0.674 * deviation, rel=0.1)
    assert mean_interval(values, seed=1) != (mean, low, high)


def test_equal_values_leave_no_doubt():
    assert mean_interval([0.5] * 3) == (0.5, 0.5, 0.5)
    assert mean_interval([7.0]) == (7.0, 7.0, 7.0)
