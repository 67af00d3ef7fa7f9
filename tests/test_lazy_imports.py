"""What a person asks for at once must not wait for torch or lightning."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import sys
from ddim_lightning.cli.main import main
status = main(sys.argv[1:])
heavy = sorted({"torch", "lightning", "diffusers", "transformers"} & set(sys.modules))
print("status", status, "heavy", heavy, file=sys.stderr)
"""


def _run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", CODE, *words], capture_output=True, text=True, check=True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--version"], "ddim-lightning 0."),
        (["--help"], "edit one video"),
        (["edit", "--help"], "--negative-prompt"),
        (["demo", "--help"], "--output DIR"),
        (["env", "--help"], "--json"),
    ],
)
def test_help_and_version_are_light(words: list[str], said: str):
    run = _run(*words)
    assert run.stderr == "status 0 heavy []\n"
    assert said in run.stdout


def test_the_package_runs_as_a_module():
    run = subprocess.run([sys.executable, "-m", "ddim_lightning", "edit"], capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert run.stderr.startswith("error: the following arguments are required: VIDEO, --prompt, --output")


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ([], "error: the following arguments are required: VERB"),
        (["edti"], "error: argument VERB: invalid choice: 'edti'"),
        (["edit", "clip.mp4", "--output", "out"], "error: the following arguments are required: --prompt"),
        (["edit", "clip.mp4", "--prompt", "x"], "error: the following arguments are required: --output"),
        (["edit", "clip.mp4", "--prompt", "x", "--output", "o", "--steps", "many"], "error: argument --num-inference-"),
        (["edit", "clip.mp4", "--promt", "x", "--prompt", "x", "--output", "o"], "error: unrecognized arguments: "),
        (["demo"], "error: the following arguments are required: --output"),
    ],
)
def test_wrong_usage_is_found_before_anything_heavy_and_said_in_one_line(words: list[str], error: str):
    run = _run(*words)
    line, status = run.stderr.splitlines()
    assert line.startswith(error)
    assert status == "status 2 heavy []"
    assert run.stdout == ""
