"""Video to latents and back."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLCogVideoX

from ddim_lightning.types import Latents, Video


def encode_video(vae: AutoencoderKLCogVideoX, video: Video, generator: torch.Generator | None = None) -> Latents:
    """Encode a video.

    Args:
        vae: The autoencoder.
        video: (b, f, c, h, w), 0 .. 1, with f = 4k + 1; or uint8, 0 .. 255.
        generator: Samples the posterior with it; without one the posterior's mode is taken, which is deterministic and does
            not move the latent by the posterior's spread.

    Returns:
        (b, f, c, h, w) float32 latents, scaled by the VAE's ``scaling_factor``.
    """
    pixels = video.to(vae.device)
    pixels = pixels.float() / 255.0 if pixels.dtype == torch.uint8 else pixels
    posterior = vae.encode((pixels * 2.0 - 1.0).to(vae.dtype).transpose(1, 2)).latent_dist
    latents = posterior.mode() if generator is None else posterior.sample(generator)
    return latents.transpose(1, 2).float() * vae.config.scaling_factor


def decode_latents(vae: AutoencoderKLCogVideoX, latents: Latents) -> Video:
    """Decode latents.

    Args:
        vae: The autoencoder.
        latents: (b, f, c, h, w), scaled.

    Returns:
        (b, f, c, h, w) float32, clamped to 0 .. 1, not quantised.
    """
    unscaled = (latents / vae.config.scaling_factor).to(vae.dtype).transpose(1, 2)
    video = vae.decode(unscaled).sample.transpose(1, 2).float()
    return (video / 2.0 + 0.5).clamp(0.0, 1.0)
