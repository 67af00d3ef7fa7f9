"""Compiled graphs are kept in a folder, so that another machine of the same kind starts warm."""

from __future__ import annotations

import hashlib
from pathlib import Path
from uuid import uuid4

import torch


def load_compiled(folder: Path) -> None:
    """Fill this machine's compile caches with what `save_compiled` wrote; what does not fit here is not used.

    Args:
        folder: Its files hold code that will run: only take those you wrote. One that is missing holds nothing.
    """
    for path in sorted(folder.glob("*.bin")):
        torch.compiler.load_cache_artifacts(path.read_bytes())


def save_compiled(folder: Path) -> None:
    """Write what this process compiled, or found in its caches, since it was last saved.

    Args:
        folder: Made where it is missing. A file is named by what it holds: the same graphs make the same file.
    """
    saved = torch.compiler.save_cache_artifacts()
    if saved is None:
        return
    content, info = saved
    keys = sorted(f"{kind} {key}" for kind, found in info.artifacts.items() for key in found)
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{uuid4().hex}.part"
    part.write_bytes(content)
    part.replace(folder / f"{hashlib.sha256(repr(keys).encode()).hexdigest()[:16]}.bin")
