"""Numbers that were measured on a device come to the host together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def read_numbers(tensors: Sequence[Tensor]) -> list[list[float]]:
    """Bring the values of tensors of one device to the host in one transfer; a list for each of them, in order."""
    if not tensors:
        return []
    flat: list[float] = torch.cat([tensor.double().flatten() for tensor in tensors]).tolist()
    values = iter(flat)
    return [[next(values) for _ in range(tensor.numel())] for tensor in tensors]
