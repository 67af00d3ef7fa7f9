"""A decoder is chosen for a stream: one that keeps all that the stream holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from av.codec import CodecContext, codecs_available
from av.packet import Packet
from av.video.stream import VideoStream

_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
"""Decoders that keep alpha, by codec; FFmpeg's own drop it."""


def make_decoder(stream: VideoStream) -> Callable[[Packet[Any]], list[Any]]:
    """Return what decodes the packets of a stream: a decoder that keeps alpha, where there is some.

    Args:
        stream: The stream.
    """
    name = _DECODERS.get(stream.codec_context.codec.canonical_name, "")
    if stream.metadata.get("alpha_mode") != "1" or name not in codecs_available:
        return lambda packet: packet.decode()
    decoder: Any = CodecContext.create(name, "r")  # of pictures, which PyAV's annotations do not know
    decoder.thread_count = 1
    decode: Callable[[Packet[Any]], list[Any]] = decoder.decode
    return decode
