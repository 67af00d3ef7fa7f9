"""Masks are read from videos, images and folders of frames; they say where the edits may change a clip."""

from __future__ import annotations

import os

import torch
from jaxtyping import Bool
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from ddim_lightning.data.fitting import fit_frame
from ddim_lightning.data.frames import Fit, FrameChoice
from ddim_lightning.data.video import VideoInfo, read_frames, read_info

_HALF = 127.5


def read_mask(
    path: str | os.PathLike[str],
    clip: VideoInfo,
    choice: FrameChoice,
    *,
    height: int,
    width: int,
    fit: Fit = "crop",
    threshold: float = _HALF,
) -> Bool[Tensor, "f h w"]:
    """Read the mask of a clip, frame by frame and pixel by pixel as the clip itself was read.

    The mask covers the whole frame of the file, whatever its size and shape: it is brought to the file's size (nearest
    pixel), then cut, framed or distorted as the clip's frames are; a pixel that more than half of what it shows is
    white is editable. The bars of ``fit="pad"`` are not. An image holds for all frames.

    Args:
        path: A video, an image or a folder of frames, white where the edits may change the clip.
        clip: The file of the clip.
        choice: Which of its frames were taken.
        height: Of the clip as the model sees it, in pixels.
        width: Likewise.
        fit: How the clip's frames were brought to that size.
        threshold: Luma, 0 .. 255, above which a pixel is white; 0 where objects have a color each.

    Returns:
        (f, height, width), True where the edits may change the clip.

    Raises:
        OSError: If there is no such file, it is a folder, or it may not be read; always the exact subclass.
        ValueError: If it cannot be read, has another number of frames than the clip, or is black everywhere once it is
            cut to size.
    """
    try:
        info = read_info(path)
        if info.num_frames not in (1, clip.num_frames):
            rule = f"must be an image or have as many frames as {clip.path}, {clip.num_frames}"
            raise ValueError(f"{info.path} {rule}, got {info.num_frames}")
        indices = [0] if info.num_frames == 1 else choice.indices
        frames = read_frames(path, indices)
        mask = torch.stack([_fit(frame, clip, height, width, fit, threshold) for frame in frames])
        if not mask.any():
            raise ValueError(f"{path} must be white somewhere within {height} x {width} pixels, got black everywhere")
    except ValueError as error:
        raise ValueError(f"mask: {error}") from None
    return mask.expand(choice.count, -1, -1)


def _fit(frame: Tensor, clip: VideoInfo, height: int, width: int, fit: Fit, threshold: float) -> Tensor:
    """Bring one frame to (height, width) bool by the very arithmetic that the clip's frames went through."""
    white = (transforms.rgb_to_grayscale(frame.float()) > threshold).to(torch.uint8) * 255
    white = transforms.resize(white, [clip.height, clip.width], InterpolationMode.NEAREST_EXACT)
    return fit_frame(white, height, width, fit, pixel_aspect=clip.pixel_aspect)[0] > _HALF
