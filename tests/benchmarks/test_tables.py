"""The README's tables are those of the result files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.edit_variants import CEILING, DEFAULT, REFERENCE
from benchmarks.tables import REGION, ROOT, fill_tables, main

RESULTS = ROOT / "benchmarks" / "results"

INVERSION: dict[str, Any] = {
    "settings": {"clips": 64},
    "rows": [
        {
            "name": name, "factor": factor, "steps": 50, "residual": residual, "calls_up": calls, "most_calls_up": most,
            "psnr": {"db": decibels, "worst": worst}, "noise": {"std": 0.987},
        }
        for name, factor, residual, calls, most, decibels, worst in (
            ("UniInv", "default", False, 55, 55, 51.26, 44.9),
            ("BDIA", "default", True, 56, 60, None, 99.0),
            ("UniInv", "10 steps", False, 15, 15, 12.3, 11.2),
        )
    ],
}  # fmt: skip


def make_edit_row(method: str, guidance: float | None, whole: float) -> dict[str, Any]:
    part = {
        "psnr_db": {"whole": [whole, whole - 1, whole + 1], "outside": [whole + 10, 0, 0]},
        "edited_right": {"color": 0.5, "shape": 0.25, "background": 0.125, "direction": 1.0},
    }
    return {"method": method, "guidance": guidance, "calls": 206.0, "all": part}


EDITS = {
    "default_guidance": 3.0,
    "settings": {"edits": 80, "steps": 50},
    "rows": [
        make_edit_row(CEILING, None, 31.0),
        make_edit_row(REFERENCE, 6.0, 14.0),
        make_edit_row(DEFAULT, 1.0, 20.0),
        make_edit_row(DEFAULT, 3.0, 19.0),
        make_edit_row("plain inversion", 1.0, 18.0),
        make_edit_row("plain inversion", 3.0, 17.0),
    ],
    "bars": [{"bar": "calls at most 6 N", "met": True, "exempt": False, "numbers": "206 of 300"}],
}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    for name, result in {"inversion-error": INVERSION, "edit-quality": EDITS}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(json.dumps(result), "utf-8")
    return tmp_path


def test_the_readme_is_in_step():
    text = (ROOT / "README.md").read_text("utf-8")
    assert text.count("<!-- table:") == len(REGION.findall(text))  # every region is closed
    assert fill_tables(text, RESULTS) == text, "run `python -m benchmarks.tables`"


def test_round_trips(results: Path):
    filled = fill_tables("before <!-- table:inversion-error --><!-- end --> after", results)
    assert filled.startswith("before <!-- table:inversion-error -->\n| inverter |")
    assert filled.endswith("\n<!-- end --> after")
    assert "| UniInv |  | 55 | 51.3 | 44.9 | 0.99 |" in filled
    assert "| BDIA | yes | 56, at most 60 | exact | 99.0 | 0.99 |" in filled
    assert "12.3" not in filled  # one factor at a time stays in the report
    assert "*64 held-out clips, 50 steps, [all numbers](benchmarks/results/inversion-error/README.md).*" in filled


def test_edits(results: Path):
    filled = fill_tables("<!-- table:edit-quality -->\nold\n<!-- end -->", results)
    rows = [line for line in filled.splitlines() if line.startswith("| ")][2:]
    assert rows == [
        "| ceiling |  | 31.0 | 41.0 | 50% | 25% | 100% | 206 |",
        "| reference | 6 | 14.0 | 24.0 | 50% | 25% | 100% | 206 |",
        "| default | 1 | 20.0 | 30.0 | 50% | 25% | 100% | 206 |",
        "| **default** | 3 | 19.0 | 29.0 | 50% | 25% | 100% | 206 |",
        "| plain inversion | 1 | 18.0 | 28.0 | 50% | 25% | 100% | 206 |",
    ]
    assert "- met: calls at most 6 N: 206 of 300" in filled
    assert "old" not in filled


def test_it_is_filled_once_and_then_stays(results: Path, capsys: pytest.CaptureFixture[str]):
    readme = results / "R.md"
    names = ("edit-quality", "inversion-error")
    readme.write_text("a\n" + "".join(f"<!-- table:{name} -->\n<!-- end -->\nb\n" for name in names), "utf-8")
    where = ["--readme", str(readme), "--results", str(results)]
    assert main([*where, "--check"]) == 1
    assert "NOT those" in capsys.readouterr().out
    assert readme.read_text("utf-8").count("|") == 0  # a check changes nothing
    assert main(where) == 0
    assert main([*where, "--check"]) == 0
    text = readme.read_text("utf-8")
    assert text.count("<!-- end -->\nb\n") == 2
    readme.write_text(text.replace("51.3", "61.3"), "utf-8")
    assert main([*where, "--check"]) == 1


def test_without_regions_nothing_is_needed(tmp_path: Path):
    assert fill_tables("plain | text", tmp_path) == "plain | text"


def test_what_cannot_be_filled(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"table:edit-quality: needs .*result\.json, which is not there"):
        fill_tables("<!-- table:edit-quality --><!-- end -->", tmp_path)
    with pytest.raises(
        ValueError, match="table: must be one of inversion-error, edit-quality, versus-reference, got 'speed'"
    ):
        fill_tables("<!-- table:speed --><!-- end -->", tmp_path)
