"""Frames are decoded one after another, each with what is known of its damage."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import av.logging
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from ddim_lightning.data.decoders import make_decoder

_LOST_DATA = "Failed to parse header of NALU"  # part of a frame is skipped; to FFmpeg a warning
_CORRUPT = "marked as corrupt"


@contextmanager
def logged_errors() -> Iterator[Callable[[], list[str]]]:
    """Collect the errors that FFmpeg logs in this thread: often the only sign that a frame was decoded wrongly.

    Yields:
        A function that returns the errors since its last call.
    """
    level, skips = av.logging.get_level(), av.logging.get_skip_repeated()
    av.logging.set_level(av.logging.WARNING)
    av.logging.set_skip_repeated(False)  # "repeated" may be the same error in another file
    try:
        with av.logging.Capture() as logs:

            def take() -> list[str]:
                errors = [text for level, _, text in logs if level <= av.logging.ERROR or text.startswith(_LOST_DATA)]
                logs.clear()
                return errors

            yield take
    finally:
        av.logging.set_skip_repeated(skips)
        av.logging.set_level(level)


@dataclass
class _Damage:
    """A `_Damage` follows what a damaged packet spoils: all that is decoded until the next keyframe.

    Args:
        is_timed: Whether packets and frames are told apart by their timestamps. If not, what is certain from the order
            alone counts as sound, and a few frames around a damage may be called damaged that are not.
    """

    is_timed: bool
    key: int | None = None
    before_key: str | None = None
    since_key: str | None = None
    spoiled: dict[int | None, str] = field(default_factory=dict)

    def add(self, packet: Packet[Any], reason: str | None) -> None:
        """Take note of a packet that was decoded, and of what was wrong with it."""
        if packet.is_keyframe:
            earlier = None if self.is_timed else self.before_key
            self.before_key, self.since_key, self.key = earlier or self.since_key, None, packet.pts
        # Frames shown before the keyframe that they follow refer to frames on both its sides.
        if self.is_timed and self.key is not None and packet.pts is not None and packet.pts < self.key:
            self.before_key = self.before_key or reason
            reason = self.before_key or self.since_key
        else:
            self.since_key = reason = self.since_key or reason
        if self.is_timed and reason:
            self.spoiled[packet.pts] = reason

    def get_reason(self, frame: VideoFrame) -> str | None:
        """Get what spoiled a frame; ``None`` where nothing did."""
        if self.is_timed:
            reason = self.spoiled.pop(frame.pts, None)
        else:
            reason = self.before_key or self.since_key
            if frame.key_frame:
                self.before_key = None
        return reason or (_CORRUPT if frame.is_corrupt else None)


def is_last(packet: Packet[Any]) -> bool:
    """Say whether a packet is the empty one by which PyAV ends a stream.

    What comes after it may be an `IndexError`: PyAV asks for streams that it found too late to know them.
    """
    return packet.size == 0 and packet.pts is None and packet.dts is None


def is_first_key(stream: VideoStream, packet: Packet[Any]) -> bool:
    """Say whether decoding can begin at a packet, none before it having done.

    Args:
        stream: The video.
        packet: One of its packets.

    Returns:
        Whether it is a keyframe, or one by the container's index: it may be too damaged to look like one, but stands
        for a frame nevertheless.
    """
    entries, time = stream.index_entries, packet.pts if packet.dts is None else packet.dts
    if packet.is_keyframe or not len(entries):
        return packet.is_keyframe
    return time is not None and entries[0].is_keyframe and entries[0].timestamp <= time


def decode_frames(
    container: InputContainer, stream: VideoStream, *, is_timed: bool
) -> Iterator[tuple[VideoFrame, str | None]]:
    """Decode from where the container stands, beginning at a keyframe.

    Args:
        container: The file.
        stream: Its video.
        is_timed: Whether all packets have timestamps.

    Yields:
        A frame in order of showing, and what is wrong with it or with a frame that it refers to; ``None`` if nothing.

    Raises:
        FFmpegError: If the container cannot be followed.
    """
    damage, decode = _Damage(is_timed), make_decoder(stream)
    packets = container.demux(stream)
    has_begun = False
    while True:
        frames: list[Any] = []
        with logged_errors() as take_errors:
            packet = next(packets, None)
            if packet is None or (is_last(packet) and not has_begun):
                return
            is_end = is_last(packet)
            if not has_begun and is_first_key(stream, packet):
                has_begun = True
                take_errors()
            if not has_begun or (packet.size == 0 and not is_end):  # an empty packet repeats a frame
                continue
            failures = [_CORRUPT] if packet.is_corrupt else []
            try:
                frames = decode(packet)
            except FFmpegError as error:
                failures.append(error.strerror or type(error).__name__)
            errors = take_errors() + failures
        if not is_end:
            damage.add(packet, errors[0].strip() if errors else None)
        for frame in frames:
            yield frame, damage.get_reason(frame)
        if is_end:
            return
