"""Latents are padded in front to whole tokens, for models whose tokens hold several latent frames."""

from __future__ import annotations

import torch
from torch import Tensor


def pad_front(latents: Tensor, multiple: int) -> Tensor:
    """Repeat the first latent frame in front of latents until their number of frames is a multiple.

    The first latent frame is that of a single frame of the video, so that what is repeated stands still.

    Args:
        latents: (b, f, ...), also a mask at the latents' size.
        multiple: Latent frames of a token, >= 1.

    Returns:
        (b, f + p, ...) with the smallest p >= 0 that will do; the same tensor where it is 0.

    Source: `CogVideoXImageToVideoPipeline.prepare_latents`, which pads the latents of its image so for CogVideoX1.5;
    like `CogVideoXPipeline` it drops what is in front before it decodes.
    """
    padding = -latents.shape[1] % multiple
    return torch.cat([latents[:, :1]] * padding + [latents], dim=1) if padding else latents
