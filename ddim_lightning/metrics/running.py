"""Measures of a video that arrives piece by piece are those of the whole: means over its frames."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from ddim_lightning.metrics.functional import check_pair, score_frames
from ddim_lightning.metrics.reading import read_numbers


class FrameMean:
    """A `FrameMean` is the mean over frames of named numbers that are known of pieces of a video.

    They stay where they were measured until they are read, all of them at once: on a GPU the host waits once a video.
    """

    def __init__(self) -> None:
        self._pieces: list[tuple[dict[str, Tensor], int]] = []

    def add(self, values: Mapping[str, Tensor], num_frames: int) -> None:
        """Take in a piece: of each number one value for all its frames, or one for each frame, on one device."""
        self._pieces.append((dict(values), num_frames))

    def read(self) -> dict[str, float]:
        """Return the means over all frames so far."""
        sums: dict[str, float] = {}
        count = 0
        values = iter(read_numbers([value for piece, _ in self._pieces for value in piece.values()]))
        for piece, num_frames in self._pieces:
            for name in piece:
                known = next(values)
                sums[name] = sums.get(name, 0.0) + sum(known) / len(known) * num_frames
            count += num_frames
        return {name: total / count for name, total in sums.items()}


def compare(
    video: Float[Tensor, "f c h w"], reference: Float[Tensor, "f c h w"], suffix: str = ""
) -> dict[str, Tensor]:
    """Return what of two pieces a `FrameMean` needs for `psnr` and `ssim` of the whole.

    Args:
        video: Frames in 0 .. 1.
        reference: Frames in 0 .. 1, of the same shape.
        suffix: Of the names.

    Raises:
        ValueError: When the shapes differ, or the frames are too small for `ssim`.
    """
    check_pair(video, reference)
    error = (video.double() - reference.double()).square().mean()
    return {f"squared_error{suffix}": error, f"ssim{suffix}": score_frames(video, reference)}


def read_comparison(means: Mapping[str, float], suffix: str = "") -> dict[str, float]:
    """Return ``psnr`` in decibels, infinite for equal videos, and ``ssim``, with a suffix to their names."""
    return {
        f"psnr{suffix}": to_decibels(means[f"squared_error{suffix}"]),
        f"ssim{suffix}": means[f"ssim{suffix}"],
    }


def to_decibels(squared_error: float) -> float:
    """Return the PSNR of a mean squared error of values in 0 .. 1; infinity for none."""
    return -10.0 * math.log10(squared_error) if squared_error else math.inf


class WeightedMean:
    """A `WeightedMean` is the mean of named numbers, each by weights of its own: pixels of a region, or frames.

    They stay where they were measured until they are read, as those of a `FrameMean` do.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, name: str, values: Tensor, weights: Tensor) -> None:
        """Take in values and their weights, of one shape; a value of weight 0 may be anything."""
        values = torch.where(weights > 0, values.double() * weights.double(), 0.0)
        sums = torch.stack([values.sum(), weights.double().sum()])
        self._sums[name] = self._sums[name] + sums if name in self._sums else sums

    def read(self) -> dict[str, float]:
        """Return the means so far; what has no weight is left out."""
        known = dict(zip(self._sums, read_numbers(list(self._sums.values())), strict=True))
        return {name: total / weight for name, (total, weight) in known.items() if weight}
