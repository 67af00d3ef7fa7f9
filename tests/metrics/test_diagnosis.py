"""The diagnosis against fields of known correlation, known colors and planted errors."""

from __future__ import annotations

import colorsys
import json
import re

import pytest
import torch

from ddim_lightning.metrics.diagnosis import describe_color, describe_noise, diagnose, find_problems, level_errors

NOISE = {"mean": 0.0, "std": 1.0, "correlation_f": 0.0, "correlation_h": 0.0, "correlation_w": 0.0}
COLOR = {"saturation": 0.5, "brightness": 0.4}


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def correlate(field, axis, rho):
    """Turn white noise into a stationary AR(1) field along an axis."""
    slices = list(field.unbind(axis))
    for k in range(1, len(slices)):
        slices[k] = rho * slices[k - 1] + (1 - rho**2) ** 0.5 * slices[k]
    return torch.stack(slices, dim=axis)


def test_noise_is_described_as_noise():
    noise = describe_noise(normal(2, 12, 3, 40, 50))
    for name, expected in NOISE.items():  # 144000 values: four standard errors are 0.01
        assert noise[name] == pytest.approx(expected, abs=0.011), name


def test_the_correlation_of_an_ar1_field_is_found_along_its_axis():
    field = normal(2, 12, 3, 40, 50)
    for axis, rho in ((1, 0.3), (3, 0.5), (4, -0.4)):
        field = correlate(field, axis, rho)
    noise = describe_noise(0.5 * field + 0.2)
    assert noise["correlation_f"] == pytest.approx(0.3, abs=0.03)
    assert noise["correlation_h"] == pytest.approx(0.5, abs=0.03)
    assert noise["correlation_w"] == pytest.approx(-0.4, abs=0.03)
    assert noise["mean"] == pytest.approx(0.2, abs=0.02)
    assert noise["std"] == pytest.approx(0.5, abs=0.01)


def test_a_checkerboard_along_one_axis_has_correlation_minus_one_there_and_one_elsewhere():
    signs = torch.tensor([1.0, -1.0] * 3).reshape(1, 1, 1, 6, 1).expand(1, 3, 2, 6, 5)
    noise = describe_noise(signs)
    assert noise["correlation_h"] == pytest.approx(-1.0, abs=1e-12)
    assert noise["correlation_f"] == noise["correlation_w"] == pytest.approx(1.0, abs=1e-12)
    assert (noise["mean"], noise["std"]) == (0.0, 1.0)


def test_correlations_that_are_not_defined_are_left_out():
    assert set(describe_noise(normal(1, 1, 2, 4, 5))) == {"mean", "std", "correlation_h", "correlation_w"}
    assert describe_noise(torch.full((1, 3, 2, 4, 5), 0.25)) == {"mean": 0.25, "std": 0.0}


def test_colors_are_those_of_colorsys_and_of_the_standard():
    video = torch.rand((2, 3, 4, 5), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    video[0, :, 1, 2] = 0.0  # black
    pixels = video.permute(0, 2, 3, 1).reshape(-1, 3).tolist()
    saturation = sum(colorsys.rgb_to_hsv(*pixel)[1] for pixel in pixels) / len(pixels)
    luma = sum(0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in pixels) / len(pixels)
    assert describe_color(video) == pytest.approx({"saturation": saturation, "brightness": luma}, abs=1e-12)


def test_level_errors_are_relative_and_in_order():
    levels = normal(4, 1, 2, 3, 5, 6)
    errors = [0.0, 0.01, 0.5, 0.25]
    returned = (level * (1 + error) for level, error in zip(levels, errors, strict=True))
    assert level_errors(levels, returned) == pytest.approx(errors, abs=1e-6)
    assert level_errors(list(levels), levels) == [0.0] * 4
    with pytest.raises(ValueError, match="shorter"):
        level_errors(levels, levels[:3])


def test_a_healthy_inversion_has_no_problems():
    assert find_problems(NOISE) == []
    assert find_problems(NOISE, [0.0, 0.001, 0.002], COLOR, COLOR) == []


@pytest.mark.parametrize(
    ("entry", "finding"),
    [
        ({"std": 0.48}, "standard deviation.* 0.48"),
        ({"std": 1.6}, "standard deviation.* 1.60"),
        ({"mean": -0.3}, "mean.* -0.30"),
        (
            {"correlation_f": 0.61},
            "along frames.* 0.61",
        ),
        (
            {"correlation_h": -0.6},
            "along height.* -0.60",
        ),
        (
            {"correlation_w": 0.7},
            "along width.* 0.70",
        ),
    ],
)
def test_noise_that_is_not_gaussian_is_told(entry, finding):
    (sentence,) = find_problems(NOISE | entry)
    assert re.search(f"inverted latent.*{finding}", sentence)


def test_several_findings_on_the_noise_are_one_sentence():
    (sentence,) = find_problems(NOISE | {"std": 0.57, "correlation_w": 0.55})
    assert re.search("standard deviation.* 0.57.*along width.* 0.55", sentence) and "mean" not in sentence


def test_the_largest_jump_of_the_error_is_told():
    (sentence,) = find_problems(NOISE, [0.0, 0.01, 0.21, 0.25, 0.1])
    assert re.search("25.0% .*10.0% .*20.0%.*level 1 to level 2 of 4", sentence)


@pytest.mark.parametrize(("name", "before", "after"), [("brightness", 0.4, 0.3), ("saturation", 0.5, 0.56)])
def test_colors_that_moved_are_told(name, before, after):
    (sentence,) = find_problems(NOISE, None, COLOR, COLOR | {name: after})
    assert re.search(f"{name}.* {after:.2f} in the reconstruction, {before:.2f} in the source", sentence)
    assert find_problems(NOISE, None, COLOR, COLOR | {name: before + 0.04}) == []


def test_a_diagnosis_collects_everything_and_is_json():
    levels = torch.stack([normal(1, 5, 4, 24, 26), *(normal(1, 5, 4, 24, 26, seed=k) for k in (1, 2))])
    returned = [levels[0], levels[1] * 1.5, levels[2] * 1.6]
    source = torch.full((3, 3, 8, 9), 0.5)
    source[:, 0] = 1.0
    noise, colors = describe_noise(levels[0]), (describe_color(source), describe_color(source * 0.5))
    diagnosis = diagnose(noise, level_errors(levels, returned), *colors)
    assert json.loads(json.dumps(diagnosis, allow_nan=False)) == diagnosis
    assert diagnosis["noise"] == describe_noise(levels[0])
    assert diagnosis["level_errors"] == pytest.approx([0.0, 0.5, 0.6], abs=1e-6)
    assert diagnosis["color"] == {"source": describe_color(source), "reconstruction": describe_color(source * 0.5)}
    assert len(diagnosis["problems"]) == 2
    assert "from level 0 to level 1 of 2" in diagnosis["problems"][0]
    assert re.search("brightness.* 0.30 .*0.61 ", diagnosis["problems"][1])


def test_a_diagnosis_without_a_reconstruction_tells_of_the_noise_alone():
    diagnosis = diagnose(describe_noise(0.5 * normal(1, 5, 4, 24, 26)), source=COLOR)
    assert set(diagnosis) == {"noise", "problems"}
    assert len(diagnosis["problems"]) == 1
    assert "standard deviation is 0.50" in diagnosis["problems"][0]
