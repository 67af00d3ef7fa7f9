"""Which frames of a video are trained on, and at which size."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from ddim_lightning.data.buckets import Size
from ddim_lightning.data.frames import Fit, Stride
from ddim_lightning.data.video import read_clip
from ddim_lightning.limits import VideoLimits
from ddim_lightning.types import Frames


@dataclass(frozen=True)
class ClipFrames:
    """A `ClipFrames` is a clip that is decoded when it is asked for.

    Args:
        video: The file, or a folder of frames.
        size: Frames, height and width.
        start: Index of the first frame.
        stride: Distance between the frames.
        fit: What happens to frames of another shape.
    """

    video: Path
    size: Size
    start: int = 0
    stride: Stride = 1
    fit: Fit = "crop"

    def load(self, generator: torch.Generator | None = None) -> Frames:
        """Decode the clip, (f, c, h, w) uint8; nothing is drawn.

        Raises:
            OSError: If the file may not be read; always the exact subclass.
            ValueError: If it is damaged.
        """
        num_frames, height, width = self.size
        limits = VideoLimits(num_frames, height, width, multiple=1, temporal=1)  # they are checked already
        frames, _, _ = read_clip(
            self.video, limits=limits, start=self.start, num_frames=num_frames, stride=self.stride, fit=self.fit
        )
        return frames
