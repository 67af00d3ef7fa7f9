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

from av.container import InputContainer
from av.error import FFmpegError
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from torch import Tensor

from ddim_lightning.data.decoding import decode_frames
from ddim_lightning.data.deinterlace import deinterlace
from ddim_lightning.data.frame_folder import FOLDER_FPS, open_folder
from ddim_lightning.data.frames import Fit, FrameChoice, NumFrames, Stride, choose_frames, make_size
from ddim_lightning.data.mp4 import check_frames, write_mp4
from ddim_lightning.data.opening import open_video, reading, video_stream
from ddim_lightning.data.picture import fit_pictures, to_picture
from ddim_lightning.data.timeline import Timeline, read_timeline
from ddim_lightning.limits import VideoLimits
from ddim_lightning.types import Frames


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


def read_info(path: str | os.PathLike[str], *, fps: float = FOLDER_FPS) -> VideoInfo:
    """Read what a video file or a folder of frames holds, decoding its first frame only.

    Args:
        path: The file or the folder.
        fps: Frames per second of a folder; a file has its own.

    Raises:
        OSError: If there is no such file, it is a folder without frames, or it may not be read; always the exact
            subclass.
        ValueError: If it is empty, not a video, has no video stream, or is cut short.
    """
    path = Path(path)
    if path.is_dir():
        folder = open_folder(path)
        picture = next(folder.read([0]))
        count, rate, has_audio, notes = len(folder.frames), Fraction(str(fps)), False, folder.notes
    else:
        timeline = read_timeline(path)
        with reading(path) as container:
            stream = video_stream(path, container)
            picture = to_picture(next(_decode(path, container, stream, timeline, [0])), stream)
            has_audio = bool(container.streams.audio)
        count, rate, notes = timeline.num_frames, timeline.fps, timeline.notes
    height, width = picture.pixels.shape[1:]
    return VideoInfo(path, count, rate, height, width, picture.pixel_aspect, float(count / rate), has_audio, notes)


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
    fps: float = FOLDER_FPS,
) -> tuple[Frames, Fraction, FrameChoice]:
    """Read the frames of a clip at a model's size.

    Only what is needed is decoded, from a keyframe shortly before the first frame on, and only the chosen frames are
    kept. The frames are what a player shows; what was made of them for that stands in the choice's ``notes``. Where the
    frame rate varies, frames are counted and taken at a constant rate (see `Timeline`).

    Args:
        path: The file, or a folder of numbered images.
        limits: What the model takes.
        start: Index of the first frame, >= 0.
        num_frames: How many; see `choose_frames`.
        stride: Distance between frames, >= 1, or ``spread``: evenly over the rest of the clip.
        height: In pixels; ``None`` is the model's own.
        width: In pixels; ``None`` is the model's own.
        fit: What happens to frames of another shape: ``crop``, ``pad`` or ``stretch``.
        fps: Frames per second of a folder; a file has its own.

    Returns:
        The frames (f, c, h, w) uint8; their rate, that of the file over the stride; and which frames they are, when
        they begin, and what is unusual in the file.

    Raises:
        OSError: If there is no such file, it is a folder without frames, or it may not be read; always the exact
            subclass.
        ValueError: If it is no readable video, is damaged, has too few frames, or an argument breaks its rule.
    """
    path = Path(path)
    size = make_size(limits, height, width)

    def choose(total: int) -> FrameChoice:
        try:
            return choose_frames(total, limits, start=start, num_frames=num_frames, stride=stride)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    if path.is_dir():
        folder = open_folder(path)
        choice = replace(choose(len(folder.frames)), notes=folder.notes)
        frames, choice = fit_pictures(folder.read(choice.indices), choice, size, fit)
        return frames, Fraction(str(fps)) / choice.stride, choice
    timeline = read_timeline(path)
    choice = replace(choose(timeline.num_frames), start_s=timeline.get_start_s(start), notes=timeline.notes)
    with reading(path) as container:
        stream = video_stream(path, container)
        decoded = _decode(path, container, stream, timeline, choice.indices)
        frames, choice = fit_pictures((to_picture(frame, stream) for frame in decoded), choice, size, fit)
        return frames, timeline.fps / choice.stride, choice


def read_frames(path: str | os.PathLike[str], indices: Sequence[int]) -> Iterator[Tensor]:
    """Read frames of a video, a folder of frames or an image file as they are, one at a time.

    Args:
        path: The file or the folder; an image has one frame.
        indices: Where the frames stand in the file, ascending.

    Yields:
        (c, h, w) uint8, turned and mirrored as the metadata say.

    Raises:
        OSError: If there is no such file, it is a folder without frames, or it may not be read; always the exact
            subclass.
        ValueError: If it is neither a video nor an image that can be read, is damaged, or has fewer frames.
    """
    path = Path(path)
    if path.is_dir():
        yield from (picture.pixels for picture in open_folder(path).read(indices))
        return
    timeline = read_timeline(path)
    if max(indices, default=0) >= timeline.num_frames:
        raise ValueError(f"{path} must have at least {max(indices) + 1} frames, got {timeline.num_frames}")
    with reading(path) as container:
        stream = video_stream(path, container)
        for frame in _decode(path, container, stream, timeline, indices):
            yield to_picture(frame, stream).pixels


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
    sound of the time that the frames cover is copied as it is, or encoded as AAC where it is something that not every
    player plays. A warning says so, and likewise where it is damaged or cannot be decoded.

    Args:
        path: The file, whatever its suffix.
        frames: (f, c, h, w) uint8 RGB, on any device; h and w even.
        fps: Frames per second, > 0.
        audio_from: A file whose sound is copied; one without sound is no mistake, nor is a folder of frames.
        audio_start_s: Where in that file the frames begin, in seconds after its video begins, >= 0.
        crf: x264's quality, 0 (lossless but for the color conversion) .. 51.

    Raises:
        OSError: If the file cannot be written, or ``audio_from`` cannot be read; always the exact subclass.
        ValueError: If an argument breaks its rule.
    """
    path = Path(path)
    check_frames(frames, fps)
    with nullcontext() if audio_from is None or Path(audio_from).is_dir() else open_video(Path(audio_from)) as sound:
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
    # From the frame before the first one on: a deinterlacer looks at it.
    begin = timeline.get_mark(max(0, indices[0] - 1))
    for position, (frame, damage) in enumerate(deinterlace(_decode_from(container, stream, timeline, begin))):
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
