"""Frames are brought to the model's size."""

from __future__ import annotations

from fractions import Fraction

from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from ddim_lightning.data.frames import Fit


def fit_frame(
    frame: Tensor, height: int, width: int, fit: Fit = "crop", *, pixel_aspect: Fraction = Fraction(1)
) -> Tensor:
    """Bring a frame to the model's size, by bicubic interpolation with antialiasing.

    Args:
        frame: (c, h, w) uint8.
        height: Of the result, in pixels.
        width: Of the result, in pixels.
        fit: ``crop`` keeps the aspect and cuts two sides, evenly; ``pad`` keeps the aspect and everything, and adds two
            black bars; ``stretch`` keeps everything and loses the aspect.
        pixel_aspect: Width over height of a pixel as it is meant to be shown; the result has square pixels.

    Returns:
        (c, height, width) uint8
    """
    h, w = frame.shape[-2:]
    if fit == "crop":
        crop_h, crop_w = _crop_size(h, w, height, width, pixel_aspect)
        top, left = (h - crop_h) // 2, (w - crop_w) // 2
        frame = frame[:, top : top + crop_h, left : left + crop_w]
    inner_h, inner_w = height, width
    if fit == "pad":
        shape = Fraction(w, h) * pixel_aspect
        inner_h, inner_w = max(1, min(height, round(width / shape))), max(1, min(width, round(height * shape)))
    frame = transforms.resize(frame, [inner_h, inner_w], InterpolationMode.BICUBIC, antialias=True)
    top, left = (height - inner_h) // 2, (width - inner_w) // 2
    padded: Tensor = transforms.pad(frame, [left, top, width - inner_w - left, height - inner_h - top])
    return padded


def measure_crop(h: int, w: int, height: int, width: int, pixel_aspect: Fraction = Fraction(1)) -> float:
    """Measure which share of a picture of h x w pixels ``fit="crop"`` cuts off, 0 .. 1; see `fit_frame`."""
    crop_h, crop_w = _crop_size(h, w, height, width, pixel_aspect)
    return 1 - crop_h * crop_w / (h * w)


def _crop_size(h: int, w: int, height: int, width: int, pixel_aspect: Fraction) -> tuple[int, int]:
    """Return the height and width that are kept of h x w, which have the shape of height x width."""
    shape = Fraction(width, height) / pixel_aspect
    return max(1, min(h, round(w / shape))), max(1, min(w, round(h * shape)))
