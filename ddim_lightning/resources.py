"""Files that are shipped beside the code: the configs, found in a wheel and in a checkout alike."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def get_configs_folder() -> Path:
    """Return the folder of the shipped YAML files.

    A wheel carries ``configs/`` as the package ``ddim_lightning.configs``. An editable install leaves it where it is,
    beside the package, because setuptools maps no folder into an editable package.

    Raises:
        FileNotFoundError: The installation carries no configs.
    """
    for folder in (_PACKAGE / "configs", _PACKAGE.parent / "configs"):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"the shipped configs are neither in {_PACKAGE} nor beside it: reinstall ddim-lightning")


def get_config_path(name: str) -> Path:
    """Return the path of a shipped config.

    Args:
        name: Its name without ``.yaml``, ``edit`` for example.

    Raises:
        ValueError: No shipped config has this name.
    """
    names = sorted(path.stem for path in get_configs_folder().glob("*.yaml"))
    if name not in names:
        raise ValueError(f"config: must be one of the shipped {', '.join(names)}, got {name!r}")
    return get_configs_folder() / f"{name}.yaml"
