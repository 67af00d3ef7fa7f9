"""The environment block says what a number was measured on and with; it goes into every result file."""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ddim_lightning.report.environment import read_environment


@dataclass(frozen=True)
class Start:
    """A `Start` is what there was before a benchmark began: others may work here while it runs.

    Args:
        commit: The commit of the checkout; ``None`` where the code is no checkout.
        dirty: Whether its files differ from that commit, those of results left out; ``None`` without a commit.
        load_1min: The machine's load, averaged over a minute; ``None`` on a system that has none.
    """

    commit: str | None
    dirty: bool | None
    load_1min: float | None


def read_start(folder: Path) -> Start:
    """Read the state of a checkout and of the machine.

    Args:
        folder: Of the checkout.
    """
    git = ["git", "-C", str(folder)]
    commit = _ask([*git, "rev-parse", "HEAD"])
    # Results are what a benchmark writes.
    ours = [":/", ":(exclude,top)benchmarks/results"]
    changed = _ask([*git, "status", "--porcelain", "--untracked-files=no", "--", *ours])
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return Start(commit, None if commit is None else changed is not None, load)


def read_block(commit: str | None = None) -> dict[str, Any]:
    """Return the environment block of a result, JSON-ready.

    Args:
        commit: The commit measured, where the code is no checkout, as ``git describe --dirty`` has it.
    """
    block, start = read_environment(), _START
    if commit is not None:  # who names it says whether files were changed, which a copy cannot know
        name = commit.removesuffix("-dirty")
        start = replace(start, commit=name, dirty=bool(start.dirty) or name != commit)
    return {
        "command": tell_command(),
        "commit": start.commit,
        "dirty": start.dirty,
        "load_1min": start.load_1min,
        "cpus": os.cpu_count(),
        "processor": read_processor(),
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


def read_processor() -> str | None:
    """Return the name of the processor and the vector instructions that PyTorch uses on it, as far as they are told."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*: (.+)$", info.read_text(), re.MULTILINE) if info.exists() else []
    told = [names[0].strip() if names else platform.processor(), torch.backends.cpu.get_cpu_capability()]
    return ", ".join(filter(None, told)) or None


def tell_command() -> str:
    """Return the command as it can be typed anywhere: programs by their names, without the folders they lie in."""
    script = Path(sys.argv[0])
    if script.suffix != ".py" and script.name in {Path(word).name for word in sys.orig_argv[1:2]}:
        return shlex.join([script.name, *sys.argv[1:]])  # an installed command
    return shlex.join([Path(sys.executable).name, *sys.orig_argv[1:]])


def _ask(command: list[str]) -> str | None:
    """Return what a command prints, ``None`` where it is missing or fails."""
    if shutil.which(command[0]) is None:
        return None
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or None if answer.returncode == 0 else None


_START = read_start(Path(__file__).parent)
