"""The examples run as they stand."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def test_a_foreign_module_trains_with_our_objectives_and_our_callback(tmp_path):
    script = EXAMPLES / "editing_aware_finetuning.py"
    assert len(script.read_text().splitlines()) < 60
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(EXAMPLES.parent)}
    done = subprocess.run(
        [sys.executable, script, "2"], cwd=tmp_path, capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.rglob("inversions/step-000002.png"))
    values = ast.literal_eval(done.stdout.splitlines()[-1])
    assert 5 < values["val/round_trip_psnr"] < 60
    assert values["train/InversionConsistency"] > 0
