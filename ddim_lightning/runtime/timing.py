"""Seconds and peak memory by stage."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class StageTimer:
    """Adds up the wall time of named stages and keeps the peak memory of each.

    The device is waited for at both ends of a stage, never inside it.

    Args:
        device: The device that works.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)
        self.peak_gib: dict[str, float] = {}
        """Peak of allocated CUDA memory, weights included; empty on other devices."""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what runs inside; a name used twice is added up."""
        cuda = self.device.type == "cuda"
        if cuda:  # pragma: no cover - cuda
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        start = time.perf_counter()
        try:
            yield
        finally:
            if cuda:  # pragma: no cover - cuda
                torch.cuda.synchronize(self.device)
                peak = torch.cuda.max_memory_allocated(self.device) / 2**30
                self.peak_gib[name] = max(peak, self.peak_gib.get(name, 0.0))
            self.seconds[name] += time.perf_counter() - start
