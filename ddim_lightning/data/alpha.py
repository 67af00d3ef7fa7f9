"""Transparent pixels are put on black, so that what lies hidden under them does not show."""

from __future__ import annotations

import numpy as np
import torch
from av.video.frame import VideoFrame
from torch import Tensor


def read_alpha(frame: VideoFrame) -> Tensor | None:
    """Read how opaque the pixels of a frame are.

    Args:
        frame: A decoded frame.

    Returns:
        (h, w) uint8, 255 being opaque; ``None`` where all of them are.
    """
    # The colors of a palette may be transparent.
    if frame.format.name != "pal8" and not any(component.is_alpha for component in frame.format.components):
        return None
    alpha = np.ascontiguousarray(frame.to_ndarray(format="rgba", threads=1)[..., 3])
    return None if alpha.min() == 255 else torch.from_numpy(alpha)


def put_on_black(pixels: Tensor, alpha: Tensor) -> Tensor:
    """Compose (c, h, w) uint8 pixels with black, by alpha (h, w) uint8."""
    return (pixels.float() * (alpha.float() / 255)).round().to(torch.uint8)
