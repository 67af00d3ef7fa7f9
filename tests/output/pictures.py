"""Folders of frames without loss, for numbers that are known."""

from __future__ import annotations

import torch
from PIL import Image


def make_frames(seed, f=4, h=24, w=32):
    """Random pixels that leave room for a shift of 20 levels."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 236, (f, 3, h, w), generator=generator, dtype=torch.uint8)


def write_frames(folder, frames):
    """Write frames (f, 3, h, w), or masks (f, h, w), as numbered PNGs."""
    folder.mkdir(parents=True)
    for index, frame in enumerate(frames):
        pixels = frame * 255 if frame.dtype == torch.bool else frame
        array = (pixels.to(torch.uint8) if pixels.ndim == 2 else pixels.permute(1, 2, 0)).numpy()
        Image.fromarray(array).save(folder / f"{index:05d}.png")
    return folder
