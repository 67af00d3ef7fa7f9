"""Scaling on random weights, one round."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.check import list_faults
from benchmarks.scaling import STEPS, TINY, main, make_markdown, predict


def test_it_measures_every_point_and_reports(small_model: None, tmp_path: Path, is_drawn) -> None:  # type: ignore[no-untyped-def]
    assert main(["--rounds", "1", "--commit", "abc", "--output", str(tmp_path)]) == 0
    assert list_faults(tmp_path) == []
    result = json.loads((tmp_path / "result.json").read_text())
    for name, sizes in TINY.items():
        assert [row["size"] for row in result[name]] == [list(size) for size in sizes]
        assert all(len(row["row_ms"]) == 2 and row["finite"] for row in result[name])
        tokens = [row["tokens"] for row in result[name]]
        assert tokens == [16 + f * (h // 2) * (w // 2) for f, h, w in sizes]
        assert is_drawn(tmp_path / f"{name}.png")
    assert [row["steps"] for row in result["steps"]] == list(STEPS)
    assert (tmp_path / "README.md").read_text() == make_markdown(result)
    assert "not measured" in make_markdown(result)  # a CPU's memory


def test_the_prediction_goes_by_the_count() -> None:
    rows = [
        {"linear_flop": 10, "attention_flop": 5, "row_ms": [9.0, 4.0]},
        {"linear_flop": 20, "attention_flop": 40, "row_ms": [9.0, 8.0]},
    ]
    assert predict(rows) == pytest.approx([2.0, 8.0])
