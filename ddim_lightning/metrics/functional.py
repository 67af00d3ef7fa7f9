"""Pure functions over frames say how close two videos are."""

from __future__ import annotations

from typing import cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

_SSIM_REACH = 5
"""Pixels on each side of the 11 x 11 Gaussian window of SSIM."""


def psnr(video: Float[Tensor, "f c h w"], reference: Float[Tensor, "f c h w"]) -> float:
    """Peak signal-to-noise ratio, pooled: one mean squared error over all pixels of all frames.

    Args:
        video: Frames in 0 .. 1.
        reference: Frames in 0 .. 1, of the same shape.

    Returns:
        Decibels; infinity for equal videos.

    Raises:
        ValueError: When the shapes differ.
    """
    check_pair(video, reference)
    return float(peak_signal_noise_ratio(video.double(), reference.double(), data_range=1.0))


def ssim(video: Float[Tensor, "f c h w"], reference: Float[Tensor, "f c h w"]) -> float:
    """Structural similarity with an 11 x 11 Gaussian window of sigma 1.5, reflected at the borders, mean over frames.

    Args:
        video: Frames in 0 .. 1, at least 6 pixels high and wide.
        reference: Frames in 0 .. 1, of the same shape.

    Returns:
        A value in -1 .. 1; 1 for equal videos.

    Raises:
        ValueError: When the shapes differ, or the frames are smaller than 6 pixels.

    Wang et al., "Image quality assessment: from error visibility to structural similarity", 2004, equation 13.
    """
    check_pair(video, reference)
    if min(video.shape[-2:]) <= _SSIM_REACH:
        raise ValueError(f"video: ssim needs at least 6 x 6 pixels, got {video.shape[-2]} x {video.shape[-1]}")
    # Frame by frame: torchmetrics convolves five copies of its input, which is gigabytes for 49 frames of 480 x 720.
    scores = [
        float(
            cast(Tensor, structural_similarity_index_measure(frame[None].float(), other[None].float(), data_range=1.0))
        )
        for frame, other in zip(video, reference, strict=True)
    ]
    return sum(scores) / len(scores)


def psnr_inside(
    video: Float[Tensor, "f c h w"], reference: Float[Tensor, "f c h w"], mask: Bool[Tensor, "f h w"]
) -> float:
    """Peak signal-to-noise ratio of the pixels inside a mask, pooled over all frames.

    Args:
        video: Frames in 0 .. 1.
        reference: Frames in 0 .. 1, of the same shape.
        mask: True inside; at least one pixel.

    Returns:
        Decibels; infinity where the videos are equal.

    Raises:
        TypeError: When the mask is not boolean.
        ValueError: When the shapes differ, or no pixel is inside.
    """
    _check_mask(video, mask)
    return _psnr_of(video, reference, mask)


def psnr_outside(
    video: Float[Tensor, "f c h w"], reference: Float[Tensor, "f c h w"], mask: Bool[Tensor, "f h w"]
) -> float:
    """Peak signal-to-noise ratio of the pixels outside a mask: `psnr_inside` of its complement."""
    _check_mask(video, mask)
    return _psnr_of(video, reference, ~mask)


def check_pair(video: Tensor, reference: Tensor) -> None:
    """Raise a ValueError unless a video and its reference have the same shape."""
    if video.shape != reference.shape:
        raise ValueError(
            f"reference: must have the shape of the video, got {tuple(reference.shape)} for {tuple(video.shape)}"
        )


def _check_mask(video: Tensor, mask: Tensor) -> None:
    if mask.dtype != torch.bool:
        raise TypeError(f"mask: must be boolean, got {mask.dtype}")
    f, _, h, w = video.shape
    if mask.shape != (f, h, w):
        raise ValueError(f"mask: must have the shape (f, h, w) = ({f}, {h}, {w}) of the video, got {tuple(mask.shape)}")


def _psnr_of(video: Tensor, reference: Tensor, pixels: Tensor) -> float:
    check_pair(video, reference)
    if not pixels.any():
        f, h, w = pixels.shape
        raise ValueError(f"mask: must leave at least one pixel to measure, got none of {f} x {h} x {w}")
    error = (video.double() - reference.double()).square().mean(1)[pixels].mean()
    return float(-10 * error.log10())
