"""Frames are turned and mirrored as the file's display matrix says."""

from __future__ import annotations

import struct
from contextlib import suppress
from dataclasses import dataclass

from av.sidedata.sidedata import SideDataContainer
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


_TURNS = (Orientation(), Orientation(True, False, True), Orientation(False, True, True), Orientation(True, True, False))
"""None, one, two and three quarter turns counterclockwise."""


def read_orientation(frame: VideoFrame) -> Orientation:
    """Read how a frame is to be shown; angles between are rounded to the nearest quarter turn.

    Args:
        frame: A decoded frame.

    Source: FFmpeg, libavutil/display.h: a pixel at (x, y) is shown at (a x + c y, b x + d y).
    """
    # PyAV stops with an error at the first piece that is newer than it (EXIF is one) and does not give back any.
    side_data = SideDataContainer.__new__(SideDataContainer)
    with suppress(ValueError):
        side_data.__init__(frame)  # type: ignore[misc]
    try:
        matrix = side_data["DISPLAYMATRIX"]
    except KeyError:  # there is none, or it lies behind such a piece; then the angle is known and mirrors are not
        return _TURNS[round(frame.rotation / 90) % 4]
    a, b, _, c, d = struct.unpack_from("=5i", bytes(matrix))
    if abs(b) + abs(c) > abs(a) + abs(d):
        return Orientation(True, mirrored_x=c < 0, mirrored_y=b < 0)
    return Orientation(False, mirrored_x=a < 0, mirrored_y=d < 0)
