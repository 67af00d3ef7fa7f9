"""What happens on the device is named by the lines of code that asked for it."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

import lightning
import torch

import ddim_lightning

_HERE = Path(__file__).parent
_OURS = tuple(map(str, (Path(ddim_lightning.__file__).parent, _HERE.parent, _HERE.parents[1] / "tests")))
_IGNORED = tuple(str(Path(file).parent) for file in (__file__, torch.__file__, lightning.__file__))
"""Of what emulates the device, of PyTorch, and of Lightning, which watches what PyTorch makes."""


class Place(NamedTuple):
    """A `Place` is a line of code.

    Args:
        ours: The nearest line of this project, ``folder/file.py:line``; empty where none is on the stack.
        theirs: The line of a library between it and PyTorch, likewise; empty where there is none.
    """

    ours: str
    theirs: str

    def __str__(self) -> str:
        return " < ".join(filter(None, (self.theirs, self.ours))) or "unknown"


def find_place() -> Place:
    """Find the line that is at work, outside of PyTorch and of what emulates the device."""
    theirs = ""
    frame = sys._getframe(1)
    while frame is not None:
        kind = _classify(frame.f_code.co_filename)
        if kind == "ours":
            return Place(_name(frame.f_code.co_filename, frame.f_lineno), theirs)
        if kind == "theirs" and not theirs:
            theirs = _name(frame.f_code.co_filename, frame.f_lineno)
        frame = frame.f_back  # type: ignore[assignment]
    return Place("", theirs)


@cache
def _classify(file: str) -> str:
    if file.startswith(_IGNORED) or not file.endswith(".py"):
        return "ignored"
    if file.startswith(_OURS):
        return "ours"
    return "theirs" if "site-packages" in file else "ignored"  # Python's own


@cache
def _name(file: str, line: int) -> str:
    *_, folder, name = Path(file).parts
    return f"{folder}/{name}:{line}"
