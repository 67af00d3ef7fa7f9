"""A first frame is a picture, edited elsewhere, that an image-to-video model propagates through a clip."""

from __future__ import annotations

import os
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

from jaxtyping import UInt8
from torch import Tensor

from ddim_lightning.data.frame_folder import read_image
from ddim_lightning.data.frames import Fit, FrameChoice
from ddim_lightning.data.picture import fit_pictures
from ddim_lightning.data.video import VideoInfo, read_info


def read_first_frame(
    path: str | os.PathLike[str], clip: VideoInfo, *, height: int, width: int, fit: Fit = "crop"
) -> tuple[UInt8[Tensor, "c h w"], tuple[str, ...]]:
    """Read the first frame of an edit, cut, framed or distorted as the frames of its clip are.

    It may have any size: that of the clip's file, or the model's own, at which it is left as it is. One that has the
    clip's size has its shape of pixels, too.

    Args:
        path: A picture.
        clip: The file of the clip.
        height: Of the clip as the model sees it, in pixels.
        width: Likewise.
        fit: How the clip's frames were brought to that size.

    Returns:
        (c, height, width) uint8, and sentences about what was lost of it.

    Raises:
        OSError: If there is no such file, or it may not be read; always the exact subclass.
        ValueError: If it cannot be read as a picture, or is a video.
    """
    try:
        info = read_info(path)
        if info.num_frames != 1:
            raise ValueError(f"{path} must be one picture, got {info.num_frames} frames")
        picture = read_image(Path(path))
    except ValueError as error:
        raise ValueError(f"first_frame: {error}") from None
    if picture.pixels.shape[1:] == (clip.height, clip.width):
        picture = replace(picture, pixel_aspect=clip.pixel_aspect)
    whole = FrameChoice(total=1, start=0, stride=Fraction(1), count=1, reason="")
    frames, choice = fit_pictures([picture], whole, (height, width), fit)
    return frames[0], tuple(f"first_frame: {sentence}" for sentence in choice.warnings)
