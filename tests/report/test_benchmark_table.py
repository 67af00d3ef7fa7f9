from __future__ import annotations

import pytest

from ddim_lightning.report.benchmark_table import make_benchmark_table
from ddim_lightning.report.cards import ReportedRun
from ddim_lightning.report.page import make_page
from ddim_lightning.report.tables import print_benchmark

SUMMARY = {
    "title": "A benchmark",
    "source": "a paper",
    "columns": [
        {"number": "psnr", "title": "PSNR", "better": "higher"},
        {"number": "mse", "title": "MSE", "better": "lower"},
    ],
    "rows": [
        {"method": "this run", "source": None, "numbers": {"psnr": 20.125}},
        {"method": "another", "source": "table 2", "numbers": {"psnr": 25, "mse": 3.5, "other": 1}},
    ],
    "missing": ["lpips: a file is missing"],
}


def test_numbers_stand_in_columns_and_what_is_not_there_is_blank(capsys):
    table = make_benchmark_table(SUMMARY)
    assert [title.split()[0] for title in table.columns] == ["PSNR", "MSE"]
    assert [row.numbers for row in table.rows] == [[20.125, None], [25.0, 3.5]]
    print_benchmark(SUMMARY)
    said = capsys.readouterr().out
    assert [line.split() for line in said.splitlines()[1:3]] == [["this", "run", "20.12"], ["another", "25.00"]]
    assert "not run here: table 2" in said


@pytest.mark.parametrize(
    "summary",
    [
        None,
        [],
        {},
        {**SUMMARY, "rows": 3},
        {**SUMMARY, "rows": []},
        {**SUMMARY, "columns": [{}]},
        {**SUMMARY, "columns": []},
    ],
)
def test_a_summary_that_is_none_of_ours_shows_nothing(summary):
    assert make_benchmark_table(summary) is None


def test_the_page_shows_the_table_and_texts_from_outside_as_text():
    evil = {**SUMMARY, "title": "<script>alert(1)</script>"}
    evil["rows"] = [{**SUMMARY["rows"][0], "method": "<b>this</b>"}, SUMMARY["rows"][1]]
    run = ReportedRun("out", [], lambda *_: None, lambda *_: None, make_benchmark_table(evil))
    page = make_page([run], written="today")
    assert "<script>alert" not in page and "<b>this" not in page
    assert "&lt;b&gt;this" in page and "20.12" in page and "table 2" in page
    without = make_page([ReportedRun("out", [], lambda *_: None, lambda *_: None)], written="today")
    assert "benchmark-" not in without
