"""Small files whose frames stand at given times."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import av
import numpy as np

SAMPLE_RATE = 48000


def make_gray(i):
    """Make frame number ``i`` of 64 x 96, whose gray level is four times its number."""
    return np.full((64, 96, 3), 4 * i, np.uint8)


def make_square(i):
    """Make frame number ``i`` of 64 x 96, in which a bright square moves over noise."""
    image = np.random.default_rng(0).integers(0, 100, (64, 96, 3), np.uint8)
    image[20:40, i : i + 20] = 230
    return image


def write_timed(
    path, times, *, codec="libx264", make=make_gray, fps=25, tick=Fraction(1, 1000), options=None, container=None
):
    """Write frames of 64 x 96 at ``times`` in seconds, with a keyframe every 12."""
    with av.open(f"file:{path}", "w", options=container or {}) as output:
        _encode_frames(output, times, codec, make, fps, tick, options)
    return path


def _encode_frames(output, times, codec, make, fps, tick, options=None, audio=None):
    stream = output.add_stream(codec, rate=fps, options=options or {})
    stream.width, stream.height, stream.pix_fmt = 96, 64, "rgb8" if codec == "gif" else "yuv420p"
    stream.codec_context.time_base = tick
    stream.codec_context.gop_size = 12
    stream.codec_context.thread_count = 1
    sound = None if audio is None else output.add_stream(audio, rate=SAMPLE_RATE, layout="mono")
    for i, time in enumerate(times):
        frame = av.VideoFrame.from_ndarray(make(i), format="rgb24")
        frame.pts, frame.time_base = round(time / tick), tick
        output.mux(stream.encode(frame))
    output.mux(stream.encode())
    return sound


def write_flash_and_beep(path, times, events, *, codec, audio, tick=Fraction(1, 1000), fps=25):
    """Write a video that is bright, and a sound that is loud, for 0.2 s from each of ``events`` on."""

    def make(i):
        is_bright = any(event <= times[i] < event + Fraction(1, 5) for event in events)
        return np.full((64, 96, 3), 235 if is_bright else 20, np.uint8)

    with av.open(str(path), "w") as output:
        stream = _encode_frames(output, times, codec, make, fps, tick, audio=audio)
        samples = np.zeros(int(times[-1] * SAMPLE_RATE) + SAMPLE_RATE // 5, np.float32)
        for event in events:
            begin, length = int(event * SAMPLE_RATE), SAMPLE_RATE // 5
            samples[begin : begin + length] = 0.8 * np.sin(0.3 * np.arange(length))
        for begin in range(0, len(samples) - 960, 960):
            frame = av.AudioFrame.from_ndarray(samples[None, begin : begin + 960], format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = SAMPLE_RATE, begin, Fraction(1, SAMPLE_RATE)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return path


def find_flashes_and_beeps(path):
    """Find when the picture becomes bright and the sound loud, in seconds after the video begins."""
    with av.open(str(path)) as container:
        shown = [(frame.time, frame.to_ndarray(format="gray").mean() > 128) for frame in container.decode(video=0)]
    flashes = [time for (_, before), (time, now) in pairwise(shown) if now and not before]
    loud = []
    with av.open(str(path)) as container:
        for frame in container.decode(audio=0):
            signal = np.abs(frame.to_ndarray()).max(axis=0)
            loud += [frame.time + i / frame.sample_rate for i in np.flatnonzero(signal > 0.3)]
    beeps = [time for before, time in pairwise([-1, *loud]) if time - before > 0.5]
    return [time - shown[0][0] for time in flashes], [time - shown[0][0] for time in beeps]
