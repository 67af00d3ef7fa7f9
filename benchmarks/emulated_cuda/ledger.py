"""The memory of the device is a ledger: what is alive, where it was made, and what was alive at each stage's peak."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from .lines import Place, find_place

GIB = 2**30
_BLOCK = 512
"""Bytes; the allocator gives out multiples of it."""


class Allocation(NamedTuple):
    """An `Allocation` is one piece of memory, as large as the allocator makes it.

    Args:
        nbytes: Its size.
        shape: Of the tensor that it was made for.
        dtype: Likewise.
        place: The line that made it.
        stage: In which it was made.
    """

    nbytes: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    place: Place
    stage: str


@dataclass
class Peak:
    """A `Peak` is the most that was alive at once.

    Args:
        nbytes: Of all that was alive.
        alive: What it was.
    """

    nbytes: int = 0
    alive: tuple[Allocation, ...] = ()

    def list_largest(self, count: int) -> list[tuple[Allocation, int]]:
        """Return what takes most: allocations of one shape and one line together, with how many there were."""
        counts: dict[Allocation, int] = {}
        for one in self.alive:
            counts[one] = counts.get(one, 0) + 1
        return sorted(counts.items(), key=lambda pair: -pair[0].nbytes * pair[1])[:count]


@dataclass
class Ledger:
    """A `Ledger` counts the bytes of all storages that are alive, each once, from when it is made to its end.

    Args:
        total: Bytes that there are; ``None`` for no end. What goes beyond raises what PyTorch raises.
        round_up: Size of a piece of memory for so many bytes.
    """

    total: int | None = None
    round_up: Callable[[int], int] = lambda nbytes: -(-nbytes // _BLOCK) * _BLOCK
    current: int = 0
    stage: str = "start"
    peaks: dict[str, Peak] = field(default_factory=dict)
    """The peak of each stage; one that was entered twice has the larger."""
    since_reset: int = 0
    """The peak since `torch.cuda.reset_peak_memory_stats`."""
    _alive: dict[int, Allocation] = field(default_factory=dict)
    _ends: dict[int, weakref.ref[torch.UntypedStorage]] = field(default_factory=dict)

    def enter(self, stage: str) -> None:
        """Begin a stage: what is alive now is alive in it, too."""
        self.stage = stage
        self._look()

    def reset(self) -> None:
        """Let the peak since the last reset be what is alive now."""
        self.since_reset = self.current

    def add(self, tensor: Tensor) -> None:
        """Enter the storage of a tensor, unless it is known.

        Raises:
            OutOfMemoryError: It does not fit beside what is alive.
        """
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._alive:
            return
        nbytes = self.round_up(storage.nbytes())
        if self.total is not None and self.current + nbytes > self.total:
            raise torch.OutOfMemoryError(
                f"CUDA out of memory. Tried to allocate {nbytes / GIB:.2f} GiB. The emulated GPU has a total capacity "
                f"of {self.total / GIB:.2f} GiB of which {(self.total - self.current) / GIB:.2f} GiB is free."
            )
        self._alive[key] = Allocation(nbytes, tuple(tensor.shape), tensor.dtype, find_place(), self.stage)
        self._ends[key] = weakref.ref(storage, lambda _: self._remove(key))
        self.current += nbytes
        self._look()

    def _remove(self, key: int) -> None:
        self.current -= self._alive.pop(key).nbytes
        del self._ends[key]

    def _look(self) -> None:
        self.since_reset = max(self.since_reset, self.current)
        peak = self.peaks.setdefault(self.stage, Peak())
        if self.current > peak.nbytes:
            peak.nbytes, peak.alive = self.current, tuple(self._alive.values())


def round_pinned(nbytes: int) -> int:
    """Return what page-locked memory takes for so many bytes: PyTorch keeps pieces of powers of two."""
    return 1 << max(0, nbytes - 1).bit_length()
