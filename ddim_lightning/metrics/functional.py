"""Pure functions over frames say how close two videos are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from jaxtyping import Float
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
    scores: list[float] = score_frames(video, reference).tolist()
    return sum(scores) / len(scores)


def score_frames(video: Float[Tensor, "f c h w"], reference: Float[Tensor, "f c h w"]) -> Float[Tensor, " f"]:
    """Structural similarity of every frame, on the device, for which the host does not wait; see `ssim`."""
    _check_ssim(video, reference)
    # Frame by frame: torchmetrics convolves five copies of its input, which is gigabytes for 49 frames of 480 x 720.
    scores = [
        cast(Tensor, structural_similarity_index_measure(frame[None].float(), other[None].float(), data_range=1.0))
        for frame, other in zip(video, reference, strict=True)
    ]
    return torch.stack(scores)


def make_ssim_map(frame: Float[Tensor, "c h w"], reference: Float[Tensor, "c h w"]) -> Float[Tensor, "h w"]:
    """Structural similarity at every pixel of a frame, mean over channels; their mean is that of `ssim`."""
    _check_ssim(frame, reference)
    images = frame[None].float(), reference[None].float()
    found = structural_similarity_index_measure(*images, data_range=1.0, return_full_image=True)
    return cast(tuple[Tensor, Tensor], found)[1][0].mean(0)


@contextmanager
def use_full_precision(device: torch.device) -> Iterator[None]:
    """Measure in float32 where a Trainer's precision, meant for the networks, holds for all that is computed.

    Args:
        device: Where the measures are computed.
    """
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_default_dtype(default)


def _check_ssim(video: Tensor, reference: Tensor) -> None:
    check_pair(video, reference)
    if min(video.shape[-2:]) <= _SSIM_REACH:
        raise ValueError(f"video: ssim needs at least 6 x 6 pixels, got {video.shape[-2]} x {video.shape[-1]}")


def check_pair(video: Tensor, reference: Tensor) -> None:
    """Raise a ValueError unless a video and its reference have the same shape."""
    if video.shape != reference.shape:
        raise ValueError(
            f"reference: must have the shape of the video, got {tuple(reference.shape)} for {tuple(video.shape)}"
        )
