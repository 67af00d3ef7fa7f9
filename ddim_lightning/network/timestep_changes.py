"""How much a transformer is told anew from one timestep to the next is read off its embedding of the timestep."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import CogVideoXTransformer3DModel


@torch.no_grad()
def measure_changes(transformer: CogVideoXTransformer3DModel, timesteps: Sequence[int]) -> tuple[float, ...]:
    """Measure how much the embedding of each timestep differs from that of the one before.

    The host waits for the device once, whatever the number of timesteps.

    Args:
        transformer: The model; its embedding may lie anywhere.
        timesteps: Training timesteps, in the order in which they are passed through.

    Returns:
        For each timestep the mean magnitude of the difference over that of the embedding before; 0 for the first.

    Source: TeaCache (arXiv:2411.19108), equation 4, of ``emb`` in the authors' ``TeaCache4CogVideoX1.5``.
    """
    layer = transformer.time_embedding.linear_1.weight
    told = transformer.time_proj(torch.tensor(timesteps, device=layer.device)).to(layer.dtype)
    embedded = transformer.time_embedding(told).float()
    before, after = embedded[:-1], embedded[1:]
    changes = (after - before).abs().mean(dim=1) / before.abs().mean(dim=1)
    return (0.0, *changes.tolist())
