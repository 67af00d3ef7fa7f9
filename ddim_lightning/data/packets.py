"""A walk through the packets of a file finds the frames that are shown, without decoding them."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.video.stream import VideoStream

from ddim_lightning.data.decoding import is_first_key, is_last, logged_errors

_VP8_SHOWN = 0x10  # RFC 6386, section 9.1: a bit of the first byte
_GIF_TRAILER = b"\x3b"
_TS_PACKETS = (188, 192, 204)
_OGG_PAGE, _OGG_LAST = 1 << 16, 0x4  # RFC 3533, section 6: the largest page, and a bit of the byte after the version


@dataclass
class Packets:
    """A `Packets` is what is known of the video of a file before it is decoded.

    Times are in units of the stream's time base, in order of decoding.

    Args:
        base: The time base, in seconds.
        origin: When the stream begins according to its header.
        fps: Frames per second according to the header; ``None`` where it is silent.
        duration_s: When the file ends according to the header, in seconds; 0 where it is silent.
        has_pts: Whether the container says when frames are shown.
        pts: When each frame is shown; ``None`` where the container does not say.
        dts: When each is decoded; likewise.
        keys: ``pts`` to ``dts`` of keyframes.
        end: When the last frame is gone, as far as its packet says.
        end_s: When the file ends, with sound and all, in seconds.
        damages: How often a packet is marked as corrupt or the container could not be followed.
        missed_s: How long the packets before the first keyframe last, in seconds.
        has_leading: Whether a frame is to be shown before the first keyframe but decoded after it: its references may
            lie before both.
        runs_back: Whether a keyframe is to be shown before one that was decoded earlier.
        is_cut: Whether the file ends within a frame, or its format has an end mark that is not there.
    """

    base: Fraction
    origin: int
    fps: Fraction | None
    duration_s: Fraction
    has_pts: bool
    pts: list[int | None] = field(default_factory=list)
    dts: list[int | None] = field(default_factory=list)
    keys: dict[int, int] = field(default_factory=dict)
    end: int = 0
    end_s: Fraction = Fraction(0)
    damages: int = 0
    missed_s: Fraction = Fraction(0)
    has_leading: bool = False
    runs_back: bool = False
    is_cut: bool = False

    @property
    def is_timed(self) -> bool:
        """Whether every frame has a time, and the times run forwards."""
        return self.has_pts and not self.runs_back and bool(self.keys) and None not in self.pts


def read_packets(path: Path, container: InputContainer, stream: VideoStream) -> Packets:
    """Walk through a file.

    Packets that are never shown are left out: those hidden by the codec or cut off by an edit list, those before the
    first keyframe, and one that the end of the file cuts in two.

    Args:
        path: The file, for messages.
        container: The same file, just opened.
        stream: Its video.

    Returns:
        What was found.

    Raises:
        ValueError: If the container cannot be followed, or lists frames that are not there.
    """
    packets = Packets(
        base=stream.time_base or Fraction(1),
        origin=stream.start_time or 0,
        fps=stream.average_rate or stream.guessed_rate or stream.base_rate,
        duration_s=Fraction(container.duration or 0, av.time_base),
        has_pts=container.format.name != "avi",  # what FFmpeg makes up for it is wrong for B-frames
    )
    is_vp8 = stream.codec_context.name == "vp8"
    found, has_key, last = 0, False, None
    with logged_errors() as take_errors:
        try:
            for packet in container.demux():
                if is_last(packet):
                    break
                if packet.size == 0:  # the repetition of a frame
                    continue
                packets.end_s = max(packets.end_s, _get_end(packet) * Fraction(packet.time_base or 0))
                if packet.stream is not stream:
                    continue
                found += 1
                if not has_key and is_first_key(stream, packet):
                    has_key = True
                    _forget_frames(packets, packet)  # they have no reference
                    take_errors()
                packets.damages += len(take_errors()) + packet.is_corrupt
                _add(packets, packet, is_vp8=is_vp8)
                last = packet
        except FFmpegError as error:
            raise ValueError(f"{path} is damaged: {error.strerror} after {found} frames") from error
        errors = take_errors()
    if not has_key:
        raise ValueError(f"{path} has no keyframe: none of its frames can be decoded")
    is_torn = last is not None and last.is_corrupt
    found -= is_torn
    packets.damages -= is_torn
    has_end = _has_end(path, container.format.name)
    packets.is_cut = is_torn or not has_end or bool(errors)
    if last is not None and (is_torn or not has_end):
        _drop_last(packets, last)
    if found < len(stream.index_entries):
        raise ValueError(f"{path} is cut short: {found} of its {len(stream.index_entries)} frames are there")
    return packets


def _add(packets: Packets, packet: Packet[Any], *, is_vp8: bool) -> None:
    if packets.keys and packet.pts is not None and packet.pts < next(iter(packets.keys)):
        packets.has_leading = True
    if packet.is_keyframe and packet.pts is not None:
        packets.runs_back |= packet.pts <= next(reversed(packets.keys), packet.pts - 1)
        packets.keys[packet.pts] = packet.pts if packet.dts is None else min(packet.pts, packet.dts)
    if packet.is_discard or (is_vp8 and not bytes(packet)[0] & _VP8_SHOWN):  # others need it
        return
    packets.pts.append(packet.pts)
    packets.dts.append(packet.dts)
    packets.end = max(packets.end, _get_end(packet))


def _forget_frames(packets: Packets, key: Packet[Any]) -> None:
    times = [time for time in packets.pts if time is not None]
    if times and key.pts is not None:
        packets.missed_s = max(Fraction(0), (key.pts - min(times)) * packets.base)
    packets.pts, packets.dts, packets.end, packets.damages = [], [], 0, 0


def _drop_last(packets: Packets, last: Packet[Any]) -> None:
    if packets.pts and packets.pts[-1] == last.pts and packets.dts[-1] == last.dts:
        packets.pts.pop()
        packets.dts.pop()
        if last.pts is not None:
            packets.keys.pop(last.pts, None)


def _get_end(packet: Packet[Any]) -> int:
    time = packet.dts if packet.pts is None else packet.pts
    return 0 if time is None else time + (packet.duration or 0)


def _has_end(path: Path, format_name: str) -> bool:
    """Whether a file ends as its format wants it, where the format has anything to say about it."""
    size = path.stat().st_size
    if format_name == "mpegts":
        return any(size % length == 0 for length in _TS_PACKETS)
    if format_name == "gif":
        with path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read() == _GIF_TRAILER
    if format_name == "ogg":
        with path.open("rb") as file:
            file.seek(max(0, size - _OGG_PAGE))
            page = file.read().rpartition(b"OggS")[2]
            return len(page) > 1 and bool(page[1] & _OGG_LAST)
    return True
