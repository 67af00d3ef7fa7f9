"""Frames are read as the evaluations of benchmarks read them: pictures by PIL, which also brings them to a size."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ddim_lightning.data.benchmark import BenchmarkEdit
from ddim_lightning.data.frame_folder import open_folder
from ddim_lightning.data.video import read_frames, read_info
from ddim_lightning.metrics.pieces import Piece

_PIECE = 8
Size = tuple[int, int]
"""Width and height in pixels."""


def choose_indices(record: Mapping[str, Any], every: int = 1) -> list[int]:
    """Return where the frames of a result stand in its source.

    Args:
        record: As in ``result.json``.
        every: Distance between the frames of the result that are wanted.
    """
    frames = record["frames"]
    stride = Fraction(str(frames["stride"]))
    return [frames["start"] + math.floor(k * stride) for k in range(0, frames["count"], every)]


def read_pictures(path: Path, indices: Sequence[int], mode: str = "RGB") -> Iterator[np.ndarray]:
    """Read frames of a video, a folder of frames or an image (h, w, 3) uint8, or (h, w) with the mode ``L``.

    Args:
        path: The file or the folder.
        indices: Where the frames stand in it.
        mode: Of PIL.

    Raises:
        OSError: A picture that is not there or cannot be read.
        ValueError: A folder or a video that has fewer frames, or a video that is damaged.
    """
    if path.is_dir():
        files = open_folder(path).frames
        if len(files) <= max(indices):
            raise ValueError(f"{path} must have at least {max(indices) + 1} frames, got {len(files)}")
        for index in indices:
            with Image.open(files[index]) as picture:
                yield np.asarray(picture.convert(mode))
    else:
        for frame in read_frames(path, indices):
            yield np.asarray(Image.fromarray(frame.permute(1, 2, 0).numpy()).convert(mode))


def read_masks(path: Path, indices: Sequence[int], threshold: float, size: Size) -> Iterator[np.ndarray]:
    """Read masks (h, w) bool at a size, True where a pixel is lighter than the threshold; an image holds for all."""
    is_image = read_info(path).num_frames == 1
    for picture in read_pictures(path, [0] if is_image else indices, "L"):
        white = Image.fromarray(((picture > threshold) * 255).astype(np.uint8))
        mask = np.asarray(white.resize(size, Image.Resampling.NEAREST)) > 0
        yield from [mask] * (len(indices) if is_image else 1)


def resize(frame: np.ndarray, size: Size) -> np.ndarray:
    """Bring a frame to a size as ``PIL.Image.resize`` does where it is told nothing else: bicubic."""
    picture = Image.fromarray(frame)
    return np.asarray(picture if picture.size == size else picture.resize(size))


def read_pieces(edit: BenchmarkEdit, video: Path, record: Mapping[str, Any], every: int) -> Iterator[Piece]:
    """Read an edit beside its source and its mask, at the size of the source.

    Args:
        edit: Which edit.
        video: Its file.
        record: Of its clip.
        every: Distance between the frames that are read.
    """
    source, mask = edit.request.video, edit.request.mask
    indices = choose_indices(record, every)
    positions = range(0, record["frames"]["count"], every)
    for first in range(0, len(indices), _PIECE):
        chosen, places = indices[first : first + _PIECE], positions[first : first + _PIECE]
        wanted = list(read_pictures(source, chosen))
        size = (wanted[0].shape[1], wanted[0].shape[0])
        found = [resize(frame.permute(1, 2, 0).numpy(), size) for frame in read_frames(video, places)]
        white = None
        if mask is not None:
            white = torch.from_numpy(np.stack(list(read_masks(mask, chosen, edit.request.mask_threshold, size))))
        yield Piece(_stack(found), _stack(wanted), white)


def _stack(frames: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).contiguous()
