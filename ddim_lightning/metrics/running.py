"""Measures of a video that arrives piece by piece are those of the whole: means over its frames."""

from __future__ import annotations

import math
from collections.abc import Mapping

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
    error = means[f"squared_error{suffix}"]
    return {
        f"psnr{suffix}": -10.0 * math.log10(error) if error else math.inf,
        f"ssim{suffix}": means[f"ssim{suffix}"],
    }
