"""Rotary position embeddings are one table over the whole sequence, text and video."""

from __future__ import annotations

import torch
from diffusers import CogVideoXTransformer3DModel
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid
from torch import Tensor


def make_rotary_table(
    transformer: CogVideoXTransformer3DModel, frames: int, height: int, width: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Make the rotary table over the whole sequence: identity rows for the text, then the video's rows.

    With identity rows one multiplication covers the whole sequence, bit-equal to rotating the video's part alone.

    Args:
        transformer: Its config gives patch sizes, head size, text length and the native grid.
        frames: Latent frames, a multiple of the patch size in time.
        height: Latent height, a multiple of the patch size.
        width: Latent width, likewise.
        device: Where the table goes.

    Returns:
        cos and sin, (text + video tokens, channels of a head) float32 each.

    Raises:
        ValueError: A model with patches in time whose table ends before this height or width.

    Source: `CogVideoXPipeline._prepare_rotary_positional_embeddings`.
    """
    config = transformer.config
    patch = config.patch_size
    grid = (height // patch, width // patch)
    native = (config.sample_height // patch, config.sample_width // patch)
    if config.patch_size_t is None:
        # The native grid is stretched over the picture.
        crops = get_resize_crop_region_for_grid(grid, native[1], native[0])
        positions = {"crops_coords": crops, "temporal_size": frames}
    else:
        # CogVideoX1.5: the picture is the first rows and columns of the native grid.
        if grid[0] > native[0] or grid[1] > native[1]:
            most = (config.sample_height, config.sample_width)
            raise ValueError(f"latents: height and width must be at most {most}, got {(height, width)}")
        frames //= config.patch_size_t
        positions = {"crops_coords": None, "temporal_size": frames, "grid_type": "slice", "max_size": native}
    cos, sin = get_3d_rotary_pos_embed(embed_dim=config.attention_head_dim, grid_size=grid, device=device, **positions)
    text = (config.max_text_seq_length, cos.shape[1])
    return torch.cat([cos.new_ones(text), cos]), torch.cat([sin.new_zeros(text), sin])


class RotaryTables:
    """The `RotaryTables` of a transformer are made once for each size of latents.

    Every step needs them, and copying them to the device again would make the host wait for it.

    Args:
        transformer: See `make_rotary_table`.
    """

    def __init__(self, transformer: CogVideoXTransformer3DModel) -> None:
        self.transformer = transformer
        self._tables: dict[tuple[int, int, int, torch.device], tuple[Tensor, Tensor]] = {}

    def get(self, latents: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return the table for latents (b, f, c, h, w), ``None`` for a model without rotary embeddings."""
        if not self.transformer.config.use_rotary_positional_embeddings:
            return None
        _, frames, _, height, width = latents.shape
        key = (frames, height, width, latents.device)
        if key not in self._tables:
            with torch.inference_mode(False):  # or a training that comes after could not use it
                self._tables[key] = make_rotary_table(self.transformer, *key)
        return self._tables[key]
