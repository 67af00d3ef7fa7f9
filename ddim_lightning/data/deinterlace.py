"""Interlaced frames are made whole: each holds two pictures, taken one after the other, in every second line."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from fractions import Fraction

from av.error import FFmpegError
from av.filter import Graph
from av.video.frame import VideoFrame

_DONE = "deinterlaced"


def deinterlace(frames: Iterable[VideoFrame]) -> Iterator[VideoFrame]:
    """Replace frames that are flagged as interlaced, by FFmpeg's filter ``bwdif``; their number and times stay.

    Frames before the first interlaced one pass untouched. From there on each frame is held until the next one is
    there, since the filter looks at both its neighbors.

    Args:
        frames: Decoded frames, in order of time.

    Yields:
        One frame for each.
    """
    last: VideoFrame | None = None
    bwdif: _Bwdif | None = None
    damage: FFmpegError | None = None
    try:
        for frame in frames:
            if bwdif is not None and not bwdif.takes(frame):  # the size changes in the middle of the stream
                yield from bwdif.push(None)
                last, bwdif = None, None
            if bwdif is None and frame.interlaced_frame:
                bwdif = _Bwdif(frame, last)
            last = frame
            if bwdif is None:
                yield frame
            else:
                yield from bwdif.push(frame)
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

    def __init__(self, first: VideoFrame, before: VideoFrame | None) -> None:
        self.shape = (first.width, first.height, first.format.name)
        self.graph = Graph()
        self.graph.threads = 1  # decoding runs in many workers
        time_base = first.time_base or Fraction(1, 1000)
        source = self.graph.add_buffer(width=first.width, height=first.height, format=first.format, time_base=time_base)
        filtered = self.graph.add("bwdif", "mode=send_frame:deint=interlaced")
        self.graph.link_nodes(source, filtered, self.graph.add("buffersink")).configure()
        self.pushed: deque[VideoFrame | None] = deque()
        if before is not None and self.takes(before):
            self.graph.vpush(before)
            self.pushed.append(None)  # looked at only

    def takes(self, frame: VideoFrame) -> bool:
        return self.shape == (frame.width, frame.height, frame.format.name)

    def push(self, frame: VideoFrame | None) -> Iterator[VideoFrame]:
        """Push a frame, or ``None`` after the last one, and yield what comes out."""
        if frame is not None:
            self.pushed.append(frame)
        self.graph.vpush(frame)
        while True:
            try:
                filtered = self.graph.vpull()
            except (BlockingIOError, EOFError):
                return
            original = self.pushed.popleft()
            if original is None:
                continue
            if not original.interlaced_frame:  # passed through; the filter's own copy has other times
                yield original
                continue
            filtered.pts, filtered.time_base = original.pts, original.time_base
            filtered.opaque = _DONE
            yield filtered
