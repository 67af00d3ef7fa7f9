"""A CUDA device that is not there: entered, it does all that a job asks of it, and tells what it was asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from .dispatch import EmulatedDispatch
from .ledger import GIB, Ledger, round_pinned
from .loading import patched_loading
from .patches import patched_torch
from .waits import Waits


@dataclass
class EmulatedDevice:
    """An `EmulatedDevice` is what is known of the device while it is emulated, and afterwards.

    Args:
        memory: Bytes on the device, by stage.
        pinned: Page-locked bytes on the host.
        waits: Of the host for the device.
    """

    memory: Ledger
    pinned: Ledger = field(default_factory=lambda: Ledger(round_up=round_pinned))
    waits: Waits = field(default_factory=Waits)

    def enter(self, stage: str, in_step: bool = False) -> None:
        """Begin a stage, or what lies between two steps of it."""
        self.memory.enter(stage)
        self.pinned.enter(stage)
        self.waits.enter(stage, in_step)

    @property
    def peaks_gib(self) -> dict[str, float]:
        """The peak of each stage that was entered."""
        return {stage: peak.nbytes / GIB for stage, peak in self.memory.peaks.items()}


@contextmanager
def emulate_cuda(
    *, total_gib: float = 80.0, taken_gib: float = 0.0, limited: bool = False, capability: tuple[int, int] = (9, 0)
) -> Iterator[EmulatedDevice]:
    """Emulate a CUDA device in this thread while the context is entered.

    Args:
        total_gib: Memory that the device says it has.
        taken_gib: What of it the CUDA context and other programs have.
        limited: Whether going beyond the rest raises `torch.OutOfMemoryError`.
        capability: Compute capability: 9.0 is Hopper, 8.9 Ada, 8.6 Ampere.
    """
    total, taken = int(total_gib * GIB), int(taken_gib * GIB)
    device = EmulatedDevice(Ledger(total - taken if limited else None))
    dispatch = EmulatedDispatch(device.memory, device.pinned, device.waits)
    with patched_torch(device.memory, device.waits, total, taken, capability), patched_loading(), dispatch:
        yield device
