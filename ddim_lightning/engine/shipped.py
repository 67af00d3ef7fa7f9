"""Configs and benchmarks lie beside the code, and are found in a wheel and in a checkout alike."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ddim_lightning.report.mistakes import get_nearest


def find_shipped(name: str) -> Path:
    """Return a folder that a wheel carries in the package, and an editable install leaves beside it."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / name, package.parent / name):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"the {name} are neither in {package} nor beside it: reinstall ddim-lightning")


def get_config_path(name: str) -> Path:
    """Return the path of a shipped config by its name without ``.yaml``; raise a ValueError where there is none."""
    paths = {path.stem: path for path in find_shipped("configs").glob("*.yaml")}
    if name not in paths:
        got = f"{', '.join(sorted(paths))}, got {name!r}{get_nearest(name, paths)}"
        raise ValueError(f"config: must be a file or one of the shipped {got}")
    return paths[name]


def find_configs(words: Sequence[str]) -> list[str]:
    """Replace the name of a shipped config, ``--config edit``, by its path, where no file has that name."""
    found = list(words)
    for position, word in enumerate(words):
        flag, equals, value = word.partition("=")
        name = value if equals else "".join(words[position + 1 : position + 2])
        # What has lines is the text of a config.
        if flag not in {"--config", "-c"} or not name or "\n" in name or Path(name).exists():
            continue
        if Path(name).name != name:
            raise FileNotFoundError(f"config: {name} does not exist")
        path = str(get_config_path(name.removesuffix(".yaml")))
        found[position if equals else position + 1] = f"{flag}={path}" if equals else path
    return found
