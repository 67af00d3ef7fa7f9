"""The shell scripts of the benchmarks."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from benchmarks.check import MODULES, SCHEMA_FILE, read_result
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


def run_gpu_script(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the script with this Python, nothing to install and a commit, unless told otherwise."""
    variables = {**os.environ, "PYTHON": sys.executable, "COMMIT": "0" * 40, "OMP_NUM_THREADS": "1", **environment}
    command = [str(FOLDER / "gpu.sh"), "/no/wheels", *words]
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("words", "environment", "named"),
    [
        (("/tmp/x",), {"BUDGET": "soon"}, "BUDGET: must be a whole number of seconds above 0, got soon"),
        (
            ("benchmarks/results/gpu",),
            {"REHEARSE": "1"},
            "OUTPUT: a rehearsal is no result, got benchmarks/results/gpu",
        ),
    ],
)
def test_the_gpu_script_refuses_what_would_be_found_out_late(
    words: tuple[str, ...], environment: dict[str, str], named: str
):
    refused = run_gpu_script(*words, **environment)
    assert refused.returncode == 2 and named in refused.stderr


def test_a_part_that_is_not_there_fails_and_the_others_run(tmp_path: Path):
    run = run_gpu_script(str(tmp_path), "nothing", "versus", REHEARSE="1", SCRIPT="")
    assert run.returncode == 1
    assert "no such part: nothing" in run.stdout and "== versus" in run.stdout
    assert (tmp_path / "gpu-nothing-versus.log").read_text("utf-8") == run.stdout


@pytest.mark.slow
def test_the_gpu_script_is_rehearsed(tmp_path: Path):
    from jsonschema import Draft202012Validator

    script = str(Path(__file__).parent / "reference_stub.py")
    run = run_gpu_script(str(tmp_path), REHEARSE="1", PACK="1", SCRIPT=script)
    assert run.returncode == 0, run.stdout[-5000:]
    assert run.stdout.startswith("A rehearsal on a CPU")
    packed = sorted(tmp_path.glob("*.tar.gz"))
    assert [path.suffix for path in tmp_path.iterdir() if path not in packed] == [".log"]
    schemas = set()
    for path in packed:
        with tarfile.open(path) as archive:
            archive.extractall(tmp_path, filter="data")
        folder = tmp_path / path.name.removesuffix(".tar.gz")
        result = read_result(folder)
        assert list(Draft202012Validator(json.loads(SCHEMA_FILE.read_text("utf-8"))).iter_errors(result)) == []
        assert (folder / "README.md").read_text("utf-8") == MODULES[result["schema"]].make_markdown(result)
        assert (result["settings"]["device"], result["settings"]["dtype"]) == ("cpu", "bfloat16")
        assert result["settings"]["model"] == "tiny" and "left_out" not in result
        schemas.add(result["schema"].split("/")[1])
    measured = re.findall(r"measure (\w+) (?:--|;;)", (FOLDER / "gpu.sh").read_text("utf-8"))
    assert schemas == {name.replace("_", "-") for name in measured}
