"""Functions over latents say how far they are from other latents."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

_LEVELS = "levels"
"""What a trajectory calls its latents of all levels, noise first."""


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


def compare_files(reference: Path, latents: Path) -> dict[str, float]:
    """Measure latents in a safetensors file against those in another.

    Args:
        reference: The trajectory of a run, which has a tensor ``levels``, or a file of a single tensor.
        latents: Likewise.

    Returns:
        ``latent_error``, the `relative_l2` over all of it; of trajectories also ``latent_error_noise``, that of the
        inverted latents alone.

    Raises:
        OSError: When a file cannot be read.
        ValueError: When one is no such file, their shapes differ, or the error is no finite number.
    """
    read, found = _read_latents(reference), _read_latents(latents)
    numbers = {"latent_error": relative_l2(found[1], read[1])}
    if read[0] == found[0] == _LEVELS:
        numbers["latent_error_noise"] = relative_l2(found[1][0], read[1][0])
    if not all(map(math.isfinite, numbers.values())):
        raise ValueError(f"{latents} and {reference} must hold finite numbers, the latter not all zero, got others")
    return numbers


def _read_latents(path: Path) -> tuple[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            name = _LEVELS if _LEVELS in names else names[0] if len(names) == 1 else None
            if name is not None:
                return name, file.get_tensor(name)
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    raise ValueError(f"{path} must hold a single tensor, or {_LEVELS} as a trajectory, got {', '.join(names[:5])}")
