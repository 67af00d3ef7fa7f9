"""How much a transformer is told anew from one timestep to the next is read off its embedding of the timestep."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from diffusers import CogVideoXTransformer3DModel

from ddim_lightning.runtime.autocast import without_autocast

_FITTED = {
    "CogVideoX-2b": (-3.10658903e01, 2.54732368e01, -5.92380459e00, 1.75769064e00, -3.61568434e-03),
    "CogVideoX-5b": (-1.53880483e03, 8.43202495e02, -1.34363087e02, 7.97131516e00, -5.23162339e-02),
    "CogVideoX1.5-5B": (2.50210439e02, -1.65061612e02, 3.57804877e01, -7.81551492e-01, 3.58559703e-02),
    "CogVideoX1.5-5B-I2V": (1.22842302e02, -1.04088754e02, 2.62981677e01, -3.06009921e-01, 3.71213220e-02),
}
"""By released model the polynomial, highest power first, from changes of its embedding to those of its output, of
TeaCache's authors (``TeaCache4CogVideoX1.5/teacache_sample_video.py``)."""


def find_polynomial(transformer: CogVideoXTransformer3DModel) -> tuple[float, ...]:
    """Return the polynomial of a transformer of a released architecture; that of any other leaves changes as they are.

    Args:
        transformer: The model, of which the config is looked at alone.
    """
    config = transformer.config
    released = {
        (30, False, None, 16): "CogVideoX-2b",
        (42, True, None, 16): "CogVideoX-5b",
        (42, True, None, 32): "CogVideoX-5b",  # of the image-to-video model, too
        (42, True, 2, 16): "CogVideoX1.5-5B",
        (42, True, 2, 32): "CogVideoX1.5-5B-I2V",
    }
    size = (config.num_layers, config.use_rotary_positional_embeddings, config.patch_size_t, config.in_channels)
    return _FITTED[released[size]] if size in released else (1.0, 0.0)


@torch.no_grad()
def measure_changes(transformer: CogVideoXTransformer3DModel, timesteps: Sequence[int]) -> tuple[float, ...]:
    """Measure how much the embedding of each timestep differs from that of the one before.

    The host waits for the device once, whatever the number of timesteps.

    Args:
        transformer: The model; its embedding may lie anywhere.
        timesteps: Training timesteps, in the order in which they are passed through.

    Returns:
        For each timestep the mean magnitude of the difference over that of the embedding before, through the polynomial
        of `find_polynomial`, without its sign: outside of where it was fitted, as with other weights or in many small
        steps, it goes below 0, and such changes would never come to a threshold. 0 for the first.

    Source: Liu et al. 2024, TeaCache, arXiv:2411.19108 (relative L1 distance, and its rescaling), of what the authors'
    code for CogVideoX takes for the input: ``emb``, which every block is told.
    """
    weight = transformer.time_embedding.linear_1.weight
    with without_autocast(weight.device):
        told = transformer.time_proj(torch.tensor(timesteps, device=weight.device)).to(weight.dtype)
        embedded = transformer.time_embedding(told).float()
    before, after = embedded[:-1], embedded[1:]
    changes = (after - before).abs().mean(dim=1) / before.abs().mean(dim=1)
    polynomial = find_polynomial(transformer)
    rescaled = (reduce(lambda value, factor: value * change + factor, polynomial) for change in changes.tolist())
    return (0.0, *map(abs, rescaled))
