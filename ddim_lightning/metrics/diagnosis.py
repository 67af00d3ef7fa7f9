"""A diagnosis says whether an inverted latent is Gaussian, whether it comes back, and in which colors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ddim_lightning.metrics.latents import measure_distance
from ddim_lightning.metrics.reading import read_numbers
from ddim_lightning.types import Latents

MAX_MEAN = 0.1
"""Largest mean of the inverted latent, either sign; chance reaches it in fewer than 1000 independent values only."""
MAX_STD_CHANGE = 0.2
"""Largest distance of its standard deviation from 1. Inverters that come back stay within it (0.87 .. 1.12 on the tiny
model); those that wash out do not (0.48 .. 0.57)."""
MAX_CORRELATION = 0.5
"""Largest correlation of its neighbors: they then share a quarter of their variance, the square, which no longer is
noise. No inverted latent is quite white: 0.1 .. 0.48 on the tiny model, where clean latents have 0.74 .. 0.95."""
MAX_LEVEL_ERROR = 0.02
"""Largest relative error on the way back: drawing from the VAE's posterior instead of taking its mode moves latents by
as much."""
MAX_COLOUR_CHANGE = 0.05
"""Largest change of saturation or brightness, of a range of 1. On the tiny model the VAE alone moves saturation by up
to 0.04 and brightness by 0.001, an inversion that washes out moves them by 0.09 .. 0.5."""

_LUMA = (0.2126, 0.7152, 0.0722)
"""Weights of red, green and blue in the luma of Rec. ITU-R BT.709, whose primaries are those of sRGB."""


def describe_noise(latents: Latents) -> dict[str, float]:
    """Return what tells latents from standard normal noise: their moments and how neighbors correlate.

    Args:
        latents: (b, f, c, h, w) latents of the noisiest level.

    Returns:
        ``mean`` and ``std`` over all entries, 0 and 1 for noise; ``correlation_f``, ``correlation_h`` and
        ``correlation_w``, the Pearson correlation of entries with their next neighbor along frames, height and width,
        0 for noise. A correlation is left out where it is not defined: an axis of length 1, or constant latents.
    """
    values = latents.double()
    measured = {"mean": values.mean(), "std": values.std(correction=0)}
    for name, axis in (("f", 1), ("h", 3), ("w", 4)):
        count = values.shape[axis] - 1
        first, second = values.narrow(axis, 0, count), values.narrow(axis, 1, count)
        if count == 0:
            continue
        first, second = first - first.mean(), second - second.mean()
        scale = first.square().mean().sqrt() * second.square().mean().sqrt()
        measured[f"correlation_{name}"] = torch.stack([(first * second).mean(), scale])
    noise = {}
    for name, (value, *scales) in zip(measured, read_numbers(list(measured.values())), strict=True):
        if all(scale > 0 for scale in scales):
            noise[name] = value / scales[0] if scales else value
    return noise


def describe_color(video: Float[Tensor, "f c h w"]) -> dict[str, float]:
    """Return how colorful and how bright a video is.

    Args:
        video: RGB frames in 0 .. 1.

    Returns:
        ``saturation``, the S of HSV, (max - min) / max of a pixel's channels and 0 for black; ``brightness``, the luma
        of Rec. 709. Each is a mean over pixels and frames, 0 .. 1.
    """
    means = measure_color(video)
    return {name: value for name, (value,) in zip(means, read_numbers(list(means.values())), strict=True)}


def measure_color(video: Float[Tensor, "f c h w"]) -> dict[str, Tensor]:
    """Return the same as doubles on the device, for which the host does not wait; see `describe_color`."""
    pixels = video.double()
    brightest, darkest = pixels.amax(1), pixels.amin(1)
    # The smallest normal number instead of 0: black pixels become 0 / tiny = 0.
    saturation = (brightest - darkest) / brightest.clamp_min(torch.finfo(torch.float32).tiny)
    red, green, blue = (weight * channel for weight, channel in zip(_LUMA, pixels.unbind(1), strict=True))
    return {"saturation": saturation.mean(), "brightness": (red + green + blue).mean()}


def level_errors(levels: Iterable[Latents], returned: Iterable[Latents]) -> list[float]:
    """Return by level how far the reconstruction is from the inversion, level 0 (noise) first.

    Latents are read level by level: nothing as large as the trajectory is made.

    Args:
        levels: The latents of the inversion, level by level; a stacked tensor will do.
        returned: The latents of the reconstruction, as many, in the same order.

    Returns:
        Per level the relative root mean squared error.

    Raises:
        ValueError: When the counts or the shapes differ.
    """
    errors = [measure_distance(back, level) for level, back in zip(levels, returned, strict=True)]
    return [error for (error,) in read_numbers(errors)]


def find_problems(
    noise: Mapping[str, float],
    errors: Sequence[float] | None = None,
    source: Mapping[str, float] | None = None,
    reconstruction: Mapping[str, float] | None = None,
) -> list[str]:
    """Say in plain sentences what is off, if anything is.

    Args:
        noise: `describe_noise` of the inverted latent.
        errors: `level_errors`, or ``None`` when nothing was reconstructed.
        source: `describe_color` of the source video, if there is a reconstruction to compare.
        reconstruction: `describe_color` of the reconstruction.

    Returns:
        One sentence per problem, none when all is well.
    """
    problems = _find_noise_problems(noise)
    if errors is not None:
        problems += _find_round_trip_problems(errors)
    if source is not None and reconstruction is not None:
        problems += _find_color_problems(source, reconstruction)
    return problems


def diagnose(
    noise: Mapping[str, float],
    errors: Sequence[float] | None = None,
    source: Mapping[str, float] | None = None,
    reconstruction: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Collect what is to be said about one inversion.

    Args:
        noise: `describe_noise` of the inverted latent.
        errors: `level_errors` of the reconstruction, ``None`` without one.
        source: `describe_color` of the source video.
        reconstruction: `describe_color` of the reconstruction.

    Returns:
        JSON-ready: ``noise`` and ``problems`` always; ``level_errors`` with ``errors``; ``color``, by ``source`` and
        ``reconstruction``, with both.
    """
    diagnosis: dict[str, Any] = {"noise": dict(noise)}
    if errors is not None:
        diagnosis["level_errors"] = list(errors)
    if source is not None and reconstruction is not None:
        diagnosis["color"] = {"source": dict(source), "reconstruction": dict(reconstruction)}
    diagnosis["problems"] = find_problems(noise, errors, source, reconstruction)
    return diagnosis


def _find_noise_problems(noise: Mapping[str, float]) -> list[str]:
    findings = []
    if abs(noise["mean"]) > MAX_MEAN:
        findings.append(f"its mean is {noise['mean']:.2f}, not 0")
    if abs(noise["std"] - 1) > MAX_STD_CHANGE:
        findings.append(f"its standard deviation is {noise['std']:.2f}, not 1")
    for axis, name in (("f", "frames"), ("h", "height"), ("w", "width")):
        correlation = noise.get(f"correlation_{axis}", 0.0)
        if abs(correlation) > MAX_CORRELATION:
            findings.append(f"its neighbors along {name} correlate by {correlation:.2f}, not 0")
    return [f"the inverted latent is not Gaussian: {'; '.join(findings)}"] if findings else []


def _find_round_trip_problems(errors: Sequence[float]) -> list[str]:
    worst = max(errors)
    if worst <= MAX_LEVEL_ERROR:
        return []
    jumps = [after - before for before, after in pairwise(errors)]
    level = max(range(len(jumps)), key=jumps.__getitem__)
    where = f"{jumps[level]:.1%}, is the step from level {level} to level {level + 1} of {len(jumps)}"
    apart = f"the reconstruction is up to {worst:.1%} off the inversion and ends {errors[-1]:.1%} off"
    return [f"{apart}: the largest jump, {where}"]


def _find_color_problems(source: Mapping[str, float], reconstruction: Mapping[str, float]) -> list[str]:
    return [
        f"the colors moved: {name} is {reconstruction[name]:.2f} in the reconstruction, {before:.2f} in the source"
        for name, before in source.items()
        if abs(reconstruction[name] - before) > MAX_COLOUR_CHANGE
    ]
