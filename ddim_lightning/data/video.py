"""Video files are read and written with PyAV."""

from __future__ import annotations

import errno
import os
import warnings
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from av.container import InputContainer
from av.error import FFmpegError
from av.video.frame import VideoFrame
from av.video.reformatter import Colorspace
from av.video.stream import VideoStream
from torch import Tensor

from ddim_lightning.data.decoding import decode_frames
from ddim_lightning.data.frames import Fit, FrameChoice, Stride, choose_frames, fit_frame, make_size
from ddim_lightning.data.mp4 import SCALER, check_frames, write_mp4
from ddim_lightning.data.opening import open_video, reading, video_stream
from ddim_lightning.data.timeline import Timeline, read_timeline
from ddim_lightning.types import Frames, VideoLimits

_UNSPECIFIED = 2  # as FFmpeg numbers matrices of colors
_HD_HEIGHT = 720


@dataclass(frozen=True)
class VideoInfo:
    """A `VideoInfo` says what a video file holds.

    Args:
        path: The file.
        num_frames: Frames that a player would show; where the rate varies, how many frames at ``fps`` it lasts.
        fps: Frames per second; where the rate varies, that at which frames are taken.
        height: In pixels, as shown: after the rotation in the metadata.
        width: In pixels, as shown.
        pixel_aspect: Width over height of a pixel as it is meant to be shown.
        duration_s: Length of the video in seconds.
        has_audio: Whether there is sound.
        notes: Sentences about what is unusual: a rate that varies, an end that is missing.
    """

    path: Path
    num_frames: int
    fps: Fraction
    height: int
    width: int
    pixel_aspect: Fraction
    duration_s: float
    has_audio: bool
    notes: tuple[str, ...] = ()


def read_info(path: str | os.PathLike[str]) -> VideoInfo:
    """Read what a video file holds, decoding its first frame only.

    Args:
        path: The file.

    Raises:
        OSError: If there is no such file, it is a folder, or it may not be read; always the exact subclass.
        ValueError: If it is empty, not a video, has no video stream, or is cut short.
    """
    path = Path(path)
    timeline = read_timeline(path)
    with reading(path) as container:
        stream = video_stream(path, container)
        frame = next(_decode(path, container, stream, timeline, [0]))
        height, width = _to_rgb(frame).shape[1:]
        pixel_aspect = _pixel_aspect(stream, frame)
        has_audio = bool(container.streams.audio)
    count, fps = timeline.num_frames, timeline.fps
    return VideoInfo(path, count, fps, height, width, pixel_aspect, float(count / fps), has_audio, timeline.notes)


def read_clip(
    path: str | os.PathLike[str],
    *,
    limits: VideoLimits,
    start: int = 0,
    num_frames: int | None = None,
    stride: Stride = 1,
    height: int | None = None,
    width: int | None = None,
    fit: Fit = "crop",
) -> tuple[Frames, Fraction, FrameChoice]:
    """Read the frames of a clip at a model's size.

    Only what is needed is decoded, from a keyframe shortly before the first frame on, and only the chosen frames are
    kept. Rotation and pixel aspect in the metadata are honored. A file that does not name its colors is taken to be
    BT.709 from 720 lines on and BT.601 below, which is what players do. Where the frame rate varies, frames are counted
    and taken at a constant rate (see `Timeline`).

    Args:
        path: The file.
        limits: What the model takes.
        start: Index of the first frame, >= 0.
        num_frames: How many, 4k + 1; ``None`` is the most that the clip and the model allow.
        stride: Distance between frames, >= 1, or ``spread``: evenly over the rest of the clip.
        height: In pixels; ``None`` is the model's own.
        width: In pixels; ``None`` is the model's own.
        fit: What happens to frames of another shape: ``crop``, ``pad`` or ``stretch``.

    Returns:
        The frames (f, c, h, w) uint8; their rate, that of the file over the stride; and which frames they are, when
        they begin, and what is unusual in the file.

    Raises:
        OSError: If there is no such file, it is a folder, or it may not be read; always the exact subclass.
        ValueError: If it is no readable video, is damaged, has too few frames, or an argument breaks its rule.
    """
    path = Path(path)
    height, width = make_size(limits, height, width)
    timeline = read_timeline(path)
    try:
        choice = choose_frames(timeline.num_frames, limits, start=start, num_frames=num_frames, stride=stride)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    choice = replace(choice, start_s=timeline.get_start_s(start), notes=timeline.notes)
    frames = torch.empty(choice.count, 3, height, width, dtype=torch.uint8)
    with reading(path) as container:
        stream = video_stream(path, container)
        for i, frame in enumerate(_decode(path, container, stream, timeline, choice.indices)):
            frames[i] = fit_frame(_to_rgb(frame), height, width, fit, pixel_aspect=_pixel_aspect(stream, frame))
    return frames, timeline.fps / choice.stride, choice


def read_frames(path: str | os.PathLike[str], indices: Sequence[int]) -> Iterator[Tensor]:
    """Read frames of a video or an image file as they are, one at a time.

    Args:
        path: The file; an image has one frame.
        indices: Where the frames stand in the file, ascending.

    Yields:
        (c, h, w) uint8, turned as the metadata say.

    Raises:
        OSError: If there is no such file, it is a folder, or it may not be read; always the exact subclass.
        ValueError: If it is neither a video nor an image that can be read, or is damaged.
    """
    path = Path(path)
    timeline = read_timeline(path)
    with reading(path) as container:
        for frame in _decode(path, container, video_stream(path, container), timeline, indices):
            yield _to_rgb(frame)


def write_video(
    path: str | os.PathLike[str],
    frames: Frames,
    fps: Fraction,
    *,
    audio_from: str | os.PathLike[str] | None = None,
    audio_start_s: float = 0.0,
    crf: int = 12,
) -> None:
    """Write an mp4 that every player plays: H.264, 4:2:0, BT.709, the index in front.

    The file appears under its name when it is whole; its folder is made. The same arguments give the same bytes. The
    sound of the time that the frames cover is copied as it is; where it is damaged or mp4 cannot carry it, a warning
    says so.

    Args:
        path: The file, whatever its suffix.
        frames: (f, c, h, w) uint8 RGB, on any device; h and w even.
        fps: Frames per second, > 0.
        audio_from: A file whose sound is copied; one without sound is no mistake.
        audio_start_s: Where in that file the frames begin, in seconds after its video begins, >= 0.
        crf: x264's quality, 0 (lossless but for the color conversion) .. 51.

    Raises:
        OSError: If the file cannot be written, or ``audio_from`` cannot be read; always the exact subclass.
        ValueError: If an argument breaks its rule.
    """
    path = Path(path)
    check_frames(frames, fps)
    with nullcontext() if audio_from is None else open_video(Path(audio_from)) as sound:
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            if path.parent.is_file():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                write_mp4(partial, frames, fps, crf, sound, Fraction(audio_start_s))
            except FFmpegError as error:
                if sound is None or isinstance(error, OSError):
                    raise
                warnings.warn(f"no sound was copied: that of {audio_from} is damaged: {error.strerror}", stacklevel=2)
                write_mp4(partial, frames, fps, crf)
            partial.replace(path)
        except OSError as error:
            raise OSError(error.errno, f"cannot write {path}: {error.strerror}") from error
        finally:
            with suppress(OSError):
                partial.unlink()


def _decode(
    path: Path, container: InputContainer, stream: VideoStream, timeline: Timeline, indices: Sequence[int]
) -> Iterator[VideoFrame]:
    """Yield the frames at ``indices``, which ascend; a damaged one is an error once all others are there."""
    wanted = Counter(timeline.get_mark(index) for index in indices)  # a frame that stays is wanted several times
    total, last, undamaged, reason = len(wanted), max(wanted), 0, "the file ends"
    for position, (frame, damage) in enumerate(_decode_from(container, stream, timeline, min(wanted))):
        mark = position if not timeline.keys or frame.pts is None else frame.pts
        undamaged += mark in wanted and damage is None
        reason = damage or reason
        for _ in range(wanted.pop(mark, 0)):
            yield frame
        if not wanted or mark >= last:
            break
    if undamaged < total:
        problem = f"{undamaged} of {total} frames could be decoded without error ({reason})"
        raise ValueError(f"{path} is damaged: {problem}")


def _decode_from(
    container: InputContainer, stream: VideoStream, timeline: Timeline, mark: int
) -> Iterator[tuple[VideoFrame, str | None]]:
    """Decode from the keyframe before a frame on, or from the beginning where that does not do."""
    keys = sorted(timeline.keys)
    before = bisect_right(keys, mark)
    if before and keys[before - 1] > timeline.marks[0]:
        # its dts, because containers index by either, and landing one keyframe early does no harm
        container.seek(timeline.keys[keys[before - 1]], stream=stream)
        frames = decode_frames(container, stream, is_timed=True)
        first = next(frames, None)
        if first and first[0].pts is not None and first[0].pts <= mark:
            yield first
            yield from frames
            return
        container.seek(timeline.keys[keys[0]], stream=stream)  # pictures may be refreshed bit by bit, and appear late
    yield from decode_frames(container, stream, is_timed=bool(timeline.keys))


def _quarter_turns(frame: VideoFrame) -> int:
    """How often the frame is to be turned counterclockwise by 90 degrees."""
    return round(frame.rotation / 90)


def _pixel_aspect(stream: VideoStream, frame: VideoFrame) -> Fraction:
    """Width over height of a pixel, after the turn in the metadata."""
    aspect = stream.sample_aspect_ratio or Fraction(1)
    return 1 / aspect if _quarter_turns(frame) % 2 else aspect


def _to_rgb(frame: VideoFrame) -> Tensor:
    """Convert to (c, h, w) uint8, turned as the metadata say."""
    colorspace = None
    if frame.colorspace == _UNSPECIFIED and not frame.format.is_rgb:
        colorspace = Colorspace.ITU709 if min(frame.height, frame.width) >= _HD_HEIGHT else Colorspace.ITU601
    pixels = frame.to_ndarray(format="rgb24", src_colorspace=colorspace, interpolation=SCALER, threads=1)
    return torch.from_numpy(np.asarray(pixels)).permute(2, 0, 1).rot90(_quarter_turns(frame), dims=(1, 2))
