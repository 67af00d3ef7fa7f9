"""Frames are encoded as H.264 in mp4 so that every player plays them."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import torch
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Interpolation
from torch import Tensor

from ddim_lightning.data.sound import copy_sound

# As swscale's header numbers them; its default is biased by a gray level and costs a round trip 5 dB.
SCALER = int(Interpolation.BICUBIC) | 0x2000 | 0x4000 | 0x40000 | 0x80000
"""Bicubic with full chroma interpolation, full chroma input, accurate rounding and bit-exact output."""
# FFmpeg's number for the matrix, the primaries and the transfer function alike.
_BT709 = 1


def check_frames(frames: Tensor, fps: Fraction) -> None:
    """Raise a ValueError unless frames and their rate can be written: (f, 3, h, w) uint8, even sizes, rate > 0."""
    if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[1] != 3 or not len(frames):
        raise ValueError(f"frames must be (f, 3, h, w) uint8 with f >= 1, got {tuple(frames.shape)} {frames.dtype}")
    height, width = frames.shape[2:]
    if height % 2 or width % 2:
        raise ValueError(f"frames must have an even height and width (4:2:0), got {height} x {width}")
    if fps <= 0:
        raise ValueError(f"fps must be > 0, got {fps}")


def write_mp4(
    path: Path,
    frames: Tensor,
    fps: Fraction,
    crf: int,
    sound: InputContainer | None = None,
    sound_start_s: Fraction = Fraction(0),
) -> None:
    """Write frames, the index in front.

    Args:
        path: The file.
        frames: (f, 3, h, w) uint8, h and w even.
        fps: Frames per second, > 0.
        crf: x264's quality, 0 .. 51.
        sound: A file whose sound is copied.
        sound_start_s: Where in it the frames begin, in seconds after its video begins.
    """
    options = {"movflags": "faststart", "fflags": "+bitexact"}
    with av.open(f"file:{path}", "w", format="mp4", options=options) as output:
        packets = _encode(output, frames, fps, crf)
        if sound is not None:
            packets += copy_sound(sound, output, sound_start_s, len(frames) / fps)
        for packet in sorted(packets, key=lambda packet: (packet.dts or 0) * packet.time_base):
            output.mux(packet)


def _encode(output: OutputContainer, frames: Tensor, fps: Fraction, crf: int) -> list[Packet[Any]]:
    rate = fps.limit_denominator(1 << 16)  # FFmpeg's fractions are of 32 bits
    # With the macroblock tree of x264's assembly, equal frames gave other bytes depending on what memory held before.
    stream = output.add_stream("libx264", rate=rate, options={"crf": str(crf), "x264-params": "mbtree=0"})
    stream.height, stream.width = frames.shape[2:]
    stream.pix_fmt = "yuv420p"
    context = stream.codec_context
    context.time_base = 1 / rate
    context.thread_count = 1  # otherwise the bytes depend on the machine
    context.color_range = ColorRange.MPEG
    context.colorspace = context.color_primaries = context.color_trc = _BT709
    packets: list[Packet[Any]] = []
    for i, pixels in enumerate(frames):
        array = pixels.permute(1, 2, 0).contiguous().cpu().numpy()
        frame = VideoFrame.from_ndarray(array, format="rgb24").reformat(
            format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG", interpolation=SCALER, threads=1
        )
        frame.pts, frame.time_base = i, 1 / rate
        packets += stream.encode(frame)
    return packets + stream.encode()
