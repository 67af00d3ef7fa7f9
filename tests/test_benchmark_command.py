"""`ddim-lightning benchmark`: every module of the folder has a name there, and runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import benchmarks
from ddim_lightning.cli.benchmark import BENCHMARKS
from ddim_lightning.cli.main import main


def test_every_benchmark_with_a_command_line_has_a_name() -> None:
    folder = Path(benchmarks.__path__[0])
    runnable = {path.stem for path in folder.glob("*.py") if "def main(" in path.read_text(encoding="utf-8")}
    assert set(BENCHMARKS) == runnable - {"check", "tables"}  # which measure nothing


def test_it_runs_from_anywhere(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "ddim_lightning", "benchmark", "scaling", "--rounds", "1", "--output", "out"]
    subprocess.run(words, cwd=tmp_path, check=True, capture_output=True)
    assert json.loads((tmp_path / "out" / "result.json").read_text())["settings"]["model"] == "tiny"


def test_without_a_name_they_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in BENCHMARKS)
    assert main(["benchmark", "speed"]) == 1
    assert capsys.readouterr().err.startswith("error: benchmark: must be one of ablation, ")
