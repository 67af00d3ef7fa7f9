"""The benchmark of trainings for inversion, in two steps on a few clips."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.check import list_faults
from benchmarks.consistency import main, make_markdown


def test_trainings_at_several_weights_are_compared(tmp_path: Path):
    flags = ["--weights", "1000", "--steps", "2", "--clips", "16", "--val-clips", "1", "--inversion-steps", "4"]
    assert main([*flags, "--commit", "abc", "--output", str(tmp_path)]) == 0
    assert list_faults(tmp_path) == []
    result = json.loads((tmp_path / "result.json").read_text("utf-8"))
    assert [row["weight"] for row in result["rows"]] == [None, 0.0, 1000.0]
    assert len({row["round_trip"] for row in result["rows"]}) == 3
    assert (tmp_path / "README.md").read_text("utf-8") == make_markdown(result)
