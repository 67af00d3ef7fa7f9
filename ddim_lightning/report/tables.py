"""Tables of results are printed for the command line."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ddim_lightning.report.benchmark_table import make_benchmark_table
from ddim_lightning.report.numbers import format_number, list_measured, name_measure
from ddim_lightning.report.text import make_plain

_DECIBELS = {
    "vae": "VAE",
    "reconstruction": "reconstruction",
    "edit": "edit",
    "in_context": "in context",
    "do_nothing": "source",
}

_WIDEST = 10_000  # characters


def print_results(records: Sequence[Mapping[str, Any]]) -> None:
    """Print a line a clip.

    Args:
        records: As in ``result.json``.
    """
    table = _make_table("clip", right=("frames", "VAE round trip", "reconstruction", "edits", "seconds"))
    for record in records:
        metrics = record["metrics"]
        table.add_row(
            make_plain(record["id"]),
            str(record["frames"]["count"]),
            _say_psnr(metrics["vae"]),
            _say_psnr(metrics["reconstruction"]),
            str(len(metrics["edits"])),
            f"{sum(record['seconds'].values()):.1f}",
        )
    _print(table)


def print_paths(output_dir: str, records: Sequence[Mapping[str, Any]]) -> None:
    """Print every file of a single clip, or the contact sheets of several.

    Args:
        output_dir: The folder of the clips' folders.
        records: As in ``result.json``.
    """
    for record in records:
        files = {kind: name for kind, name in record["files"].items() if kind != "input"}
        if len(records) > 1:
            files = {"sheet": files["sheet"]} if "sheet" in files else {}
        edits = files.pop("edits", [])
        for name in [*files.values(), *edits]:
            print(make_plain(str(Path(output_dir, record["id"], name))))


def print_edits(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print a line an edit whose truth is known, and the means.

    Args:
        rows: ``clip``, ``change``, and decibels: ``vae``, ``reconstruction``, ``edit``, ``in_context``, ``do_nothing``.
    """
    table = _make_table("clip", "edit", right=tuple(_DECIBELS.values()))
    for row in rows:
        table.add_row(make_plain(row["clip"]), make_plain(row["change"]), *(f"{row[name]:.1f}" for name in _DECIBELS))
    table.add_row("mean", "", *(f"{number:.1f}" for number in make_means(rows).values()))
    _print(table)
    print("PSNR in dB: what comes back through the VAE and through noise (reconstruction), against the source; edits")
    print("without training, edits in context (tiny_edit) and the untouched source, against the rendered truth.")


def print_measured(rows: Sequence[Mapping[str, Any]], means: Sequence[Mapping[str, Any]]) -> None:
    """Print a line a pair of videos, and the means.

    Args:
        rows: ``name`` and ``numbers`` of each; ``None`` is the PSNR of equal videos.
        means: Likewise.
    """
    names = list_measured(means)
    table = _make_table("video", right=[name_measure(name).replace(" ", "\n") for name in names])
    for row in [*rows, *means]:
        numbers = row["numbers"]
        known = {name: math.inf if number is None else number for name, number in numbers.items()}
        table.add_row(make_plain(row["name"]), *(format_number(known.get(name), f"metrics.{name}") for name in names))
    for column in table.columns:
        column.no_wrap = True  # a cut number would be another one
    needed = table.__rich_measure__(Console(width=_WIDEST), Console(width=_WIDEST).options).maximum
    _print(table, width=max(needed, Console().width))


def make_means(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Average the decibels of rows as `print_edits` takes them, column by column."""
    return {name: sum(row[name] for row in rows) / len(rows) for name in _DECIBELS}


def print_benchmark(summary: Mapping[str, Any]) -> None:
    """Print what a run came to on a public benchmark, beside what others published of the same numbers.

    Args:
        summary: As in ``benchmark.json``.
    """
    if (table := make_benchmark_table(summary)) is None:
        return
    measured = [place for place, number in enumerate(table.rows[0].numbers) if number is not None]
    shown = _make_table(table.title, right=[table.columns[place] for place in measured])
    for row in table.rows:
        numbers = (row.numbers[place] for place in measured)
        shown.add_row(make_plain(row.method), *("" if number is None else f"{number:.2f}" for number in numbers))
    _print(shown)
    for source in dict.fromkeys(row.source for row in table.rows if row.source):
        print(make_plain(f"published, not run here: {source}"))


def _make_table(*left: str, right: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in left:
        table.add_column(title)
    for title in right:
        table.add_column(title, justify="right")
    return table


def _print(table: Table, width: int | None = None) -> None:
    Console(highlight=False, markup=False, emoji=False, soft_wrap=True, width=width).print(table)


def _say_psnr(metrics: Mapping[str, float | None]) -> str:
    if "psnr" not in metrics:
        return "-"
    return "equal" if metrics["psnr"] is None else f"{metrics['psnr']:.1f} dB"
