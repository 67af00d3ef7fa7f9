"""A result is written: JSON for programs, the report and the plots for people."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from .deadline import Deadline

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


def write_growing(
    folder: Path | None,
    results: Iterable[Mapping[str, Any]],
    make_report: Callable[[Mapping[str, Any]], str],
    draw: Draw | None = None,
) -> Mapping[str, Any]:
    """Write a result each time it has grown, so that what is measured stays if the rest is cut off; print the last.

    Args:
        folder: See `write_files`.
        results: One for each case that was added, at least one.
        make_report: Makes the report of a result.
        draw: See `write_files`; plots are drawn of the last result.

    Returns:
        The last result.

    Raises:
        ValueError: No result: the budget ended before anything could be told.
    """
    result = None
    for result in results:
        write_files(folder, result, make_report(result))
    if result is None:
        raise ValueError("budget: must leave time for the first cases, nothing was measured; give it more seconds")
    report = make_report(result)
    print(report, end="")
    write_files(folder, result, report, draw)
    return result


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
    """Return the line that says by what command, at what commit, under what load and on what processor it was."""
    environment = result["environment"]
    load = "not recorded" if environment["load_1min"] is None else f"{environment['load_1min']:.2f}"
    origin = f"`{environment['command']}` at commit {environment['commit']}; load of the machine before it: {load}"
    if processor := environment.get("processor"):  # of older results it is not known
        origin += f"; processor: {processor}"
    if "left_out" in result:
        origin += f". **Not complete**: no time was left for {', '.join(result['left_out'])}"
    return origin


def tell_left_out(deadline: Deadline) -> dict[str, list[str]]:
    """Return what a result says of the cases that no time was left for; nothing where there are none."""
    return {"left_out": deadline.left_out} if deadline.left_out else {}
