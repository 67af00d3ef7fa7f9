"""Clocks read seconds and peak memory by stage, milliseconds by step, and the memory of the process."""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from ddim_lightning.types import Latents, Step


class StageTimer:
    """A `StageTimer` adds up the wall time of named stages and keeps the peak memory of each.

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


class StepClock:
    """A `StepClock` reads the milliseconds between the steps of a loop; on a GPU by events, so that nothing waits.

    Args:
        device: The device that works.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.marks: list[Any] = []
        self.mark()

    def mark(self) -> None:
        """Set a mark."""
        if self.device.type == "cuda":  # pragma: no cover - cuda
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self.device))
            self.marks.append(event)
        else:
            self.marks.append(time.perf_counter())

    def __call__(self, step: Step, latents: Latents) -> None:
        """Set a mark after a step."""
        self.mark()

    def read_ms(self) -> list[float]:
        """Return the milliseconds between neighboring marks."""
        if self.device.type == "cuda":  # pragma: no cover - cuda
            torch.cuda.synchronize(self.device)
            return [before.elapsed_time(after) for before, after in pairwise(self.marks)]
        return [(after - before) * 1e3 for before, after in pairwise(self.marks)]


def summarize_ms(samples_ms: Sequence[float], warm_up: int = 1) -> dict[str, Any]:
    """Summarize the times of steps.

    Args:
        samples_ms: Milliseconds of every step, in order; at least one.
        warm_up: Steps at the beginning that the summary leaves out, >= 0: they pick kernels and may compile. Where no
            other steps are left, they are taken.

    Returns:
        ``step_ms_median``, ``step_ms_p10`` and ``step_ms_p90`` without the warm-up, and ``step_ms``, all samples.
    """
    kept = samples_ms[warm_up:] or samples_ms
    deciles = statistics.quantiles(kept, n=10, method="inclusive") if len(kept) > 1 else [kept[0]] * 9
    return {
        "step_ms_median": statistics.median(kept),
        "step_ms_p10": deciles[0],
        "step_ms_p90": deciles[-1],
        "step_ms": list(samples_ms),
    }


def read_room_gib(device: torch.device) -> float | None:
    """Read how much memory of a GPU this process has or can get, in GiB; ``None`` on a device that does not say."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)  # pragma: no cover - cuda
    return float(free + torch.cuda.memory_reserved(device)) / 2**30  # pragma: no cover - cuda


def read_memory_gib(device: torch.device) -> dict[str, float]:
    """Read what this process has of memory now; waits for nothing.

    Args:
        device: The device that works.

    Returns:
        On a GPU ``allocated_gib`` and ``reserved_gib``, as the host has queued the work so far, and ``peak_gib``, the
        most that was allocated since the peak was last reset. Elsewhere ``resident_gib``, the resident set of the
        process; where the system tells only its peak, the peak; where it tells nothing, nothing.
    """
    if device.type == "cuda":  # pragma: no cover - cuda
        return {
            "allocated_gib": torch.cuda.memory_allocated(device) / 2**30,
            "reserved_gib": torch.cuda.memory_reserved(device) / 2**30,
            "peak_gib": torch.cuda.max_memory_allocated(device) / 2**30,
        }
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return {"resident_gib": pages * os.sysconf("SC_PAGE_SIZE") / 2**30}
    except OSError:  # not Linux
        try:
            import resource
        except ImportError:  # Windows
            return {}
        unit = 1 if sys.platform == "darwin" else 2**10
        return {"resident_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30}
