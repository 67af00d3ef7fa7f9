"""Functions over latents say how far they are from other latents."""

from __future__ import annotations

import torch
from torch import Tensor


def relative_l2(latents: Tensor, reference: Tensor) -> float:
    """Relative error: the Euclidean length of the difference over that of the reference.

    Args:
        latents: Any shape.
        reference: The same shape, not all zero.

    Returns:
        0 for equal latents; equally the relative root mean squared error.

    Raises:
        ValueError: When the shapes differ.
    """
    _check_shapes(latents, reference)
    target = reference.double()
    return float(torch.linalg.vector_norm(latents.double() - target) / torch.linalg.vector_norm(target))


def rmse(latents: Tensor, reference: Tensor) -> float:
    """Root mean squared error over all entries.

    Args:
        latents: Any shape.
        reference: The same shape.

    Raises:
        ValueError: When the shapes differ.
    """
    _check_shapes(latents, reference)
    return float((latents.double() - reference.double()).square().mean().sqrt())


def _check_shapes(latents: Tensor, reference: Tensor) -> None:
    # Broadcasting would measure something, silently.
    if latents.shape != reference.shape:
        raise ValueError(
            f"reference: must have the shape of the latents, got {tuple(reference.shape)} for {tuple(latents.shape)}"
        )
