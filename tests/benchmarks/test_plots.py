"""Plots: what is drawn, and that no label hides another."""

from __future__ import annotations

import random
from itertools import combinations
from pathlib import Path

import pytest
from matplotlib.text import Text
from PIL import Image

from benchmarks.plots import Line, Point, _make_axes, _place_labels, get_color, plot_frontier, plot_levels, plot_limits


def test_one_method_has_one_color_everywhere():
    assert get_color("FixedPoint 3") == get_color("FixedPoint 5") == get_color("FixedPoint")
    names = ("DDIM", "UniInv", "FixedPoint", "BDIA", "EditFriendly")
    assert len({get_color(name) for name in names}) == 5
    editors = ("reference", "KVInjection", "DirectInversion", "FlowEdit", "do nothing", "no inversion")
    assert len({get_color(name) for name in editors}) == 6
    assert get_color("something else") == get_color("something else")


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_label_hides_another_or_a_point(seed: int):
    draw = random.Random(seed)
    # Half of the points in a tenth of the plot.
    points = [
        Point(f"method {i}, guidance {i}", draw.uniform(0.5, 0.6 if i % 2 else 1.0), draw.uniform(18, 19), i == 3)
        for i in range(10)
    ]
    figure, axes = _make_axes("title", "x", "y")
    for point in points:
        axes.scatter(point.x, point.y)
    axes.margins(0.12)
    labels = _place_labels(figure, axes, points)
    figure.canvas.draw()
    boxes = {label.get_text(): Text.get_window_extent(label) for label in labels}
    assert set(boxes) == {point.label for point in points}
    assert not [pair for pair in combinations(boxes, 2) if boxes[pair[0]].overlaps(boxes[pair[1]])]
    for point in points:
        x, y = axes.transData.transform((point.x, point.y))
        assert not any(box.contains(x, y) for box in boxes.values())


def test_plots_are_written_and_equal_numbers_give_equal_bytes(tmp_path: Path):
    names = {"x_label": "x", "y_label": "y"}

    def plot(folder: Path) -> list[Path]:
        lines = [Line("DDIM", (90.0, 40.0, 0.0), (0.0, 1e-3, 1e-1)), Line("BDIA", (90.0, 0.0), (0.0, 0.0))]
        plot_levels(folder / "levels.png", lines, title="by level", **names)
        points = [Point("do nothing", 0.3, 18.0), Point("KVInjection", 0.9, 17.0, highlighted=True)]
        plot_frontier(folder / "frontier.png", points, title="frontier", **names)
        limits = [Line("truth", (4, 12), (19.5, 25.1))]
        plot_limits(folder / "limits.png", limits, {"ceiling": 31.0}, title="limits", **names)
        return sorted(folder.glob("*.png"))

    first, second = plot(tmp_path / "a"), plot(tmp_path / "b")
    assert [path.name for path in first] == ["frontier.png", "levels.png", "limits.png"]
    for path, again in zip(first, second, strict=True):
        assert path.read_bytes() == again.read_bytes()
        with Image.open(path) as image:
            assert image.width > 900
            assert len(image.convert("RGB").getcolors(2**24)) > 10
