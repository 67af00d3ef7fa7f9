"""What every forward pass over a CogVideoX transformer knows of it stands here once."""

from __future__ import annotations

import torch
from diffusers import CogVideoXTransformer3DModel
from torch import Tensor

from ddim_lightning.network.attention import Attention
from ddim_lightning.network.kernels import MeasuredAttention
from ddim_lightning.network.rotary import RotaryTables


class OverModel:
    """An `OverModel` evaluates rows by a transformer; how, its subclasses say.

    Args:
        transformer: The model.
        attention: The kernel, or a choice of kernels.
    """

    def __init__(self, transformer: CogVideoXTransformer3DModel, attention: Attention | MeasuredAttention) -> None:
        self.transformer = transformer
        self.attention = attention
        self._rotary = RotaryTables(transformer)

    @property
    def dtype(self) -> torch.dtype:
        """In which latents and embeddings enter."""
        dtype: torch.dtype = self.transformer.dtype
        return dtype

    @property
    def num_layers(self) -> int:
        """How many layers have keys and values to read."""
        return len(self.transformer.transformer_blocks)

    @property
    def in_channels(self) -> int:
        """Channels of a row: those of the latents, in an image-to-video model and of its image latents."""
        channels: int = self.transformer.config.in_channels
        return channels

    def get_rotary(self, latents: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return the rotary table for latents; see `RotaryTables`."""
        return self._rotary.get(latents)
