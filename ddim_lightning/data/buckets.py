"""Clips of different shapes train together: each goes to the bucket whose size keeps most of it."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from fractions import Fraction

from ddim_lightning.data.fitting import measure_crop
from ddim_lightning.data.frames import Stride, check_num_frames, make_size, tell_given
from ddim_lightning.data.video import VideoInfo
from ddim_lightning.limits import VideoLimits

Size = tuple[int, int, int]
"""Frames, height and width of a clip as it is trained on."""


def check_sizes(sizes: Sequence[Sequence[int]], limits: VideoLimits | None) -> list[Size]:
    """Check the sizes of buckets against a model.

    Args:
        sizes: Frames, height and width of each; none is the model's own size.
        limits: What the model takes; ``None`` where that is not known.

    Raises:
        ValueError: If one is not of three numbers that the model takes, or stands there twice; or there is none.
    """
    if limits is None:
        if not sizes:
            raise ValueError("buckets: must be given where the module has no `video_limits`, got none")
        limits = VideoLimits(sys.maxsize, 1, 1, multiple=1, temporal=1)
    checked = []
    for size in sizes or [(limits.num_frames, limits.height, limits.width)]:
        try:
            num_frames, height, width = size
            check_num_frames(num_frames, limits)
            checked.append((num_frames, *make_size(limits, height, width)))
        except (TypeError, ValueError) as error:
            raise ValueError(f"buckets: must be [num_frames, height, width] each, got {size!r}: {error}") from None
    if len(set(checked)) < len(checked):
        raise ValueError(f"buckets: must differ, got {checked}")
    return checked


def choose_size(infos: Sequence[VideoInfo], sizes: Sequence[Size], start: int = 0, stride: Stride = 1) -> Size:
    """Choose the size that fits clips best which are trained on together: a clip alone, or a source and its target.

    It keeps the largest share of the first clip's pixels, those of all its frames; of several the largest that
    magnifies nothing, else the smallest.

    Args:
        infos: What the clips hold, the source of a pair first.
        sizes: To choose from.
        start: Index of the first frame taken.
        stride: Distance between the frames taken.

    Raises:
        ValueError: If a clip has fewer frames than the shortest size.
    """
    rests = [max(0, info.num_frames - start) for info in infos]
    counts = [rest if stride == "spread" else math.ceil(rest / Fraction(repr(stride))) for rest in rests]
    possible = [size for size in sizes if size[0] <= min(counts)]
    if not possible:
        least = min(size[0] for size in sizes)
        raise ValueError(
            f"too few frames: {min(counts)} can be used{tell_given(start, stride)}, at least {least} are needed"
        )
    info = infos[0]
    pixels = float(info.height * info.width * info.pixel_aspect)

    def rate(size: Size) -> tuple[float, bool, int]:
        num_frames, height, width = size
        kept = (1 - measure_crop(info.height, info.width, height, width, info.pixel_aspect)) * num_frames / min(counts)
        magnifies = height * width > pixels
        return round(kept, 3), not magnifies, -height * width if magnifies else height * width

    return max(possible, key=rate)
