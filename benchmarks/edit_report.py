"""The report of `edit_quality` is written: the result file, its summary, the frontier and a sheet of clips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ddim_lightning.report.sheet import Row, write_sheet
from ddim_lightning.tiny.shapes import SIZE, WORDS, render
from ddim_lightning.types import Frames

from .edit_set import KINDS, ShapesEdit
from .edit_statistics import evaluate_adapter_goals, evaluate_goals, gather, summarize
from .edit_variants import (
    ADAPTER,
    BEGUN_AT,
    CEILING,
    DEFAULT,
    DEFAULT_GUIDANCE,
    IN_CONTEXT,
    IN_CONTEXT_GUIDANCE,
    LIMITS,
    NOTHING,
    REFERENCE,
    TRUTH_FROM,
    VARIANTS,
    Job,
)
from .environment import read_block
from .output import tell_origin
from .plots import Line, Point, plot_frontier, plot_limits
from .records import dump_json, merge_records

SCHEMA = "ddim-lightning/edit-quality/2"

NOTES = (
    "- PSNR in dB against the rendered truth, from one mean squared error over all unquantized values of a region.",
    "- *Inside* is where the source's object or the truth's is, *outside* the rest.",
    "- *Edited* is the share of the words to change that the classifier then sees, *kept* that of the other words.",
    "- *±* is the standard deviation over the seeds, three where noise is drawn.",
    "- NFE: one latent under one embedding through the network counts 1, the inversion's included.",
    "- Seconds are processor time of one thread, the inversion's included, the VAE's not.",
)

SHEET_EDITS = "-00"
"""The edits of the sheet, the first of each kind, by the end of their ids."""
SHEET_JOBS = (Job(REFERENCE, 6.0), Job(DEFAULT, DEFAULT_GUIDANCE), Job(IN_CONTEXT, IN_CONTEXT_GUIDANCE))


def write_report(
    folder: Path, settings: Mapping[str, Any], edits: Sequence[ShapesEdit], jobs: Sequence[Job], commit: str | None
) -> str:
    """Write ``result.json``, ``README.md``, ``frontier.png`` and ``sheet.png`` from the records of a folder.

    Args:
        folder: Holds the records and the clips of the sheet.
        settings: What the records were measured with.
        edits: Those asked for.
        jobs: What was made for each edit.
        commit: The commit measured, where the code is no checkout.

    Returns:
        The summary, Markdown.

    Raises:
        ValueError: The records are of other settings, or of no edit complete.
    """
    complete, cells = gather(merge_records(folder, settings), edits, jobs)
    result = {
        "schema": SCHEMA,
        "environment": read_block(commit),
        "settings": {**settings, "edits": len(complete), "missing": len(edits) - len(complete)},
        "default_guidance": DEFAULT_GUIDANCE,
        "rows": [summarize(method, cell) for method, cell in cells.items()],
        "bars": [
            *evaluate_goals(cells, settings["steps"], DEFAULT_GUIDANCE),
            *evaluate_adapter_goals(cells, DEFAULT_GUIDANCE),
        ],
    }
    (folder / "result.json").write_text(dump_json(result, indent=2) + "\n", encoding="utf-8")
    write_plots(folder, result)
    write_clips(folder, [edit for edit in complete if edit.id.endswith(SHEET_EDITS)])
    summary = make_markdown(result)
    (folder / "README.md").write_text(summary, encoding="utf-8")
    return summary


def make_markdown(result: Mapping[str, Any]) -> str:
    """Write the summary a person reads."""
    settings, rows = result["settings"], result["rows"]
    kinds = [kind for kind in KINDS if kind in rows[0]["kinds"]]
    left_out = f"; {settings['missing']} more are not complete and left out" if settings["missing"] else ""
    said = f"model {settings['model']}, intervals of 95 % by resampling the edits"
    lines = [
        "# Edits, measured against their truth",
        "",
        tell_origin(result),
        "",
        f"{settings['edits']} edits of the {settings['split']} set{left_out}; {settings['steps']} steps, {said}.",
        "",
        *NOTES,
        "",
        *list_bars(result),
        "## All edits",
        "",
        *make_table(
            (
                "method",
                "guidance",
                "whole",
                "±",
                "inside",
                "outside",
                "edited",
                "±",
                "kept",
                *WORDS,
                "NFE",
                "seconds",
            ),
            [_list_numbers(row) for row in rows],
        ),
        "",
        "## Whole-frame PSNR and edited words by kind of edit",
        "",
        *make_table(("method", "guidance", *kinds), [_list_kinds(row, kinds) for row in rows]),
        "",
        "![Preservation against prompt accuracy](frontier.png)",
        "",
        "![Some of the edits](sheet.png)",
        *(["", "![What limits the edits](limits.png)"] if has_limits(result) else []),
    ]
    return "\n".join(lines) + "\n"


def list_bars(result: Mapping[str, Any]) -> list[str]:
    """List the bars and whether they are met, one a line."""
    if not result["bars"]:
        return []
    lines = [f"- **{tell_met(bar)}**: {bar['bar']}: {bar['numbers']}" for bar in result["bars"]]
    return [f"## Goals: what is recommended (guidance {result['default_guidance']:g}), and the adapter", "", *lines, ""]


def tell_met(bar: Mapping[str, Any]) -> str:
    """Say in words whether a bar is met."""
    return "met" if bar["met"] else "exempt" if bar["exempt"] else "NOT MET"


def make_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Make the lines of a Markdown table."""
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def tell_guidance(row: Mapping[str, Any]) -> str:
    """Return the guidance scale of a row as a table has it."""
    return "" if row["guidance"] is None else f"{row['guidance']:g}"


def write_plots(folder: Path, result: Mapping[str, Any]) -> None:
    """Draw the frontier and, where it was measured, what limits the edits."""
    write_frontier(folder / "frontier.png", result)
    write_limits(folder / "limits.png", result)


def write_frontier(path: Path, result: Mapping[str, Any]) -> None:
    """Plot preservation against prompt accuracy: every method at each of its scales, what is recommended marked."""
    marked = (DEFAULT, result["default_guidance"]), (NOTHING, None), (IN_CONTEXT, IN_CONTEXT_GUIDANCE)
    # No methods; and the adapter's other settings, which lie too close together to be told apart.
    left_out = {CEILING, *LIMITS, *ADAPTER} - {IN_CONTEXT}
    points = [
        Point(
            name_point(row),
            row["all"]["edited"][0] * 100,
            row["all"]["psnr_db"]["outside"][0],
            highlighted=(row["method"], row["guidance"]) in marked,
        )
        for row in result["rows"]
        if row["method"] not in left_out
    ]
    plot_frontier(
        path,
        points,
        title="What is kept against what is changed, by method and guidance",
        x_label="words to change that are right (%)",
        y_label="PSNR outside the objects (dB)",
    )


def has_limits(result: Mapping[str, Any]) -> bool:
    """Return whether it was measured how much of the truth is left after the noise of a step."""
    measured = {row["method"] for row in result["rows"]}
    return measured >= {*TRUTH_FROM, *BEGUN_AT, DEFAULT}


def write_limits(path: Path, result: Mapping[str, Any]) -> None:
    """Plot how much of the truth is left after the noise of a step, if that was measured."""
    if not has_limits(result):
        return
    rows, scale = {(row["method"], row["guidance"]): row["all"] for row in result["rows"]}, result["default_guidance"]
    whole = {method: row["psnr_db"]["whole"][0] for method, row in rows.items()}
    truths = {(method, 1.0): step for method, step in TRUTH_FROM.items()}
    first = min(TRUTH_FROM.values())
    edits = {(DEFAULT, scale): first, **{(method, scale): step for method, step in BEGUN_AT.items()}}
    words = ", ".join(f"{rows[method]['edited'][0]:.0%}" for method in edits)
    lines = [
        Line(label, list(steps.values()), [whole[method] for method in steps])
        for label, steps in (
            ("the truth itself, noised at this step and sampled down again under its own caption", truths),
            (f"the default, begun at this step; words to change that are right: {words}", edits),
        )
    ]
    heights = {
        "ceiling": (CEILING, None),
        "default": (DEFAULT, scale),
        "reference": (REFERENCE, 6.0),
        "do nothing": (NOTHING, None),
    }
    plot_limits(
        path,
        lines,
        {name: whole[method] for name, method in heights.items() if method in whole},
        title="How much of a clip is left after noise",
        x_label=f"step whose noise is added, of {result['settings']['steps']} (0 is pure noise)",
        y_label="PSNR over the whole frame (dB)",
    )


def name_point(row: Mapping[str, Any]) -> str:
    """Return the label of a method in the frontier; the default goes by its class, and so has the class's color."""
    name = f"{type(VARIANTS[DEFAULT].editor).__name__} (default)" if row["method"] == DEFAULT else row["method"]
    return f"{name} {tell_guidance(row)}".strip()


def write_clips(folder: Path, edits: Sequence[ShapesEdit]) -> None:
    """Write ``sheet.png``: source, truth, the reference's settings, the default and the adapter, for each edit."""
    rows = []
    for edit in edits:
        rows.append(Row("source", render(edit.source), edit.source.caption, edit.id))
        rows.append(Row("truth", edit.truth, edit.target.caption))
        for job in SHEET_JOBS:
            path = folder / "clips" / f"{edit.id}-{job.method}.png"
            if path.exists():
                rows.append(Row(job.method, read_strip(path), "", f"guidance {job.guidance:g}"))
    if rows:
        title = "The first edit of each kind: source, rendered truth, the reference's settings, the default, in context"
        write_sheet(folder / "sheet.png", rows, title=title, fps=Fraction(8))


def read_strip(path: Path) -> Frames:
    """Read frames of a clip that stand side by side."""
    with Image.open(path) as image:
        pixels = torch.from_numpy(np.array(image.convert("RGB")))
    return pixels.reshape(SIZE, -1, SIZE, 3).permute(1, 3, 0, 2)


def _list_numbers(row: Mapping[str, Any]) -> list[str]:
    part, each = row["all"], row["each_seed"]
    spread = {name: f"{np.std(values, ddof=1):.2g}" if row["seeds"] > 1 else "" for name, values in each.items()}
    return [
        row["method"],
        tell_guidance(row),
        _tell_interval(part["psnr_db"]["whole"], ".2f"),
        spread["psnr_db"],
        _tell_interval(part["psnr_db"]["inside"], ".2f"),
        _tell_interval(part["psnr_db"]["outside"], ".2f"),
        _tell_interval(part["edited"], ".0%"),
        spread["edited"],
        f"{part['kept'][0]:.0%}",
        *(f"{part['right'][word]:.0%}" for word in WORDS),
        f"{row['nfe']:.0f}",
        f"{row['seconds']:.1f}",
    ]


def _list_kinds(row: Mapping[str, Any], kinds: Sequence[str]) -> list[str]:
    parts = [row["kinds"][kind] for kind in kinds]
    return [
        row["method"],
        tell_guidance(row),
        *(f"{part['psnr_db']['whole'][0]:.2f}, {part['edited'][0]:.0%}" for part in parts),
    ]


def _tell_interval(interval: Sequence[float], form: str) -> str:
    value, low, high = (format(number, form) for number in interval)
    return f"{value} [{low}, {high}]"
