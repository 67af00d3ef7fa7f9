"""A call is measured: its time, the kernels that ran, how far its output is from another's."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from ddim_lightning.runtime.timing import read_memory_gib


def read_clock(device: torch.device) -> float:
    """Return seconds of CPU time, which other programs disturb least, or of wall time once a GPU has done its work."""
    if device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def name_clock(device: torch.device) -> str:
    """Return what a result calls the clock of `read_clock`."""
    return "wall" if device.type == "cuda" else "CPU time of the process, one thread, freed memory kept"


@contextmanager
def watch(device: torch.device) -> Iterator[dict[str, Any]]:
    """Measure what runs inside: yield a dict that has its ``seconds`` and ``memory`` once it has run.

    The seconds are those of `read_clock`, the memory that of `read_memory_gib`, whose peak begins here.
    """
    cost: dict[str, Any] = {}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    start = read_clock(device)
    yield cost
    cost["seconds"] = read_clock(device) - start
    cost["memory"] = read_memory_gib(device)


def relative_l2(ours: Tensor, theirs: Tensor) -> float:
    """Return the norm of the difference over the norm of the second."""
    return float((ours - theirs).norm() / theirs.norm())


def list_kernels(act: Callable[[], Any], device: torch.device, count: int = 5) -> list[dict[str, Any]]:
    """Return what a call spends most of its device time in, by the profiler: names with milliseconds."""
    cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as profiler:
        act()
        if cuda:
            torch.cuda.synchronize(device)
    spent = [(e.self_device_time_total if cuda else e.self_cpu_time_total, e.key) for e in profiler.key_averages()]
    return [{"name": name, "ms": us / 1e3} for us, name in sorted(spent, reverse=True)[:count]]


def tell_kernel(name: str) -> str:
    """Return the name of a kernel short enough for a table; that of a template may fill pages."""
    name = name.replace("|", "/")
    return f"`{name[:60]}…`" if len(name) > 60 else f"`{name}`"
