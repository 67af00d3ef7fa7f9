"""Bars of results are drawn with matplotlib, the extra ``benchmarks``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_FILL, _FILL_LAST, _LINE, _FAINT = "#0072b2", "#999999", "#1c1c1e", "#6b6b70"  # blue and gray of Okabe and Ito
_WIDTH, _BAR, _HEIGHT, _HEADER = 6.4, 0.24, 1.6, 0.75  # inches: least width, a bar, a panel, the titles
_MOST_LABELS = 24


@dataclass(frozen=True)
class Panel:
    """A `Panel` is one row of bars.

    Args:
        title: What is shown, with its unit.
        values: A bar each; none is drawn for what is not finite.
        spreads: Half the length of each bar's error line; ``None`` draws none.
        baseline: Where a dashed line marks what the bars are to be compared with; ``None`` is zero.
        limits: Range of the axis; ``None`` is that of the bars.
    """

    title: str
    values: Sequence[float]
    spreads: Sequence[float | None]
    baseline: float | None = None
    limits: tuple[float, float] | None = None


def write_bars(
    path: str | Path | BinaryIO, names: Sequence[str], panels: Sequence[Panel], *, title: str, subtitle: str, axis: str
) -> None:
    """Draw panels of bars below each other, over the same names, and write them as a PNG.

    Args:
        path: The file, or where its bytes go.
        names: Of the bars, from left to right; the last one, a total, stands apart in gray.
        panels: From top to bottom.
        title: The first line.
        subtitle: The one or two smaller lines below it.
        axis: What the names are.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    places = [*range(len(names) - 1), len(names) - 0.4]
    every = math.ceil(len(names) / _MOST_LABELS)
    labeled = [k for k in range(len(names) - 1) if k % every == 0] + [len(names) - 1]
    width, height = max(_WIDTH, _BAR * len(names)), _HEIGHT * len(panels) + _HEADER
    figure = Figure(figsize=(width, height), dpi=150, facecolor="white")
    figure.set_layout_engine("constrained", rect=(0, 0, 1, 1 - _HEADER / height))
    figure.text(0.015, 1 - 0.1 / height, title, va="top", fontsize=12, color=_LINE)
    figure.text(0.015, 1 - 0.36 / height, subtitle, va="top", fontsize=8, color=_FAINT)
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for ax, panel in zip(axes, panels, strict=True):
        values = [value if math.isfinite(value) else math.nan for value in panel.values]
        ax.bar(places, values, width=0.7, color=[*[_FILL] * (len(names) - 1), _FILL_LAST])
        for place, value, spread in zip(places, values, panel.spreads, strict=True):
            if spread is not None and math.isfinite(value):
                ax.errorbar(place, value, spread, color=_LINE, linewidth=0.9, capsize=2)
        ax.axhline(0, color=_LINE, linewidth=0.8)
        if panel.baseline is not None:
            ax.axhline(panel.baseline, color=_LINE, linewidth=0.8, linestyle="--")
        if panel.limits is not None:
            ax.set_ylim(panel.limits)
        ax.set_title(panel.title, loc="left", fontsize=9, color=_LINE)
        ax.spines[["top", "right", "bottom"]].set_visible(False)
        ax.tick_params(labelsize=8, colors=_LINE, bottom=False)
    axes[-1].set_xticks([places[k] for k in labeled], [names[k] for k in labeled])
    axes[-1].set_xlabel(axis, fontsize=8, color=_LINE)
    figure.savefig(path, format="png")
