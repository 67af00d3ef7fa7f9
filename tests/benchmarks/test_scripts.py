"""The shell scripts of the benchmarks."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from ddim_lightning.cli.shipped import BENCHMARKS

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.mark.parametrize("script", sorted(FOLDER.glob("*.sh")), ids=lambda path: path.name)
def test_scripts_parse(script: Path):
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert os.access(script, os.X_OK)


def test_the_gpu_script_runs_every_part_that_it_names():
    text = (FOLDER / "gpu.sh").read_text("utf-8")
    (named,) = re.findall(r"^# +PART +([^;]*);", text, re.MULTILINE)
    (default,) = re.findall(r"parts=\(([^)\"]*)\)", text)
    assert named.split(", ") == default.split() == re.findall(r"^ +([\w-]+)\) .* ;;$", text, re.MULTILINE)
    measured = re.findall(r"measure (\w+) (?:--|;;)", text)
    assert len(measured) == len(default.split()) - 1 and set(measured) <= set(BENCHMARKS)
