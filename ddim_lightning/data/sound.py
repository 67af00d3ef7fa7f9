"""Sound is copied from one file to another without encoding it again."""

from __future__ import annotations

import warnings
from fractions import Fraction
from typing import Any

import av
from av.container import InputContainer, OutputContainer
from av.error import FFmpegError, InvalidDataError
from av.packet import Packet

from ddim_lightning.data.decoding import is_last
from ddim_lightning.data.opening import find_video

_AHEAD_S = 1  # sound may be stored before the pictures of its time


def copy_sound(
    source: InputContainer, output: OutputContainer, start_s: Fraction, duration_s: Fraction
) -> list[Packet[Any]]:
    """Copy the packets of sound that begin in a span, moved to the new file's beginning.

    A codec that the new file cannot carry is left out with a warning.

    Args:
        source: The file with the sound.
        output: The new file; gets a stream for it.
        start_s: Where the span begins, in seconds after the source's video begins.
        duration_s: Its length in seconds.

    Returns:
        The packets, in order; none where the source has no sound.

    Raises:
        InvalidDataError: When the sound cannot be read.
    """
    if not source.streams.audio:
        return []
    stream = source.streams.audio[0]
    codec = stream.codec_context.name if stream.codec_context else "unknown"
    if codec not in output.supported_codecs:
        warnings.warn(f"no sound was copied: mp4 cannot carry the codec {codec} of {source.name}", stacklevel=3)
        return []
    first = find_video(source) or stream
    begin = (first.start_time or 0) * (first.time_base or Fraction(0)) + start_s
    copy = output.add_stream_from_template(stream)
    packets = []
    try:
        if begin - _AHEAD_S > Fraction(source.start_time or 0, av.time_base):
            source.seek(int((begin - _AHEAD_S) * av.time_base))
        for packet in source.demux(stream):
            if is_last(packet):
                break
            if packet.pts is None or packet.pts * packet.time_base < begin:
                continue
            if packet.pts * packet.time_base >= begin + duration_s:
                break
            shift = int(begin / packet.time_base)
            packet.pts -= shift
            packet.dts = packet.pts
            packet.stream = copy
            packets.append(packet)
    except FFmpegError as error:  # some are OSErrors, which would read as if the new file could not be written
        raise InvalidDataError(error.errno or 0, error.strerror or type(error).__name__) from error
    return packets
