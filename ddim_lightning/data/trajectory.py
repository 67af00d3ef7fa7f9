"""Trajectories on disk: safetensors files with a JSON record in their header."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

_KEY = "ddim_lightning"


def write_trajectory(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write the tensors of an inversion; the file appears whole or not at all, and equal input gives equal bytes.

    Args:
        path: The file; its folder must exist.
        tensors: What `Inversion.to_dict` returns.
        metadata: JSON-ready values: how the trajectory was made.
    """
    target = Path(path)
    partial = target.with_name(f".{target.name}.partial")
    # One key: safetensors writes several in the random order of a hash map, and the bytes would differ between runs.
    header = {_KEY: json.dumps(dict(metadata), sort_keys=True, ensure_ascii=False)}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial, metadata=header)
    os.replace(partial, target)


def read_trajectory(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_trajectory` wrote.

    Args:
        path: The file.

    Returns:
        The tensors, on the CPU, for `Inversion.from_dict`; and the metadata.

    Raises:
        FileNotFoundError: When there is no such file.
        ValueError: When the safetensors file was written by something else.
    """
    with safe_open(path, framework="pt") as file:
        header = file.metadata() or {}
        if _KEY not in header:
            raise ValueError(f"path: must be a trajectory written by ddim_lightning, got {str(path)!r}")
        tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
    return tensors, json.loads(header[_KEY])
