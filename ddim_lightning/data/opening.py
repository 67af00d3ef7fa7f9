"""Files are opened so that whatever is wrong with one is said in a plain sentence, at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Disposition
from av.video.stream import VideoStream

from ddim_lightning.data.decoding import logged_errors
from ddim_lightning.data.files import check_regular

MAX_PIXELS = 1 << 26
"""Largest frame that is decoded, 8192 x 8192: a damaged header may ask for more memory than there is."""
_LISTS = frozenset({"concat", "dash", "hds", "hls", "imf", "rtp", "rtsp", "sap", "sdp", "smoothstreaming", "vobsub"})
_FORMATS = ",".join(sorted(set(av.formats_available) - _LISTS))
_REFUSED = "Format not on whitelist"


def open_video(path: Path) -> InputContainer:
    """Open a file with FFmpeg.

    Args:
        path: The file, whatever its name looks like.

    Returns:
        The container; close it.

    Raises:
        OSError: If there is no such file, it is a folder, or it may not be read; always the exact subclass.
        ValueError: If it is empty, no regular file, a list of other files, or nothing that FFmpeg knows.
    """
    check_regular(path)
    with path.open("rb") as file:  # the plain errors of a missing file, a folder or missing rights
        if not file.read(1):
            raise ValueError(f"{path} is empty (0 bytes)")
    # A list of other files would be followed: into a pipe, or to what its writer may not see.
    options = {"max_pixels": str(MAX_PIXELS), "format_whitelist": _FORMATS}
    with logged_errors() as take_errors:
        try:
            # `file:` because a name may look like an address to FFmpeg
            return av.open(f"file:{path}", metadata_errors="replace", options=options)
        except FFmpegError as error:
            if any(text.startswith(_REFUSED) for text in take_errors()):
                raise ValueError(f"{path} must hold a video itself, got a list of other files") from error
            raise ValueError(f"{path} is not a video that can be read: {error.strerror}") from error


@contextmanager
def reading(path: Path) -> Iterator[InputContainer]:
    """Open a file, and say in one line what FFmpeg raises meanwhile: much of it is neither OSError nor ValueError.

    Args:
        path: The file.

    Yields:
        The container.

    Raises:
        OSError: As `open_video` does.
        ValueError: As `open_video` does, and whatever FFmpeg raises within.
    """
    with open_video(path) as container:
        try:
            yield container
        except FFmpegError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror or type(error).__name__}") from error


def find_video(container: InputContainer) -> VideoStream | None:
    """Find the video of a file: its first stream of moving pictures that is no cover.

    Args:
        container: The file.

    Returns:
        The stream; ``None`` where there is none.
    """
    streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    # An AVIF holds a still picture before its frames.
    return max(streams, key=lambda stream: stream.frames != 1, default=None)


def video_stream(path: Path, container: InputContainer) -> VideoStream:
    """Find the video of a file and make it ready to be decoded.

    Args:
        path: The file, for messages.
        container: The same file, opened.

    Returns:
        The stream; it is decoded in one thread.

    Raises:
        ValueError: If there is no video, its codec is unknown (or encrypted), or its frames are too large.
    """
    stream = find_video(container)
    if stream is None:
        raise ValueError(f"{path} has no video stream")
    context = stream.codec_context
    if context is None:  # as PyAV has it, whatever its annotation says
        raise ValueError(f"{path} has a video that FFmpeg cannot decode: it is encrypted, cut, or of an unknown codec")
    if context.width * context.height > MAX_PIXELS:
        size = f"{context.width} x {context.height}"
        raise ValueError(f"{path} must have frames of at most {MAX_PIXELS} pixels, got {size}")
    context.thread_count = 1  # decoding runs in many workers, and beside the network
    context.options = {"max_pixels": str(MAX_PIXELS), "err_detect": "crccheck+bitstream+buffer"}
    return stream
