"""A result is written: JSON for programs, the report and the plots for people."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Draw = Callable[[Path, Mapping[str, Any]], None]
"""Draws a result's plots into a folder."""


def write_files(folder: Path | None, result: Mapping[str, Any], report: str, draw: Draw | None = None) -> None:
    """Write ``result.json``, ``README.md`` and the plots; nothing without a folder.

    Args:
        folder: Made where it is missing.
        result: JSON-ready.
        report: Markdown made from it.
        draw: Draws the plots, for which there must be matplotlib; without it they can be drawn later, from the result.
    """
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    write_report(folder, result, report, draw)


def write_report(folder: Path, result: Mapping[str, Any], report: str, draw: Draw | None) -> None:
    """Write what is made from a result."""
    (folder / "README.md").write_text(report, encoding="utf-8")
    if draw is None:
        return
    try:
        draw(folder, result)
    except ModuleNotFoundError as error:
        print(f"no plots: {error}; `python -m benchmarks.check --write {folder}` draws them elsewhere")


def tell_place(result: Mapping[str, Any]) -> str:
    """Return what a result was measured on and in: the GPU or a CPU, the version of torch, the dtype."""
    settings, environment = result["settings"], result["environment"]
    cuda = settings["device"].startswith("cuda")
    place = ", ".join(gpu["name"] for gpu in environment["gpus"]) if cuda else "a CPU"
    return f"{place}, torch {environment['versions']['torch']}, {settings['dtype']}"


def tell_origin(result: Mapping[str, Any]) -> str:
    """Return the line that says by what command, at what commit and under what load a result was measured."""
    environment = result["environment"]
    load = "not recorded" if environment["load_1min"] is None else f"{environment['load_1min']:.2f}"
    return f"`{environment['command']}` at commit {environment['commit']}; load of the machine before it: {load}"
