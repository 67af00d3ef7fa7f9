"""Transparent pixels are put on black, so that what lies hidden under them does not show."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from av.codec import CodecContext, codecs_available
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from torch import Tensor

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


def read_alpha(frame: VideoFrame) -> Tensor | None:
    """Read how opaque the pixels of a frame are.

    Args:
        frame: A decoded frame.

    Returns:
        (h, w) uint8, 255 being opaque; ``None`` where all of them are.
    """
    # The colors of a palette may be transparent.
    if frame.format.name != "pal8" and not any(component.is_alpha for component in frame.format.components):
        return None
    alpha = np.ascontiguousarray(frame.to_ndarray(format="rgba", threads=1)[..., 3])
    return None if alpha.min() == 255 else torch.from_numpy(alpha)


def put_on_black(pixels: Tensor, alpha: Tensor) -> Tensor:
    """Compose (c, h, w) uint8 pixels with black, by alpha (h, w) uint8."""
    return (pixels.float() * (alpha.float() / 255)).round().to(torch.uint8)
