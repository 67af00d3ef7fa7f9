"""Measures of a video that arrives piece by piece are those of the whole: means over its frames."""

from __future__ import annotations

import math
from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor

from ddim_lightning.metrics.functional import check_pair, ssim


class FrameMean:
    """A `FrameMean` is the mean over frames of named numbers that are known of pieces of a video."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._count = 0

    def add(self, means: Mapping[str, float], num_frames: int) -> None:
        """Take in the means over the frames of a piece."""
        for name, mean in means.items():
            self._sums[name] = self._sums.get(name, 0.0) + mean * num_frames
        self._count += num_frames

    def read(self) -> dict[str, float]:
        """Return the means over all frames so far."""
        return {name: total / self._count for name, total in self._sums.items()}


def compare(video: Float[Tensor, "f c h w"], reference: Float[Tensor, "f c h w"]) -> dict[str, float]:
    """Return what of two pieces a `FrameMean` needs for `psnr` and `ssim` of the whole.

    Args:
        video: Frames in 0 .. 1.
        reference: Frames in 0 .. 1, of the same shape.

    Raises:
        ValueError: When the shapes differ, or the frames are too small for `ssim`.
    """
    check_pair(video, reference)
    error = float((video.double() - reference.double()).square().mean())
    return {"squared_error": error, "ssim": ssim(video, reference)}


def read_comparison(comparison: FrameMean, suffix: str = "") -> dict[str, float]:
    """Return ``psnr`` in decibels, infinite for equal videos, and ``ssim``, with a suffix to their names."""
    means = comparison.read()
    error = means["squared_error"]
    return {f"psnr{suffix}": -10.0 * math.log10(error) if error else math.inf, f"ssim{suffix}": means["ssim"]}
