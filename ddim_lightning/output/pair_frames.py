"""The frames of two videos and of their mask are read together, a few at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import rgb_to_grayscale

from ddim_lightning.data.fitting import fit_frame
from ddim_lightning.data.frames import Fit
from ddim_lightning.data.video import VideoInfo, read_frames, read_info
from ddim_lightning.metrics.pieces import Piece

_PIECE = 8  # frames; enough for the batches of CLIP
_HALF = 127.5


@dataclass(frozen=True)
class FrameRule:
    """A `FrameRule` says which frames of two videos are compared.

    Args:
        num_frames: How many, from the first on; ``None`` is all, of which both must have the same number.
        stride: Every how many.
        fit: How frames of the reference are brought to the size of the video; ``None`` refuses another size.
    """

    num_frames: int | None = None
    stride: int = 1
    fit: Fit | None = None


def read_pieces(
    reference: Path,
    video: Path,
    mask: Path | None = None,
    rule: FrameRule = FrameRule(),
) -> Iterator[Piece]:
    """Read a video, its reference and its mask.

    Args:
        reference: A video file or a folder of frames.
        video: Likewise.
        mask: Likewise, or an image for all frames; white (luma above half) where the video was to change. It has the
            size of the video, or that of the reference, with which it is then brought to the video's.
        rule: Which frames are taken.

    Yields:
        Frames in order, uint8 on the host.

    Raises:
        OSError: What is not there, or may not be read.
        ValueError: What cannot be read as a video; or sizes or numbers of frames that differ.
    """
    infos = [read_info(path) for path in (reference, video)]
    indices = _choose(infos, rule)
    if rule.fit is None:
        _check_same([f"{info.width} x {info.height} pixels" for info in infos], infos, "fit brings them to one size")
    others = read_frames(reference, indices)
    counts = {info.num_frames for info in infos}
    masks = _read_masks(mask, counts, indices) if mask is not None else iter([None] * len(indices))
    frames = (_fit(*one, rule.fit) for one in zip(read_frames(video, indices), others, masks, strict=True))
    while taken := list(islice(frames, _PIECE)):
        found, wanted, white = zip(*taken, strict=True)
        yield Piece(torch.stack(found), torch.stack(wanted), None if mask is None else torch.stack(white))


def _choose(infos: list[VideoInfo], rule: FrameRule) -> list[int]:
    if rule.num_frames is None:
        _check_same([f"{info.num_frames} frames" for info in infos], infos, "num_frames takes the first of both")
        return list(range(0, infos[0].num_frames, rule.stride))
    for info in infos:
        if info.num_frames < rule.num_frames:
            raise ValueError(
                f"num_frames: must be at most {info.num_frames}, those of {info.path}, got {rule.num_frames}"
            )
    return list(range(0, rule.num_frames, rule.stride))


def _check_same(values: list[str], infos: list[VideoInfo], hint: str) -> None:
    if values[0] != values[1]:
        got = " and ".join(f"{value} of {info.path}" for value, info in zip(values, infos, strict=True))
        raise ValueError(f"both must be alike, got {got}; {hint}")


def _read_masks(path: Path, counts: set[int], indices: list[int]) -> Iterator[Tensor]:
    """Read which pixels are white, (h, w) bool a frame."""
    count = read_info(path).num_frames
    if count not in (1, *counts):
        wanted = " or ".join(map(str, sorted(counts)))
        raise ValueError(f"masks: {path} must be an image or have {wanted} frames as the videos, got {count}")
    frames = read_frames(path, indices if count in counts else [0])
    masks = (rgb_to_grayscale(frame.float())[0] > _HALF for frame in frames)
    if count in counts:
        yield from masks
    else:
        only = next(masks)
        yield from (only for _ in indices)


def _fit(
    video: Tensor, reference: Tensor, mask: Tensor | None, fit: Fit | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Bring a frame of the reference, and a mask of its size, to the size of the video."""
    (height, width), before = video.shape[1:], reference.shape[1:]
    if mask is not None and mask.shape not in ((height, width), before):
        raise ValueError(
            f"masks: must have {width} x {height} pixels as the video, got {mask.shape[1]} x {mask.shape[0]}"
        )
    if fit is None or before == (height, width):
        return video, reference, mask
    if mask is not None and mask.shape == before:
        mask = fit_frame(mask.to(torch.uint8)[None] * 255, height, width, fit)[0] > _HALF
    return video, fit_frame(reference, height, width, fit), mask
