"""Compiled graphs are kept in a folder, so that another machine of the same kind starts warm.

They are code that will run. So a folder is taken only where nobody else could have put something into it.
"""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from uuid import uuid4

import torch


def load_compiled(folder: Path) -> None:
    """Fill this machine's compile caches with what `save_compiled` wrote; what does not fit here is not used.

    Args:
        folder: One that is missing holds nothing.

    Raises:
        PermissionError: When the folder or a file in it could have been written by another user than its owner, or
            belongs to somebody else than this user and root.
    """
    if not folder.is_dir():
        return
    _check_private(folder, folder.stat())
    for path in sorted(folder.glob("*.bin")):
        with path.open("rb") as file:
            _check_private(path, os.fstat(file.fileno()))  # of the open file: its name could change hands meanwhile
            content = file.read()
        torch.compiler.load_cache_artifacts(content)


def save_compiled(folder: Path) -> None:
    """Write what this process compiled, or found in its caches, since it was last saved.

    Args:
        folder: Made where it is missing, for its owner alone. A file is named by what it holds: the same graphs make
            the same file.
    """
    saved = torch.compiler.save_cache_artifacts()
    if saved is None:
        return
    content, info = saved
    keys = sorted(f"{kind} {key}" for kind, found in info.artifacts.items() for key in found)
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    part = folder / f"{uuid4().hex}.part"
    part.touch(mode=0o600)
    part.write_bytes(content)
    part.replace(folder / f"{hashlib.sha256(repr(keys).encode()).hexdigest()[:16]}.bin")


def _check_private(path: Path, status: os.stat_result) -> None:
    if not hasattr(os, "getuid"):  # Windows keeps who may write elsewhere
        return
    rule = "compile_cache: holds code that runs, so that it must be"
    if status.st_uid not in (os.getuid(), 0):
        raise PermissionError(f"{rule} this user's own, got {str(path)!r} of the user {status.st_uid}")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        mode = f"{stat.S_IMODE(status.st_mode):o}"
        raise PermissionError(f"{rule} written by its owner alone (chmod go-w), got {str(path)!r} of mode {mode}")
