"""What diffusers itself makes of a transformer."""

from __future__ import annotations

import torch
from diffusers import CogVideoXPipeline


class _Frame:
    """The two attributes of a pipeline that its rotary method reads."""

    vae_scale_factor_spatial = 8

    def __init__(self, transformer):
        self.transformer = transformer


def make_diffusers_rotary(transformer, frames, height, width):
    """Return the pipeline's own table, cos and sin of the video's tokens."""
    frame = _Frame(transformer)
    return CogVideoXPipeline._prepare_rotary_positional_embeddings(
        frame, height * 8, width * 8, frames, torch.device("cpu")
    )
