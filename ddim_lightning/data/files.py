"""Paths are taken as a user means them, and only regular files are opened: a reader of a pipe may wait for ever."""

from __future__ import annotations

import os
import stat
from pathlib import Path

_OTHERS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def check_regular(path: str | os.PathLike[str]) -> None:
    """Check that a path is no pipe, socket or device; a folder passes, for opening it fails with a sentence of its own.

    Args:
        path: An existing file.

    Raises:
        OSError: If there is no such file; always the exact subclass.
        ValueError: If it is a named pipe, a socket or a device.
    """
    kind = _OTHERS.get(stat.S_IFMT(os.stat(path).st_mode))
    if kind:
        raise ValueError(f"{path} must be a regular file, got {kind}")


def expand(path: str | os.PathLike[str]) -> Path:
    """Take ``~`` for the user's folder, and a name such as ``~x`` that is no user's as it is."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)
