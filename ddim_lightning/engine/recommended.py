"""Settings are recommended for a model by a file that lies beside it.

Nothing heavy is imported here, so that the command line can show what will be taken before torch is loaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

FILE = "recommended.yaml"
_ASSETS = Path(__file__).parents[1] / "assets"
_KEYS = {"guidance_scale", "inverter", "editor", "sources"}


def read_recommended(model: str) -> dict[str, Any]:
    """Read what is recommended for a model.

    Args:
        model: ``tiny``, a folder, or a hub id. A folder may hold a ``recommended.yaml`` of its own; every other model
            gets what is published for CogVideoX.

    Returns:
        ``guidance_scale``, ``inverter`` and ``editor``, the last two as ``{class_path, init_args}``; and ``sources``,
        where each comes from.

    Raises:
        ValueError: A file with other keys, or one that is no YAML.
    """
    path = _find(model)
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"model: {path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict) or set(found) - _KEYS:
        raise ValueError(f"model: {path} must have the keys {', '.join(sorted(_KEYS))}, got {found!r}")
    published = found if path.parent.parent == _ASSETS else read_recommended("")
    return {**published, **found}


def _find(model: str) -> Path:
    if model == "tiny":
        return _ASSETS / "tiny" / FILE
    own = Path(model).expanduser() / FILE
    return own if model and own.is_file() else _ASSETS / "cogvideox" / FILE
