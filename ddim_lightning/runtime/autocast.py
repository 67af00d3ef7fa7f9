"""Networks compute in the dtype of their weights, whatever autocast is around them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def has_autocast(device: torch.device) -> bool:
    """Whether autocast acts on a device."""
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which autocast is off.

    Autocast takes each operation by itself to the lower precision or back. Weights that are in it already give the same
    speed without the conversions, and float32 weights are there because float32 was asked for.

    Args:
        device: Where the network computes.
    """
    return torch.autocast(device.type, enabled=False) if has_autocast(device) else nullcontext()
