"""Frames are turned and mirrored as the file's display matrix says."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

from av.video.frame import VideoFrame
from torch import Tensor


@dataclass(frozen=True)
class Orientation:
    """An `Orientation` is one of the eight ways to lay down a picture: exchange its axes, then mirror it.

    Args:
        transposed: Rows become columns.
        mirrored_x: Left and right are exchanged, after that.
        mirrored_y: Top and bottom are exchanged, after that.
    """

    transposed: bool = False
    mirrored_x: bool = False
    mirrored_y: bool = False

    def apply(self, pixels: Tensor) -> Tensor:
        """Lay down a picture (c, h, w); the result is (c, w, h) where the axes are exchanged."""
        if self.transposed:
            pixels = pixels.transpose(1, 2)
        mirrored = [dim for dim, is_mirrored in ((2, self.mirrored_x), (1, self.mirrored_y)) if is_mirrored]
        return pixels.flip(mirrored) if mirrored else pixels


def read_orientation(frame: VideoFrame) -> Orientation:
    """Read how a frame is to be shown; angles between are rounded to the nearest quarter turn.

    Args:
        frame: A decoded frame.

    Source: FFmpeg, libavutil/display.h: a pixel at (x, y) is shown at (a x + c y, b x + d y).
    """
    side_data: Any = frame.side_data  # PyAV's annotations know one entry only
    matrix = side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return Orientation()
    a, b, _, c, d = struct.unpack_from("=5i", bytes(matrix))
    if abs(b) + abs(c) > abs(a) + abs(d):
        return Orientation(True, mirrored_x=c < 0, mirrored_y=b < 0)
    return Orientation(False, mirrored_x=a < 0, mirrored_y=d < 0)
