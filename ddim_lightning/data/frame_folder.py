"""A folder of numbered images is a clip, or a mask."""

from __future__ import annotations

import errno
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ddim_lightning.data.decoding import decode_frames
from ddim_lightning.data.listing import may_be_media, name_some, split_number
from ddim_lightning.data.opening import reading, video_stream
from ddim_lightning.data.picture import Picture, to_picture

FOLDER_FPS = 8.0
"""Frames per second of a folder of frames that is given no other rate: that of CogVideoX."""


@dataclass(frozen=True)
class FrameFolder:
    """A `FrameFolder` is a folder of images whose names differ in a number only.

    Args:
        path: The folder.
        frames: Its images, ordered by their numbers.
        notes: Sentences about numbers that are missing and files that are no frames.
    """

    path: Path
    frames: list[Path]
    notes: tuple[str, ...]

    def read(self, indices: Sequence[int]) -> Iterator[Picture]:
        """Read frames one at a time.

        Args:
            indices: Positions among the frames, whatever their numbers.

        Raises:
            ValueError: If an image cannot be read, or has another size than the first one.
        """
        first: tuple[str, str] | None = None
        for index in indices:
            path = self.frames[index]
            picture = read_image(path)
            height, width = picture.pixels.shape[1:]
            size = f"{width} x {height}"
            first = first or (path.name, size)
            if size != first[1]:
                got = f"{first[0]} ({first[1]}) and {path.name} ({size})"
                raise ValueError(f"{self.path} must hold frames of one size, got {got}")
            yield picture


def open_folder(path: Path) -> FrameFolder:
    """List the frames of a folder, without reading them.

    Args:
        path: The folder.

    Raises:
        IsADirectoryError: If it holds no numbered images.
        ValueError: If the images are of several series, or two have the same number.
    """
    files = sorted(path.iterdir())
    parts = {file: split for file in files if (split := split_number(file)) is not None}
    if not parts:
        raise IsADirectoryError(errno.EISDIR, "A folder without numbered frames", str(path))
    series = Counter(f"{before}*{after}" for before, _, after in parts.values())
    if len(series) > 1:
        names = name_some(f"{name} ({count})" for name, count in series.items())
        raise ValueError(f"{path} must hold one series of numbered frames, got {names}")
    numbered = {number: file for file, (_, number, _) in parts.items()}
    if len(numbered) < len(parts):
        twice = name_some(file.name for file, (_, number, _) in parts.items() if numbered[number] != file)
        raise ValueError(f"{path} must hold each number once, got another file with that of {twice}")
    others = [file.name for file in files if file not in parts and may_be_media(file)]
    numbers = sorted(numbered)
    notes = [f"{path} lacks the frames {name_some(gaps)}"] if (gaps := _find_gaps(numbers)) else []
    notes += [f"{name_some(others)} in {path} were not read: they are no numbered frames"] if others else []
    return FrameFolder(path, [numbered[number] for number in numbers], tuple(notes))


def _find_gaps(numbers: Sequence[int]) -> list[str]:
    """Name the numbers that are missing, where the smallest distance between two is the rule."""
    pairs = list(itertools.pairwise(numbers))
    step = min((after - before for before, after in pairs), default=1)
    gaps = [(before + step, after - step) for before, after in pairs if after - before > step]
    return [str(first) if first >= last else f"{first}..{last}" for first, last in gaps]


def read_image(path: Path) -> Picture:
    """Read an image file.

    Args:
        path: The file; of a video the first frame is read.

    Raises:
        OSError: If there is no such file, or it may not be read; always the exact subclass.
        ValueError: If it cannot be read as an image, or is damaged.
    """
    try:
        with reading(path) as container:
            stream = video_stream(path, container)
            frame, damage = next(decode_frames(container, stream, is_timed=False))
            if damage:
                raise ValueError(f"{path} is damaged: {damage}")
            return to_picture(frame, stream)
    except StopIteration as error:
        raise ValueError(f"{path} is not an image that can be read") from error
