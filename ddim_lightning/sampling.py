"""Videos from noise alone: what a model makes of a caption."""

from __future__ import annotations

import torch

from ddim_lightning.diffusion.schedule import StepTable
from ddim_lightning.diffusion.steps import forward_step
from ddim_lightning.types import Branch, Denoiser, Frames, Latents, Video


def sample(denoiser: Denoiser, noise: Latents, prompt: str, table: StepTable, guidance_scale: float) -> Latents:
    """Walk from noise to clean latents by DDIM.

    Args:
        denoiser: The model.
        noise: (b, f, c, h, w) float32, unit normal.
        prompt: What the videos show.
        table: The steps.
        guidance_scale: Classifier-free guidance, >= 0; 1 turns it off.

    Returns:
        Clean latents in the shape of ``noise``.

    Source: Song et al., "Denoising Diffusion Implicit Models", equation 12, without noise (sigma 0).
    """
    latents = noise
    for step in table:
        (velocity,) = denoiser([Branch(latents, prompt, guidance_scale=guidance_scale)], step)
        assert velocity is not None
        latents = forward_step(latents, velocity, step)
    return latents


def quantise(video: Video) -> Frames:
    """Round one clip, (1, f, c, h, w) in 0 .. 1, to (f, c, h, w) uint8 frames on the CPU."""
    return (video[0] * 255).round().to(torch.uint8).cpu()
