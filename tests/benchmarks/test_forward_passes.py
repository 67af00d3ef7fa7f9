"""The forward passes on random weights, two rounds, eager."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest

from benchmarks.check import list_faults
from benchmarks.forward_passes import FORMS, FUSED, PASSES, main, make_markdown


def test_both_take_the_same_rows_and_agree(small_model: None, tmp_path: Path):
    assert main(["--rounds", "2", "--commit", "abc", "--output", str(tmp_path)]) == 0
    assert list_faults(tmp_path) == []
    result = json.loads((tmp_path / "result.json").read_text("utf-8"))
    assert result["settings"]["passes"] == PASSES
    assert [(row["form"], row["forward"]) for row in result["rows"]] == [
        (form.name, forward) for form in FORMS for forward in (FUSED, "diffusers, eager")
    ]
    for row in result["rows"]:
        assert len(row["pass_ms"]) == len(row["stage_ms"]) == 3 and min(row["pass_ms"]) > 0
        assert row["median"] == statistics.median(row["ratios"])
        assert row["lowest"] <= row["median"] <= row["highest"]
        if row["forward"] == FUSED:
            assert row["ratios"] == [1.0, 1.0] and row["relative_l2"] == 0.0
        else:
            fused = next(r for r in result["rows"] if (r["form"], r["forward"]) == (row["form"], FUSED))
            assert row["ratios"] == pytest.approx(
                [a / b for a, b in zip(row["pass_ms"][1:], fused["pass_ms"][1:], strict=True)]
            )
            assert 0 < row["relative_l2"] < 1e-5
    assert (tmp_path / "README.md").read_text("utf-8") == make_markdown(result)
