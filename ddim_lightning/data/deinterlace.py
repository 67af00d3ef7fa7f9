"""Interlaced frames are made whole: each holds two pictures, taken one after the other, in every second line."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from fractions import Fraction

from av.error import FFmpegError
from av.filter import Graph
from av.video.frame import VideoFrame

_DONE = "deinterlaced"

Decoded = tuple[VideoFrame, str | None]
"""A frame, and what is wrong with it."""


def deinterlace(frames: Iterable[Decoded]) -> Iterator[Decoded]:
    """Replace frames that are flagged as interlaced, by FFmpeg's filter ``bwdif``; their number and times stay.

    Frames before the first interlaced one pass untouched. From there on each frame is held until the next one is
    there, since the filter looks at both its neighbors.

    Args:
        frames: Decoded frames, in order of time, each with its damage.

    Yields:
        One frame for each. One that was interlaced has the damage of those that the filter looked at.
    """
    last: Decoded | None = None
    bwdif: _Bwdif | None = None
    damage: FFmpegError | None = None
    try:
        for decoded in frames:
            frame, _ = decoded
            if bwdif is not None and not bwdif.takes(frame):  # the size changes in the middle of the stream
                yield from bwdif.push(None)
                last, bwdif = None, None
            if bwdif is None and frame.interlaced_frame:
                bwdif = _Bwdif(frame, last)
            last = decoded
            if bwdif is None:
                yield decoded
            else:
                yield from bwdif.push(decoded)
    except FFmpegError as error:
        damage = error  # what is held is whole
    if bwdif is not None:
        yield from bwdif.push(None)
    if damage is not None:
        raise damage


def was_interlaced(frame: VideoFrame) -> bool:
    """Say whether a frame that came out of `deinterlace` was interlaced before."""
    return frame.opaque == _DONE


class _Bwdif:
    """A `_Bwdif` is FFmpeg's filter for frames of one size and format; it is one frame behind."""

    def __init__(self, first: VideoFrame, before: Decoded | None) -> None:
        self.shape = (first.width, first.height, first.format.name)
        self.graph = Graph()
        self.graph.threads = 1  # decoding runs in many workers
        time_base = first.time_base or Fraction(1, 1000)
        source = self.graph.add_buffer(width=first.width, height=first.height, format=first.format, time_base=time_base)
        filtered = self.graph.add("bwdif", "mode=send_frame:deint=interlaced")
        self.graph.link_nodes(source, filtered, self.graph.add("buffersink")).configure()
        self.pushed: deque[Decoded | None] = deque()
        self.damage_before: str | None = None
        if before is not None and self.takes(before[0]):
            self.graph.vpush(before[0])
            self.pushed.append(None)  # looked at only
            self.damage_before = before[1]

    def takes(self, frame: VideoFrame) -> bool:
        return self.shape == (frame.width, frame.height, frame.format.name)

    def push(self, decoded: Decoded | None) -> Iterator[Decoded]:
        """Push a frame, or ``None`` after the last one, and yield what comes out."""
        if decoded is not None:
            self.pushed.append(decoded)
        self.graph.vpush(None if decoded is None else decoded[0])
        while True:
            try:
                filtered = self.graph.vpull()
            except (BlockingIOError, EOFError):
                return
            popped = self.pushed.popleft()
            if popped is None:
                continue
            original, damage = popped
            after = next((one[1] for one in self.pushed if one), None)
            seen, self.damage_before = damage or self.damage_before or after, damage
            if not original.interlaced_frame:  # passed through; the filter's own copy has other times
                yield original, damage
                continue
            filtered.pts, filtered.time_base = original.pts, original.time_base
            filtered.opaque = _DONE
            yield filtered, seen
