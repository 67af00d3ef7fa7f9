"""The benchmark of a new word, on a few clips and steps."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.check import list_faults
from benchmarks.new_word import main, make_edits, make_markdown
from ddim_lightning.tiny.shapes import HELD_OUT_COLOR


def test_edits_change_the_color_to_the_word_and_nothing_else():
    for edit in make_edits(4):
        assert edit.target.color == HELD_OUT_COLOR and not edit.source.held_out
        assert edit.kept == ("shape", "background", "direction")
        assert all(getattr(edit.source, word) == getattr(edit.target, word) for word in edit.kept)


def test_a_training_is_measured_before_and_after(tmp_path: Path):
    flags = ["--steps", "2", "--clips", "16", "--edits", "1", "--threads", "1", "--commit", "abc"]
    assert main([*flags, "--output", str(tmp_path)]) == 0
    assert list_faults(tmp_path) == []
    result = json.loads((tmp_path / "result.json").read_text("utf-8"))
    assert [(row["edits"], row["lora"]) for row in result["rows"]] == [
        ("to the new word", False),
        ("to known words", False),
        ("to the new word", True),
        ("to known words", True),
    ]
    assert result["rows"][0]["whole"] != result["rows"][2]["whole"]
    assert (tmp_path / "README.md").read_text("utf-8") == make_markdown(result)
