"""The environment block says what a number was measured on and with; it goes into every result file."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from ddim_lightning.report.environment import read_environment

_LOAD = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
"""Load of the machine before the benchmark began: what others did on it."""
_FOLDER = str(Path(__file__).parent)


def read_block(commit: str | None = None) -> dict[str, Any]:
    """Return the environment block of a result, JSON-ready.

    Args:
        commit: The commit measured, as ``git describe --dirty`` has it; read from git where the code is a checkout.
    """
    block, dirty = read_environment(), _is_dirty()
    if dirty is None and commit is not None:  # who names the commit of a copy says whether it is that commit's
        commit, dirty = commit.removesuffix("-dirty"), commit.endswith("-dirty")
    return {
        "command": shlex.join(_make_command()),
        "commit": commit or _ask(["git", "-C", _FOLDER, "rev-parse", "HEAD"]),
        "dirty": dirty,
        "load_1min": _LOAD,
        "cpus": os.cpu_count(),
        "gpus": block["gpus"],
        "driver_and_power_limit": _ask(
            ["nvidia-smi", "--query-gpu=driver_version,power.limit", "--format=csv,noheader"]
        ),
        "cuda": block["cuda"],
        "cudnn": torch.backends.cudnn.version(),
        "platform": block["platform"],
        "cpu_threads": torch.get_num_threads(),
        "versions": block["versions"],
        "broken": block["broken"],
    }


def _is_dirty() -> bool | None:
    """Return whether files of the checkout differ from its commit; ``None`` where the code is no checkout."""
    if _ask(["git", "-C", _FOLDER, "rev-parse", "HEAD"]) is None:
        return None
    # Results are what a benchmark writes.
    changed = [
        "git",
        "-C",
        _FOLDER,
        "status",
        "--porcelain",
        "--untracked-files=no",
        "--",
        ":/",
        ":(exclude,top)benchmarks/results",
    ]
    return _ask(changed) is not None


def _make_command() -> list[str]:
    """Return the command as it can be typed anywhere: programs by their names, without the folders they lie in."""
    script = Path(sys.argv[0])
    if script.suffix != ".py" and script.name in {Path(word).name for word in sys.orig_argv[1:2]}:
        return [script.name, *sys.argv[1:]]  # an installed command
    return [Path(sys.executable).name, *sys.orig_argv[1:]]


def _ask(command: list[str]) -> str | None:
    """Return what a command prints, ``None`` where it is missing or fails."""
    if shutil.which(command[0]) is None:
        return None
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or None if answer.returncode == 0 else None
