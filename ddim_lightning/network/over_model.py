"""What every forward pass over a CogVideoX transformer knows of it stands here once."""

from __future__ import annotations

import torch
from diffusers import CogVideoXTransformer3DModel
from torch import Tensor

from ddim_lightning.network.attention import Attention
from ddim_lightning.network.held import Storage
from ddim_lightning.network.kernels import MeasuredAttention
from ddim_lightning.network.layout import count_video_tokens
from ddim_lightning.network.rotary import RotaryTables
from ddim_lightning.network.source_mark import SourceMark, find_mark
from ddim_lightning.network.weights import OFS


class OverModel:
    """An `OverModel` evaluates rows by a transformer; how, its subclasses say.

    Args:
        transformer: The model.
        attention: The kernel, or a choice of kernels.
        context: Where keys and values wait that are held for passes to come.
    """

    def __init__(
        self,
        transformer: CogVideoXTransformer3DModel,
        attention: Attention | MeasuredAttention,
        context: Storage = "device",
    ) -> None:
        self.transformer = transformer
        self.attention = attention
        self.context = context
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

    @property
    def mark(self) -> SourceMark | None:
        """What marks the tokens of a source whose keys and values are held; ``None`` where nothing was trained to."""
        return find_mark(self.transformer)

    def choose_attention(self, latents: Tensor, prompt_embeds: Tensor) -> Attention:
        """Return the kernel for a pass over rows (rows, f, c, h, w) under embeddings (rows, tokens, width)."""
        tokens = prompt_embeds.shape[1] + count_video_tokens(self.transformer.config, *latents[0, :, 0].shape)
        return self.choose_kernel(latents, latents.shape[0], tokens)

    def choose_kernel(self, latents: Tensor, rows: int, tokens: int) -> Attention:
        """Return the kernel for a number of rows and of their tokens, in the dtype and on the device of latents."""
        config = self.transformer.config
        shape = (rows, config.num_attention_heads, tokens, config.attention_head_dim)
        return self.attention.choose(shape, latents.dtype, latents.device)

    def make_ofs(self, latents: Tensor) -> Tensor | None:
        """Return what the model is told beside the timestep, (1,), ``None`` where it takes nothing."""
        return None if self.transformer.config.ofs_embed_dim is None else latents.new_full((1,), OFS)

    def check_rows(self, latents: Tensor) -> None:
        """Raise a ValueError unless latents (rows, f, c, h, w) have the model's channels and whole tokens of frames."""
        _, frames, channels, height, width = latents.shape
        config = self.transformer.config
        if channels != config.in_channels:
            rule = f"the model takes {config.in_channels} channels"
            raise ValueError(f"latents: {rule}, got {channels}")
        if frames % (config.patch_size_t or 1):
            rule = f"their frames must be a multiple of patch_size_t, {config.patch_size_t}"
            raise ValueError(f"latents: {rule}, got {frames}")
        native = (
            (config.sample_frames - 1) // config.temporal_compression_ratio + 1,
            config.sample_height,
            config.sample_width,
        )
        if config.use_learned_positional_embeddings and (frames, height, width) != native:
            rule = f"the model has learned positions for {native} frames, rows and columns only"
            raise ValueError(f"latents: {rule}, got {(frames, height, width)}")

    def get_rotary(self, latents: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return the rotary table for latents; see `RotaryTables`."""
        return self._rotary.get(latents)
