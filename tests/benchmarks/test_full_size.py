"""The full-size benchmark at the size of the tiny model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from ddim_lightning.runtime.timing import StepClock, summarise_ms

ROOT = Path(__file__).resolve().parents[2]


def run(output: Path, *flags: str) -> dict[str, object]:
    command = [sys.executable, "-m", "benchmarks.full_size", "--tiny", "--steps", "3", *flags, "--output", str(output)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for line in ("inversion", "edit", "decode"):
        assert line in done.stdout
    return json.loads(output.read_text(encoding="utf-8"))


def check(result: dict[str, object]) -> None:
    # Uni-Inv calls once a step and once for the residual; the edit has two guided rows and one of the source.
    for stage, rows in (("inversion", 4), ("edit", 9)):
        part = result[stage]
        assert part["rows"] == rows
        assert len(part["step_ms"]) == 3
        assert all(ms > 0 for ms in part["step_ms"])
        assert min(part["step_ms"][1:]) <= part["step_ms_median"] <= max(part["step_ms"][1:])
    assert set(result["seconds"]) == {"load", "text", "encode", "invert", "edit", "decode"}
    assert sum(result["edit"]["step_ms"]) / 1e3 <= result["seconds"]["edit"]
    assert set(result["deviations"]) == {"latents", "noise", "edited", "decoded"}
    assert all(part["finite"] for part in result["deviations"].values())
    assert len(result["kernels"]) == 5
    assert result["kernels"][0]["ms"] >= result["kernels"][4]["ms"] > 0
    assert result["settings"]["steps"] == 3
    assert result["environment"]["versions"]["torch"] == version("torch")


def test_tiny_on_a_cpu(tmp_path: Path):
    result = run(tmp_path / "new" / "result.json", "--device", "cpu", "--dtype", "float32", "--commit", "abc")
    check(result)
    assert result["environment"]["commit"] == "abc"
    assert result["environment"]["command"].startswith("python -m benchmarks.full_size --tiny")
    assert result["peak_gib"] == {}


@pytest.mark.gpu
def test_tiny_on_a_gpu(tmp_path: Path):
    result = run(tmp_path / "result.json", "--device", "cuda", "--dtype", "bfloat16")
    check(result)
    assert set(result["peak_gib"]) == set(result["seconds"])
    assert all(peak > 0 for peak in result["peak_gib"].values())
    assert result["environment"]["driver_and_power_limit"]


def test_summaries_leave_out_the_warm_up():
    summary = summarise_ms([900.0, 10.0, 20.0, 30.0, 40.0, 50.0])
    assert summary["step_ms_median"] == 30.0
    assert (summary["step_ms_p10"], summary["step_ms_p90"]) == (14.0, 46.0)
    assert summary["step_ms"][0] == 900.0
    assert summarise_ms([5.0])["step_ms_median"] == 5.0


def test_the_clock_counts_the_gaps_between_marks():
    clock = StepClock(torch.device("cpu"))
    clock.marks = [1.0, 1.5, 3.0]
    assert clock.read_ms() == [500.0, 1500.0]


@pytest.mark.parametrize("script", sorted((ROOT / "benchmarks").glob("*.sh")), ids=lambda path: path.name)
def test_scripts_parse(script: Path):
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert os.access(script, os.X_OK)
