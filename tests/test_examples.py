"""The examples run as they stand."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@pytest.mark.slow
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


def test_the_notebook_is_kept_without_outputs():
    notebook = json.loads((EXAMPLES / "quickstart.ipynb").read_text())
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(code) > 3
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert all(cell["metadata"] == {} for cell in notebook["cells"])


@pytest.mark.slow
def test_the_notebook_runs_in_a_real_kernel_and_says_no_more_than_it_must(tmp_path, monkeypatch):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(EXAMPLES.parent), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(EXAMPLES / "quickstart.ipynb", as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    outputs = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    assert [len(of_cell) for of_cell in outputs] == [0, 1, 2, 1, 1, 1]  # no warning, and no line of Lightning's
    progress, results = outputs[2]
    assert progress.data == {"text/plain": f"clip 1/1; last sheet {Path('out', 'clip', 'sheet.png')}"}
    assert results.data["text/plain"].startswith("[ClipResult('clip', done, 2 edits, ")
    for shown in (outputs[3][0], outputs[5][0]):
        html = shown.data["text/html"]
        assert html.count('<img src="data:image/png;base64,') == 1
        assert html.count('<video src="data:video/mp4;base64,') == 4
        assert len(shown.data["text/plain"].splitlines()) == 1
    assert (tmp_path / "out" / "index.html").is_file()
