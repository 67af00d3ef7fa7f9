"""Settings and versions of many records are told once where they agree, and side by side where runs differ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def flatten(settings: object, name: str = "") -> dict[str, str]:
    """Return nested settings as texts by their names with dots.

    Args:
        settings: JSON-ready. A class path is told without its package; its options stand below it.
        name: What stands before all names.
    """
    if not isinstance(settings, Mapping):
        return {name: _say(settings)} if name else {}
    if "class_path" in settings:
        options = flatten(settings["init_args"], name) if settings.get("init_args") else {}
        return {name: str(settings["class_path"]).rpartition(".")[2]} | options
    flat: dict[str, str] = {} if settings or not name else {name: "none"}
    for key, value in settings.items():
        flat |= flatten(value, f"{name}.{key}" if name else str(key))
    return flat


def find_common(settings: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Return the settings that all have, with the value that all have."""
    first, *others = [*settings] or [{}]
    return {name: value for name, value in first.items() if all(other.get(name) == value for other in others)}


def lay_side_by_side(runs: Sequence[Mapping[str, str]]) -> list[tuple[str, list[str], bool]]:
    """Return a row a setting: its name, its value in each run, and whether these differ; those that differ first."""
    names = dict.fromkeys(name for settings in runs for name in settings)
    rows = [(name, [settings.get(name, "-") for settings in runs]) for name in names]
    return sorted(((name, values, len({*values}) > 1) for name, values in rows), key=lambda row: not row[2])


def _say(value: Any) -> str:
    if value is None or value in ([], ""):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(_say, value)) if isinstance(value, list) else str(value)
