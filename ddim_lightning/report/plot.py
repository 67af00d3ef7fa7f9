"""The error of a round trip by level is drawn as a small plot: what is here are its coordinates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 320, 132
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 8, 10, 22  # what axes and their labels take


@dataclass(frozen=True)
class Plot:
    """A `Plot` is what the template draws as SVG, in its units.

    Args:
        curves: By name, the points of a line as SVG writes them.
        lines: Heights of the horizontal lines, each with its label.
        left: Where the axis of levels begins.
        right: Where it ends.
        bottom: Height of this axis.
        levels: How many levels there are but the first.
        summary: What it shows, in a sentence.
    """

    curves: dict[str, str]
    lines: list[tuple[float, str]]
    left: int
    right: int
    bottom: int
    levels: int
    summary: str
    width: int = WIDTH
    height: int = HEIGHT


def make_plot(errors: Mapping[str, Sequence[float]]) -> Plot | None:
    """Draw errors by level, the noisiest level at the left.

    Args:
        errors: By name of the curve, the relative error by level, >= 0; curves without one are left out.

    Returns:
        The plot; ``None`` where nothing is to be drawn.
    """
    errors = {name: values for name, values in errors.items() if len(values) > 1}
    if not errors:
        return None
    top = _round_up(max(max(values) for values in errors.values()))
    right, bottom = WIDTH - _RIGHT, HEIGHT - _BOTTOM

    def put(level: int, error: float, count: int) -> str:
        x = _LEFT + (right - _LEFT) * level / (count - 1)
        return f"{x:.1f},{bottom - (bottom - _TOP) * error / top:.1f}"

    curves = {
        name: " ".join(put(level, error, len(values)) for level, error in enumerate(values))
        for name, values in errors.items()
    }
    lines = [(bottom - (bottom - _TOP) * share, f"{100 * top * share:.3g}%") for share in (0.0, 0.5, 1.0)]
    said = [f"{name} {_tell(values)}".strip() for name, values in errors.items()]
    levels = max(map(len, errors.values())) - 1
    return Plot(curves, lines, _LEFT, right, bottom, levels, f"Round-trip error by level: {'; '.join(said)}")


def _round_up(value: float) -> float:
    """The next of 1, 2, 4, 6, 8 times a power of ten."""
    if value <= 0:
        return 1e-4
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 4, 6, 8, 10) if step * power >= value * (1 - 1e-9))


def _tell(values: Sequence[float]) -> str:
    worst = max(range(len(values)), key=values.__getitem__)
    return f"at most {values[worst]:.2g}, at level {worst} of {len(values) - 1}, and {values[-1]:.2g} when clean"
