"""The whole job on random weights; here the variants share a process, for the time it takes to start one."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pytest

from benchmarks import end_to_end
from benchmarks.check import list_faults
from benchmarks.end_to_end import main, make_markdown
from benchmarks.stages import STAGES, WORKING


@pytest.fixture(scope="module")
def folder(small_model: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("end")
    flags = ["--device", "cpu", "--dtype", "float32", "--commit", "abc", "--steps", "12", "--rounds", "2"]
    with pytest.MonkeyPatch.context() as patch:
        editor, _ = end_to_end.PRESETS["fast"]
        patch.setitem(end_to_end.PRESETS, "fast", (editor, 5.0))  # random weights change by more than 0.5 at each step
        patch.setattr(end_to_end, "run_fresh", lambda function, *arguments: function(*arguments))
        assert main([*flags, "--output", str(folder)]) == 0
    return folder


def test_the_file_fits_the_schema(folder: Path):
    assert list_faults(folder) == []


def test_loading_is_counted_once_and_every_video_by_stage(result: dict[str, Any]):
    assert [row["preset"] for row in result["variants"]] == ["exact", "fast"]
    for row in result["variants"]:
        assert list(row["cold_s"]) == list(STAGES)
        assert [list(run) for run in row["warm_s"]] == [list(WORKING)] * 2
        assert all(seconds > 0 for run in (row["cold_s"], *row["warm_s"]) for seconds in run.values())
    exact, fast = (row["nfe"] for row in result["variants"])
    assert fast < exact


def test_totals_are_those_of_the_stages(result: dict[str, Any], folder: Path):
    report = (folder / "README.md").read_text("utf-8")
    assert report == make_markdown(result)
    for row in result["variants"]:
        cold, warm = sum(row["cold_s"].values()), statistics.median(sum(run.values()) for run in row["warm_s"])
        start = f"| eager | {row['preset']} |"
        lines = [line for line in report.splitlines() if line.startswith(start)]
        assert lines[0].endswith(f"| {cold:.2f} | {row['nfe']} |")
        assert lines[1].endswith(f"| {warm:.2f} | {row['nfe']} |")


def test_at_least_one_round(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["--rounds", "0"])
    assert "argument --rounds: must be an integer of at least 1, got '0'" in capsys.readouterr().err
