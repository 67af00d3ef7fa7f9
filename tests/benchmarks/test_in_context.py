"""The benchmark of the bundled adapter, on a few clips."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.check import list_faults
from benchmarks.in_context import main, make_held_out, make_markdown


def test_what_is_held_out_was_in_no_training():
    for edits in make_held_out(4).values():
        for edit in edits:
            assert edit.target.held_out and not edit.source.held_out
            assert all(getattr(edit.source, word) == getattr(edit.target, word) for word in edit.kept)


def test_the_whole_residual_returns_the_source(tmp_path: Path):
    metrics = tmp_path / "metrics.csv"
    metrics.write_text("epoch,step,train/loss,val/loss\n0,19,0.5,\n0,24,,0.25\n", encoding="utf-8")
    flags = ["--edits", "1", "--commit", "abc", "--metrics", str(metrics), "--output", str(tmp_path / "out")]
    assert main(flags) == 0
    assert list_faults(tmp_path / "out") == []
    result = json.loads((tmp_path / "out" / "result.json").read_text("utf-8"))
    decibels = {row["identity_residual"]: row["psnr_db"] for row in result["identity"]}
    assert decibels[0.0] < decibels[0.5] < decibels[1.0] and decibels[1.0] > 100
    assert result["curve"] == [{"step": 25, "val_loss": 0.25}]
    assert (tmp_path / "out" / "README.md").read_text("utf-8") == make_markdown(result)
