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
    return float(measure_distance(latents, reference))


def measure_distance(latents: Tensor, reference: Tensor) -> Tensor:
    """Relative error as a double on the device, for which the host does not wait; see `relative_l2`."""
    # Broadcasting would measure something, silently.
    if latents.shape != reference.shape:
        rule = f"must have the shape of the latents, got {tuple(reference.shape)} for {tuple(latents.shape)}"
        raise ValueError(f"reference: {rule}")
    target = reference.double()
    error: Tensor = torch.linalg.vector_norm(latents.double() - target) / torch.linalg.vector_norm(target)
    return error
