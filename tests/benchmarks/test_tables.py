"""The README's tables are those of the result files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.edit_variants import CEILING, DEFAULT, FAST, IN_CONTEXT, REFERENCE
from benchmarks.tables import REGION, ROOT, fill_tables, main

RESULTS = ROOT / "benchmarks" / "results"

INVERSION: dict[str, Any] = {
    "settings": {"clips": 64},
    "rows": [
        {
            "name": name, "factor": factor, "residual": residual, "inversion_nfe": nfe, "most_inversion_nfe": most,
            "psnr": {"db": decibels, "worst": worst},
        }
        for name, factor, residual, nfe, most, decibels, worst in (
            ("DDIM", "default", False, 50, 50, 21.04, 15.1),
            ("UniInv", "default", False, 55, 55, 51.26, 44.9),
            ("UniInv", "default", True, 56, 56, 63.5, 60.0),
            ("FixedPoint", "default", True, 151, 160, None, 99.0),
            ("BDIA", "default", False, 100, 100, None, None),
            ("UniInv", "10 steps", True, 15, 15, 12.3, 11.2),
        )
    ],
}  # fmt: skip


def make_edit_row(method: str, guidance: float | None, whole: float) -> dict[str, Any]:
    part = {
        "psnr_db": {"whole": [whole, whole - 1, whole + 1], "outside": [whole + 10, 0, 0]},
        "edited_right": {"color": 0.5, "shape": 0.25, "background": 0.125, "direction": 1.0},
    }
    return {"method": method, "guidance": guidance, "nfe": 206.0, "all": part}


EDITS = {
    "default_guidance": 3.0,
    "settings": {"edits": 80, "steps": 50},
    "rows": [
        make_edit_row(CEILING, None, 31.0),
        make_edit_row(REFERENCE, 6.0, 14.0),
        make_edit_row(DEFAULT, 1.0, 20.0),
        make_edit_row(DEFAULT, 3.0, 19.0),
        make_edit_row(FAST, 3.0, 18.5),
        make_edit_row(IN_CONTEXT, 1.5, 25.0),
        make_edit_row("plain inversion", 1.0, 18.0),
        make_edit_row("plain inversion", 3.0, 17.0),
    ],
    "bars": [{"bar": "NFE at most 6 N", "met": True, "exempt": False, "numbers": "206 of 300"}],
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
    assert [line for line in filled.splitlines() if line.startswith("| ")][2:] == [
        "| DDIM | 50 | 21.0 | 15.1 |",
        "| UniInv | 56 | 63.5 | 60.0 |",
        "| FixedPoint | 151, at most 160 | exact | 99.0 |",
        "| BDIA | 100 | exact | exact |",
    ]  # one factor at a time stays in the report


def test_edits(results: Path):
    filled = fill_tables("<!-- table:edit-quality -->\nold\n<!-- end -->", results)
    rows = [line for line in filled.splitlines() if line.startswith("| ")][2:]
    assert rows == [
        "| ceiling | 206 | 31.0 | 41.0 | 50% | 25% | 100% |",
        "| the reference script's settings | 206 | 14.0 | 24.0 | 50% | 25% | 100% |",
        "| **recommended**, no training | 206 | 19.0 | 29.0 | 50% | 25% | 100% |",
        "| the same, fast | 206 | 18.5 | 28.5 | 50% | 25% | 100% |",
        "| **`--lora tiny_edit`**, trained on pairs | 206 | 25.0 | 35.0 | 50% | 25% | 100% |",
    ]
    assert "206 of 300" not in filled  # whether goals are met stands in the report
    assert "old" not in filled


def test_the_script(results: Path):
    ratio = {"what": "inversion step", "lowest": 2.25, "highest": 2.5}
    rows = [
        {**ratio, "variant": "compiled", "against": "script", "median": 2.4},
        {**ratio, "variant": "eager", "against": "script", "median": 2.1},
        {**ratio, "variant": "compiled", "against": "script, blocks compiled", "median": 1.9},
    ]
    (results / "versus-reference").mkdir()
    (results / "versus-reference" / "result.json").write_text(json.dumps({"ratios": rows}), "utf-8")
    filled = fill_tables("<!-- table:versus-reference --><!-- end -->", results)
    shown = [line for line in filled.splitlines() if line.startswith("| ")][2:]
    assert shown == ["| inversion step | 2.40 (2.25 - 2.50) |"]


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
    readme.write_text(text.replace("63.5", "61.3"), "utf-8")
    assert main([*where, "--check"]) == 1


def test_without_regions_nothing_is_needed(tmp_path: Path):
    assert fill_tables("plain | text", tmp_path) == "plain | text"


def test_what_cannot_be_filled(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"table:edit-quality: needs .*result\.json, which is not there"):
        fill_tables("<!-- table:edit-quality --><!-- end -->", tmp_path)
    with pytest.raises(ValueError, match=r"table: must be one of inversion-error, .*, got 'speed'"):
        fill_tables("<!-- table:speed --><!-- end -->", tmp_path)
