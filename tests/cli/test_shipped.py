"""`ddim-lightning benchmark`: every module of the folder has a name there, and runs; shell completion."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import benchmarks
from ddim_lightning.cli import VERBS
from ddim_lightning.cli.main import main
from ddim_lightning.cli.shipped import BENCHMARKS
from ddim_lightning.data.benchmark_config import list_benchmarks


def test_every_benchmark_with_a_command_line_has_a_name():
    folder = Path(benchmarks.__path__[0])
    runnable = {path.stem for path in folder.glob("*.py") if "def main(" in path.read_text(encoding="utf-8")}
    assert set(BENCHMARKS) == runnable - {"check", "tables"}  # which measure nothing


def test_it_runs_from_anywhere(tmp_path):
    words = [sys.executable, "-m", "ddim_lightning", "benchmark", "scaling", "--rounds", "1", "--output", "out"]
    subprocess.run(words, cwd=tmp_path, check=True, capture_output=True)
    assert json.loads((tmp_path / "out" / "result.json").read_text())["settings"]["model"] == "tiny"


def test_without_a_name_they_are_listed_with_what_they_measure(capsys):
    assert main(["benchmark"]) == 0
    listed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()[2:])
    assert list(listed) == [*BENCHMARKS, *list_benchmarks()]


def test_an_unknown_benchmark_is_wrong_usage(capsys):
    assert main(["benchmark", "step-latencies"]) == 2
    assert "did you mean step_latency?" in capsys.readouterr().err


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_shell_completion_knows_verbs_and_flags(shell, capsys):
    assert main(["--print-completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(verb in script for verb in VERBS)
    assert "--num-inference-steps" in script
