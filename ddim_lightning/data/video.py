"""Video files are read and written with PyAV."""

from __future__ import annotations

import errno
import os
import warnings
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import Colorspace
from av.video.stream import VideoStream
from torch import Tensor

from ddim_lightning.data.frames import Fit, FrameChoice, NumFrames, Stride, choose_frames, fit_frame, make_size
from ddim_lightning.data.mp4 import SCALER, check_frames, write_mp4
from ddim_lightning.types import Frames, VideoLimits

_UNSPECIFIED = 2  # as FFmpeg numbers matrices of colors
_HD_HEIGHT = 720


@dataclass(frozen=True)
class VideoInfo:
    """A `VideoInfo` says what a video file holds.

    Args:
        path: The file.
        num_frames: Frames that a player would show.
        fps: Frames per second; the mean where the rate varies.
        height: In pixels, as shown: after the rotation in the metadata.
        width: In pixels, as shown.
        pixel_aspect: Width over height of a pixel as it is meant to be shown.
        duration_s: Length of the video stream in seconds.
        has_audio: Whether there is sound.
    """

    path: Path
    num_frames: int
    fps: Fraction
    height: int
    width: int
    pixel_aspect: Fraction
    duration_s: float
    has_audio: bool


@dataclass(frozen=True)
class _Timeline:
    """When the frames of a file are shown, in units of the stream's time base; ``keys`` is pts to dts of keyframes.

    Some containers hold no such times: then ``pts`` are positions, and ``keys`` is empty.
    """

    pts: list[int]
    keys: dict[int, int]


def read_info(path: str | os.PathLike[str]) -> VideoInfo:
    """Read what a video file holds, decoding its first frame only.

    Args:
        path: The file.

    Raises:
        OSError: If there is no such file, it is a folder, or it may not be read; always the exact subclass.
        ValueError: If it is empty, not a video, has no video stream, or is cut short.
    """
    path = Path(path)
    timeline = _read_timeline(path)
    with _reading(path) as container:
        stream = _video_stream(path, container)
        frame = next(_decode(path, container, stream, timeline, [0]))
        height, width = _to_rgb(frame).shape[1:]
        pixel_aspect = _pixel_aspect(stream, frame)
        fps = _frame_rate(path, stream)
        num_frames = len(timeline.pts)
        has_audio = bool(container.streams.audio)
    return VideoInfo(path, num_frames, fps, height, width, pixel_aspect, float(num_frames / fps), has_audio)


def read_clip(
    path: str | os.PathLike[str],
    *,
    limits: VideoLimits,
    start: int = 0,
    num_frames: NumFrames | None = None,
    stride: Stride = 1,
    height: int | None = None,
    width: int | None = None,
    fit: Fit = "crop",
) -> tuple[Frames, Fraction, FrameChoice]:
    """Read the frames of a clip at a model's size.

    Only what is needed is decoded, from a keyframe shortly before the first frame on, and only the chosen frames are
    kept. Rotation and pixel aspect in the metadata are honored. A file that does not name its colors is taken to be
    BT.709 from 720 lines on and BT.601 below, which is what players do.

    Args:
        path: The file.
        limits: What the model takes.
        start: Index of the first frame, >= 0.
        num_frames: How many; see `choose_frames`.
        stride: Distance between frames, >= 1, or ``spread``: evenly over the rest of the clip.
        height: In pixels; ``None`` is the model's own.
        width: In pixels; ``None`` is the model's own.
        fit: What happens to frames of another shape: ``crop``, ``pad`` or ``stretch``.

    Returns:
        The frames (f, c, h, w) uint8; their rate, that of the file over the stride; and which frames they are.

    Raises:
        OSError: If there is no such file, it is a folder, or it may not be read; always the exact subclass.
        ValueError: If it is no readable video, is damaged, has too few frames, or an argument breaks its rule.
    """
    path = Path(path)
    height, width = make_size(limits, height, width)
    timeline = _read_timeline(path)
    try:
        choice = choose_frames(len(timeline.pts), limits, start=start, num_frames=num_frames, stride=stride)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    frames = torch.empty(choice.count, 3, height, width, dtype=torch.uint8)
    with _reading(path) as container:
        stream = _video_stream(path, container)
        for i, frame in enumerate(_decode(path, container, stream, timeline, choice.indices)):
            frames[i] = fit_frame(_to_rgb(frame), height, width, fit, pixel_aspect=_pixel_aspect(stream, frame))
        fps = _frame_rate(path, stream) / choice.stride
    return frames, fps, choice


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
    timeline = _read_timeline(path)
    with _reading(path) as container:
        for frame in _decode(path, container, _video_stream(path, container), timeline, indices):
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
        audio_start_s: Where in that file the frames begin, in seconds after its own first frame, >= 0.
        crf: x264's quality, 0 (lossless but for the color conversion) .. 51.

    Raises:
        OSError: If the file cannot be written, or ``audio_from`` cannot be read; always the exact subclass.
        ValueError: If an argument breaks its rule.
    """
    path = Path(path)
    check_frames(frames, fps)
    with nullcontext() if audio_from is None else _open(Path(audio_from)) as sound:
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


def _open(path: Path) -> InputContainer:
    with path.open("rb") as file:  # the plain errors of a missing file, a folder or missing rights
        if not file.read(1):
            raise ValueError(f"{path} is empty (0 bytes)")
    try:
        # `file:` because a name may look like an address to FFmpeg
        return av.open(f"file:{path}", metadata_errors="replace")
    except FFmpegError as error:
        raise ValueError(f"{path} is not a video that can be read: {error.strerror}") from error


@contextmanager
def _reading(path: Path) -> Iterator[InputContainer]:
    """Open a file, and say in one line what FFmpeg raises meanwhile: much of it is neither OSError nor ValueError."""
    with _open(path) as container:
        try:
            yield container
        except FFmpegError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror or type(error).__name__}") from error


def _video_stream(path: Path, container: InputContainer) -> VideoStream:
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:  # the cover of a song is no video
            stream.codec_context.thread_count = 1  # decoding runs in many workers, and beside the network
            return stream
    raise ValueError(f"{path} has no video stream")


def _frame_rate(path: Path, stream: VideoStream) -> Fraction:
    rate = stream.average_rate or stream.guessed_rate or stream.base_rate
    if not rate:
        raise ValueError(f"{path} does not say how many frames per second it has")
    return rate


def _read_timeline(path: Path) -> _Timeline:
    """Walk through the file without decoding: headers may be silent or wrong about the number of frames."""
    pts: list[int | None] = []
    keys: dict[int, int] = {}
    found = 0
    with _reading(path) as container:
        stream = _video_stream(path, container)
        try:
            for packet in container.demux(stream):
                if packet.is_corrupt or packet.size == 0:  # a frame cut in two, or the end
                    continue
                found += 1
                if packet.is_discard:  # needed to decode others, never shown
                    continue
                pts.append(packet.pts)
                if packet.is_keyframe and packet.pts is not None:
                    keys[packet.pts] = packet.pts if packet.dts is None else min(packet.pts, packet.dts)
        except FFmpegError as error:
            raise ValueError(f"{path} is damaged: {error.strerror} after {found} frames") from error
        if found < len(stream.index_entries):
            raise ValueError(f"{path} is cut short: {found} of its {len(stream.index_entries)} frames are there")
        is_timed = container.format.name != "avi"  # it keeps no times, and those FFmpeg makes up are wrong for B-frames
    times = {time for time in pts if time is not None}
    if is_timed and keys and len(times) == len(pts):
        return _Timeline(sorted(times), keys)
    return _Timeline(list(range(len(pts))), {})


def _decode(
    path: Path, container: InputContainer, stream: VideoStream, timeline: _Timeline, indices: Sequence[int]
) -> Iterator[VideoFrame]:
    """Yield the frames at ``indices``, which ascend."""
    wanted = {timeline.pts[i] for i in indices}
    keys = sorted(timeline.keys)
    before = bisect_right(keys, min(wanted))
    if before and keys[before - 1] > timeline.pts[0]:
        # its dts, because containers index by either, and landing one keyframe early does no harm
        container.seek(timeline.keys[keys[before - 1]], stream=stream)
    found = 0
    try:
        for position, frame in enumerate(container.decode(stream)):
            time = frame.pts if timeline.keys else position
            if time in wanted:
                found += 1
                yield frame
            if found == len(wanted):
                return
        reason = "the file ends"
    except FFmpegError as error:
        reason = error.strerror or type(error).__name__
    raise ValueError(f"{path} is damaged: {found} of {len(wanted)} frames could be decoded ({reason})")


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
