"""Every number of a record is found, named and rounded."""

from __future__ import annotations

import math

import pytest

from ddim_lightning.output.record import make_record
from ddim_lightning.report.numbers import describe_number, format_number, list_numbers, order_keys
from ddim_lightning.report.plot import make_plot
from ddim_lightning.report.settings import find_common, flatten, lay_side_by_side
from tests.clip_results import make_result


def test_numbers_are_those_of_the_record():
    record = make_record(
        make_result(seconds={"invert": 1.5, "decode": 2.25}, peak_gib={"edit": 3.0, "decode": 2.0}), {}
    )
    record["diagnosis"] = {"level_errors": [0.0, 0.3, 0.1], "noise": {"std": 0.9}, "problems": ["one"]}
    numbers = list_numbers(record)
    for key in [
        key for key in numbers if key.split(".")[-1] != "total" and key not in ("fps", "diagnosis.level_errors")
    ]:
        value = record
        for name in key.split("."):
            value = value[int(name)] if isinstance(value, list) else value[name]
        assert numbers[key] == (math.inf if value is None else value), key
    assert numbers["metrics.vae.psnr"] == math.inf
    assert numbers["metrics.edits.1.psnr_vs_source"] == 21.0
    assert (numbers["seconds.total"], numbers["nfe.total"], numbers["peak_gib.total"]) == (3.75, 350, 3.0)
    assert numbers["diagnosis.level_errors"] == 0.3
    assert numbers["fps"] == pytest.approx(30000 / 1001)


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"metrics": 3, "diagnosis": [], "nfe": {"edit": "x"}, "seconds": None},
        {"metrics": {"vae": {"psnr": math.nan, "ssim": -math.inf}}, "diagnosis": {"level_errors": [0.0, math.inf]}},
    ],
)
def test_what_is_no_number_is_left_out(record):
    assert list_numbers(record) == {}


@pytest.mark.parametrize(
    ("number", "key", "shown"),
    [
        (31.256, "metrics.reconstruction.psnr", "31.26"),
        (math.inf, "metrics.edits.0.psnr_vs_source", "equal"),
        (0.98765, "metrics.edits.0.ssim_vs_source", "0.9877"),
        (12345, "nfe.total", "12,345"),
        (1234.5, "seconds.total", "1,234.50"),
        (None, "peak_gib.edit", "-"),
        (0.000123456, "diagnosis.level_errors", "0.0001235"),
        (1e300, "metrics.reconstruction.psnr", "1e+300"),
    ],
)
def test_numbers_are_rounded(number, key, shown):
    assert format_number(number, key) == shown


def test_keys_are_ordered_and_named_apart():
    keys = list(list_numbers(make_record(make_result(), {})))
    ordered = order_keys(keys[::-1])
    assert set(ordered) == set(keys)
    parts = [key.rpartition(".")[0] for key in ordered if key.startswith("metrics.")]
    assert list(dict.fromkeys(parts)) == [f"metrics.{part}" for part in ("vae", "reconstruction", "edits.0", "edits.1")]
    assert len({describe_number(key).group + describe_number(key).name for key in keys}) == len(keys)


def test_a_plot_ends_at_its_largest_error():
    plot = make_plot({"": [0.0, 0.02, 0.01]})
    points = [tuple(map(float, point.split(","))) for point in plot.curves[""].split()]
    top, bottom = min(height for height, _ in plot.lines), max(height for height, _ in plot.lines)
    assert points == [(plot.left, bottom), ((plot.left + plot.right) / 2, top), (plot.right, (top + bottom) / 2)]
    assert [label for _, label in plot.lines] == ["0%", "1%", "2%"]
    assert make_plot({"A": [], "B": [0.1]}) is None
    assert make_plot({"": [0.0, 0.0]}).curves[""].count(str(bottom)) == 2


def test_settings_are_told_once_and_side_by_side():
    first = flatten({"model": "tiny", "inverter": {"class_path": "a.b.DDIM", "init_args": {"steps": 3}}, "lora": []})
    assert first == {"model": "tiny", "inverter": "DDIM", "inverter.steps": "3", "lora": "none"}
    second = {**first, "inverter.steps": "4"}
    assert find_common([first, second]) == {"model": "tiny", "inverter": "DDIM", "lora": "none"}
    assert lay_side_by_side([first, second])[0] == ("inverter.steps", ["3", "4"], True)
    assert find_common([]) == {}
    assert flatten({"editor": {"class_path": "mine.Plain", "init_args": {}}}) == {"editor": "Plain"}
