"""Masks at the size of the latents, given or found, say where an edit may change the video."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import avg_pool2d, max_pool2d, max_pool3d

from ddim_lightning.diffusion.editors.base import get_image_latents, get_source_prompt
from ddim_lightning.diffusion.inversion import Inversion
from ddim_lightning.diffusion.schedule import NoiseSchedule
from ddim_lightning.types import Branch, Denoiser, EditRequest

PROBE_ANGLES = (1.2, 1.0, 0.8, 0.6)
"""Levels, in radians, at which the velocities under two prompts are compared: noisy enough for the prompt to matter,
clean enough for the place to be known."""

LatentMask = Float[Tensor, "1 f 1 h w"]
"""1 where the video may change, 0 where it is kept."""


def pool_mask(mask: Bool[Tensor, "f h w"], temporal: int, spatial: int) -> LatentMask:
    """Bring a mask of frames to the size of the latents: a latent may change where any of its pixels may.

    The causal VAE makes latent frame 0 of frame 0, and latent frame ``j`` of frames ``4 j - 3 .. 4 j``.

    Args:
        mask: True where the video may change; ``temporal`` k + 1 frames, height and width multiples of ``spatial``.
        temporal: Frames of a latent frame after the first.
        spatial: Pixels of a latent, in height and width.

    Returns:
        (1, f, 1, h, w) float32 of zeros and ones.

    Raises:
        ValueError: A size that does not divide.
    """
    frames, height, width = mask.shape
    if frames % temporal != 1 % temporal or height % spatial or width % spatial:
        rule = f"{temporal}k + 1 frames, height and width multiples of {spatial}"
        raise ValueError(f"mask: must have {rule}, got {frames} x {height} x {width}")
    # Copies of the first frame make its group as long as the others.
    padded = torch.cat([mask[:1].expand(temporal - 1, -1, -1), mask]).float()
    return max_pool3d(padded[None, None], (temporal, spatial, spatial)).transpose(1, 2)


def choose_probes(schedule: NoiseSchedule) -> tuple[int, ...]:
    """Return the steps whose levels are nearest to `PROBE_ANGLES`, each once."""
    nearest = [min(range(len(schedule)), key=lambda i: abs(schedule.angles[i] - angle)) for angle in PROBE_ANGLES]
    return tuple(dict.fromkeys(nearest))


def find_mask(denoiser: Denoiser, inversion: Inversion, request: EditRequest, threshold: float) -> LatentMask:
    """Find where the new prompt wants something else, from the difference of two velocities.

    The trajectory's latents are evaluated under the source's text and under the new prompt, in an image-to-video model
    each beside its own image, without guidance, at a few levels. The mean difference over channels and levels, smoothed
    over 3 x 3 latents, is scaled so that its largest value is 1, cut at the threshold and grown by one latent.

    Args:
        denoiser: The model that inverted.
        inversion: The source video's inversion.
        request: The new prompt; its source prompt says what the source shows.
        threshold: 0 (everything changes) .. 1.

    Returns:
        (b, f, 1, h, w) float32 of zeros and ones.

    Source: Couairon et al. 2022, "DiffEdit", arXiv:2210.11427, section 3.2, on the trajectory instead of fresh noise.
    """
    differences = []
    for i in choose_probes(inversion.schedule):
        level = inversion.levels[i]
        source_prompt = get_source_prompt(request, inversion)
        target = Branch(level, request.prompt, image_latents=get_image_latents(request, inversion))
        source = Branch(level, source_prompt, image_latents=inversion.image_latents)
        new, old = denoiser([target, source], inversion.schedule[i])
        assert new is not None
        assert old is not None
        differences.append((new - old).abs().mean(dim=2))
    difference = torch.stack(differences).mean(dim=0)  # (b, f, h, w)
    smooth = avg_pool2d(difference, 3, stride=1, padding=1, count_include_pad=False)
    largest = smooth.amax(dim=(1, 2, 3), keepdim=True)
    grown = max_pool2d((smooth >= threshold * largest).float(), 3, stride=1, padding=1)
    return grown[:, :, None]


def count_probe_nfe(schedule: NoiseSchedule) -> int:
    """Return the NFE of `find_mask`."""
    return 2 * len(choose_probes(schedule))
