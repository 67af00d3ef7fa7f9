"""A clip comes to its measures a few frames at a time, so that a long one takes no more memory than a short one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ddim_lightning.metrics.functional import check_pair


@dataclass(frozen=True)
class Piece:
    """A `Piece` is a few frames of a video, the same frames of its reference, and of its mask.

    Args:
        video: (f, 3, h, w) uint8, or floats in 0 .. 1.
        reference: Likewise, of the same shape.
        mask: (f, h, w) bool, True where the video was to change; ``None`` where nothing says so.

    Raises:
        ValueError: When the shapes differ.
    """

    video: Tensor
    reference: Tensor
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        check_pair(self.video, self.reference)
        if self.mask is not None and self.mask.shape != (len(self.video), *self.video.shape[2:]):
            wanted = f"{len(self.video)} frames of {self.video.shape[2]} x {self.video.shape[3]} as the video"
            raise ValueError(f"mask: must have {wanted}, got {tuple(self.mask.shape)}")

    def to(self, device: torch.device) -> Piece:
        """Return it on a device, with floats in 0 .. 1."""
        video, reference = (_to_floats(frames.to(device)) for frames in (self.video, self.reference))
        return Piece(video, reference, None if self.mask is None else self.mask.to(device))


class Meter(Protocol):
    """A `Meter` measures one clip, piece by piece."""

    def add(self, piece: Piece) -> None:
        """Take in the next frames, as floats."""

    def read(self) -> dict[str, float]:
        """Return what was measured, by name."""


def to_bytes(frames: Tensor) -> Tensor:
    """Round frames in 0 .. 1 to uint8, as a video file holds them."""
    return (frames * 255.0).round().clamp(0, 255).to(torch.uint8)


def _to_floats(frames: Tensor) -> Tensor:
    return frames.float() / 255.0 if frames.dtype == torch.uint8 else frames.float()
