"""Networks compute in the dtype of their weights, whatever autocast is around them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which autocast is off.

    Autocast takes each operation by itself to the lower precision or back. Weights that are in it already give the same
    speed without the conversions, and float32 weights are there because float32 was asked for.

    Args:
        device: Where the network computes.
    """
    kind = device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return nullcontext()
    return torch.autocast(kind, enabled=False)
