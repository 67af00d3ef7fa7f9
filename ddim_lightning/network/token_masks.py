"""A mask of latents becomes the tokens that an edit has of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ddim_lightning.network.adapters import read_change
from ddim_lightning.network.layout import Split

_KEPT = 64
"""Masks that are remembered: each window of a long clip has its own."""


def split_tokens(config: Any, mask: Tensor) -> Split:
    """Return which tokens an edit under a mask has of its own: those of which any latent may change.

    Args:
        config: Of the transformer.
        mask: (1, f, 1, h, w), 1 where the video may change.

    Raises:
        ValueError: Masks for several videos, which would have different numbers of tokens.
    """
    if mask.shape[0] != 1:
        raise ValueError(f"mask: must be one, of one video, where its tokens alone are computed, got {mask.shape[0]}")
    patch, patch_frames = config.patch_size, config.patch_size_t or 1
    pieces = mask[0, :, 0].unflatten(2, (-1, patch)).unflatten(1, (-1, patch)).unflatten(0, (-1, patch_frames))
    changes = pieces.amax(dim=(1, 3, 5)).flatten() > 0
    return Split(changes.nonzero()[:, 0], (~changes).nonzero()[:, 0])


class TokenMasks:
    """`TokenMasks` are made once for each mask: how many tokens there are is known when the device has found them.

    Args:
        config: Of the transformer.
    """

    def __init__(self, config: Any) -> None:
        self.config = config
        # Masks are kept beside what was made of them, so that no other takes their place in memory.
        self._splits: dict[tuple[Any, ...], tuple[Tensor, Split]] = {}

    def get(self, mask: Tensor, device: torch.device) -> Split:
        """Return the tokens of a mask on a device; the same object for the same mask. See `split_tokens`."""
        key = (*read_change(mask), mask.shape, device)
        if key not in self._splits:
            if len(self._splits) >= _KEPT:
                self._splits.clear()
            with torch.inference_mode(False):  # or a pass with gradients could not use it
                split = split_tokens(self.config, mask.detach().cpu())
                self._splits[key] = mask, Split(split.inside.to(device), split.outside.to(device))
        return self._splits[key][1]

    def clear(self) -> None:
        """Forget all masks."""
        self._splits.clear()
