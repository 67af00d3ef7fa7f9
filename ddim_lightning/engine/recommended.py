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


def read_recommended(model: str, subfolder: str | None = None) -> dict[str, Any]:
    """Read what is recommended for a model.

    Args:
        model: ``tiny``, a folder, or a hub id. A folder may hold a ``recommended.yaml`` of its own; every other model
            gets what is published for CogVideoX.
        subfolder: Where the pipeline folder lies inside the folder.

    Returns:
        ``guidance_scale``, ``inverter`` and ``editor``, the last two as ``{class_path, init_args}``; and ``sources``,
        where each comes from.

    Raises:
        ValueError: A file with other keys, or one that is no YAML.
    """
    path = _find(model, subfolder)
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"model: {path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict) or set(found) - _KEYS:
        raise ValueError(f"model: {path} must have the keys {', '.join(sorted(_KEYS))}, got {found!r}")
    published = found if path.parent.parent == _ASSETS else read_recommended("")
    return {**published, **found}


def fill_recommended(config: Any) -> Any:
    """Fill null, in place, with what is recommended for the model, and return the config.

    Args:
        config: The options of `edit` by their names, or those of ``predict``, with the module under ``model``; those
            of another module stay as they are.
    """
    model = config.get("model")
    options = config if model is None or isinstance(model, str) else model.get("init_args")
    if options and isinstance(options.get("model"), str) and "guidance_scale" in options:
        inside = options.get("subfolder") or options.get("source.subfolder")
        for name, value in read_recommended(options["model"], inside).items():
            if name in options and options[name] is None:
                options[name] = value
    return config


def _find(model: str, subfolder: str | None) -> Path:
    if model == "tiny":
        return _ASSETS / "tiny" / FILE
    own = Path(model).expanduser() / (subfolder or "") / FILE
    return own if model and own.is_file() else _ASSETS / "cogvideox" / FILE
