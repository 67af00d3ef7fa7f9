"""All plots have one style: white, quiet, and one color per method everywhere."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

# Okabe and Ito's colors, which stay apart for color-blind readers; their yellow is too faint on white.
_BLUE, _VERMILLION, _GREEN, _ORANGE, _SKY, _PURPLE = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7"
_INK, _GRAY, _FAINT = "#1c1c1e", "#6b6b70", "#e3e3e6"

_COLORS = {
    "DDIM": _VERMILLION,
    "UniInv": _BLUE,
    "FixedPoint": _GREEN,
    "BDIA": _PURPLE,
    "EditFriendly": _ORANGE,
    "reference": _VERMILLION,
    "KVInjection": _BLUE,
    "DirectInversion": _GREEN,
    "FlowEdit": _ORANGE,
    "do nothing": _GRAY,
    "no inversion": _INK,
    "inversion": _BLUE,
    "default edit": _ORANGE,
    "four rows": _VERMILLION,
    "shared row": _GREEN,
    "exact": _BLUE,
    "none": _BLUE,
    "model": _ORANGE,
    "blocks": _GREEN,
}
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 14,
    "axes.edgecolor": _GRAY,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _FAINT,
    "grid.linewidth": 0.8,
    "xtick.color": _GRAY,
    "ytick.color": _GRAY,
    "figure.facecolor": "white",
}
_INCHES, _DPI = (8.0, 5.0), 150


_BEHIND_TEXT = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5}


def get_color(method: str) -> str:
    """Return the color of a method by the name it begins with; an unknown one always gets the same of the palette."""
    known = max((name for name in _COLORS if method.startswith(name)), key=len, default=None)
    palette = (_SKY, _PURPLE, _ORANGE, _GREEN)
    return _COLORS[known] if known else palette[zlib.crc32(method.encode()) % len(palette)]


@dataclass(frozen=True)
class Line:
    """A `Line` is one curve.

    Args:
        label: Its name in the legend; its color is that of the method it begins with.
        x: Where it was measured.
        y: What was measured; on a log scale, zeros are left out.
        dash: ``-``, ``--``, ``:`` or ``-.``, to tell apart lines of one method.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    dash: str = "-"


@dataclass(frozen=True)
class Point:
    """A `Point` is one method of a frontier.

    Args:
        label: Written beside it; its color is that of the method it begins with.
        x: Cost or success.
        y: What is traded for it.
        highlighted: Drawn larger and in bold: the default.
    """

    label: str
    x: float
    y: float
    highlighted: bool = False


@dataclass(frozen=True)
class Bars:
    """`Bars` are one series of bars.

    Args:
        label: Its name in the legend; its color is that of the method it begins with.
        heights: A bar a group.
        notes: What stands above each bar.
    """

    label: str
    heights: Sequence[float]
    notes: Sequence[str]


def plot_levels(path: Path, lines: Sequence[Line], *, title: str, x_label: str, y_label: str) -> None:
    """Draw what is left of something level by level, on a log scale, the walk going from left to right.

    Args:
        path: PNG to write.
        lines: One per method; x falls from noise to clean.
        title: The plot's statement.
        x_label: What the levels are told by, with its unit.
        y_label: What was measured.
    """
    figure, axes = _make_axes(title, x_label, y_label)
    for line in lines:
        shown = [(x, y) for x, y in zip(line.x, line.y, strict=True) if y > 0]
        xs, ys = zip(*shown, strict=True) if shown else ((), ())
        axes.plot(xs, ys, line.dash, color=get_color(line.label), linewidth=1.8, label=line.label)
    axes.set_yscale("log")
    axes.invert_xaxis()
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    _write(figure, path)


def plot_frontier(path: Path, points: Sequence[Point], *, title: str, x_label: str, y_label: str) -> None:
    """Draw one thing against another, better towards the upper right, every point with its name beside it.

    Args:
        path: PNG to write.
        points: One per method and setting; those that no other beats in both are joined.
        title: The plot's statement.
        x_label: What runs to the right, with its unit.
        y_label: What runs up, with its unit.
    """
    figure, axes = _make_axes(title, x_label, y_label)
    best = sorted((point for point in points if not _is_beaten(point, points)), key=lambda point: point.x)
    axes.plot([point.x for point in best], [point.y for point in best], "-", color=_FAINT, linewidth=6, zorder=1)
    for point in points:
        size = 110 if point.highlighted else 40
        axes.scatter(
            point.x, point.y, s=size, color=get_color(point.label), edgecolors="white", linewidths=0.8, zorder=3
        )
    axes.margins(0.12)
    _place_labels(figure, axes, points)
    _write(figure, path)


def plot_limits(
    path: Path, lines: Sequence[Line], heights: Mapping[str, float], *, title: str, x_label: str, y_label: str
) -> None:
    """Draw curves against heights with names; the points of no more than two bear their numbers.

    Args:
        path: PNG to write.
        lines: The curves.
        heights: Name of a level to compare with, and where it lies.
        title: The plot's statement.
        x_label: What runs to the right, with its unit.
        y_label: What runs up, with its unit.
    """
    figure, axes = _make_axes(title, x_label, y_label)
    for line in lines:
        axes.plot(line.x, line.y, line.dash, marker="o", color=get_color(line.label), label=line.label)
        for x, y in zip(line.x, line.y, strict=True) if len(lines) <= 2 else ():
            axes.annotate(f"{y:.1f}", (x, y), xytext=(0, 8), textcoords="offset points", ha="center", fontsize=9)
    for name, height in heights.items():
        axes.axhline(height, color=_GRAY, linewidth=1, linestyle="--")
        axes.annotate(
            name, (1.0, height), xycoords=("axes fraction", "data"), xytext=(6, 0), textcoords="offset points",
            va="center", color=_GRAY, fontsize=9,
        )  # fmt: skip
    axes.margins(0.08)
    axes.legend(loc="upper left", bbox_to_anchor=(0.0, -0.12), frameon=False)
    _write(figure, path)


def plot_steps(path: Path, lines: Sequence[Line], *, title: str, x_label: str, y_label: str) -> None:
    """Draw curves of many points from zero up, without their numbers.

    Args:
        path: PNG to write.
        lines: The curves.
        title: The plot's statement.
        x_label: What runs to the right, with its unit.
        y_label: What runs up, with its unit.
    """
    figure, axes = _make_axes(title, x_label, y_label)
    for line in lines:
        axes.plot(line.x, line.y, line.dash, marker=".", color=get_color(line.label), label=line.label)
    axes.set_ylim(bottom=0.0)
    axes.locator_params(axis="x", integer=True)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    _write(figure, path)


def plot_bars(path: Path, groups: Sequence[str], series: Sequence[Bars], *, title: str, y_label: str) -> None:
    """Draw bars side by side, with a note above each.

    Args:
        path: PNG to write.
        groups: What stands below each group of bars.
        series: The bars, one of each series in every group.
        title: The plot's statement.
        y_label: What runs up, with its unit.
    """
    figure, axes = _make_axes(title, "", y_label)
    axes.grid(False, axis="x")
    width = 0.8 / len(series)
    for k, bars in enumerate(series):
        centers = [group + (k - (len(series) - 1) / 2) * width for group in range(len(groups))]
        drawn = axes.bar(centers, bars.heights, width * 0.92, color=get_color(bars.label), label=bars.label)
        axes.bar_label(drawn, bars.notes, padding=3, fontsize=9 if len(series) == 1 else 6, color=_INK)
    axes.set_xticks(range(len(groups)), groups)
    axes.margins(y=0.15)
    if len(series) > 1:
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    _write(figure, path)


def plot_roofline(path: Path, points: Sequence[Point], best_tflops: float, tb_per_s: float, *, title: str) -> None:
    """Draw rates over intensities on log scales, under the lower of two measured bounds.

    Args:
        path: PNG to write.
        points: FLOP a byte and TFLOP/s of each kernel.
        best_tflops: The highest rate, TFLOP/s.
        tb_per_s: How fast memory is read and written, TB/s.
        title: The plot's statement.
    """
    figure, axes = _make_axes(title, "FLOP a byte of inputs and outputs", "TFLOP/s")
    ridge = best_tflops / tb_per_s
    ends = [ridge, *(point.x for point in points)]
    roof = [min(ends) / 2, ridge, max(ends) * 2]
    axes.plot(roof, [min(best_tflops, x * tb_per_s) for x in roof], color=_GRAY, linewidth=1.8)
    for point in points:
        axes.scatter(point.x, point.y, s=40, color=get_color(point.label), edgecolors="white", zorder=3)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.margins(0.15)
    _place_labels(figure, axes, points)
    _write(figure, path)


def _make_axes(title: str, x_label: str, y_label: str) -> tuple[Figure, Axes]:
    """Make an empty plot, outside of pyplot, which would keep every figure for the life of the process."""
    try:
        import matplotlib as mpl
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("matplotlib: is needed for plots: install 'ddim-lightning[benchmarks]'") from error
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=_INCHES, dpi=_DPI)
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        axes.set_title(title)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
    return figure, axes


def _write(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without the name of the software, equal numbers give equal bytes.
    figure.savefig(path, bbox_inches="tight", pad_inches=0.2, metadata={"Software": None})


def _is_beaten(point: Point, points: Sequence[Point]) -> bool:
    return any(
        other.x >= point.x and other.y >= point.y and (other.x, other.y) != (point.x, point.y) for other in points
    )


def _place_labels(figure: Figure, axes: Axes, points: Sequence[Point]) -> list[Annotation]:
    """Write the names beside the points, each at the nearest place that is free of names and points."""
    renderer: Any = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    figure.draw_without_rendering()  # settles the axes' limits, so that the points have their places in pixels
    pixels = [axes.transData.transform((point.x, point.y)) for point in points]
    taken = [_make_box(x - 5, y - 5, x + 5, y + 5) for x, y in pixels]
    placed = []
    # The default gets its place first.
    for point in sorted(points, key=lambda point: not point.highlighted):
        label = axes.annotate(
            point.label,
            (point.x, point.y),
            xytext=(0, 0),
            textcoords="offset points",
            color=_INK,
            fontsize=9,
            fontweight="bold" if point.highlighted else "normal",
            bbox=_BEHIND_TEXT,
            arrowprops={"arrowstyle": "-", "color": _GRAY, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3},
        )
        box = _move_to_free_place(label, axes.get_window_extent(renderer), taken, renderer)
        taken.append(box)
        placed.append(label)
    return placed


def _move_to_free_place(label: Annotation, room: Bbox, taken: Sequence[Bbox], renderer: Any) -> Bbox:
    """Try places around a point, from near to far; where all are taken, the last one has to do."""
    from matplotlib.text import Text

    sides = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
    for reach, (right, up) in itertools.product((8, 14, 22, 32, 44, 58, 74), sides):
        label.set(ha={1: "left", 0: "center", -1: "right"}[right], va={1: "bottom", 0: "center", -1: "top"}[up])
        label.set_position((right * reach, up * reach))
        label.update_positions(renderer)
        # The annotation's own extent would include the line to its point.
        box = Text.get_window_extent(label, renderer)
        inside = room.x0 <= box.x0 and room.y0 <= box.y0 and box.x1 <= room.x1 and box.y1 <= room.y1
        if inside and not any(box.overlaps(other) for other in taken):
            break
    # A line to the point is only needed where the name stands away from it.
    assert label.arrow_patch is not None
    label.arrow_patch.set_visible(reach > 8)
    return box


def _make_box(left: float, bottom: float, right: float, top: float) -> Bbox:
    from matplotlib.transforms import Bbox

    return Bbox.from_extents(left, bottom, right, top)
