"""Weights are streamed from the host to the device one block ahead of their use."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from ddim_lightning.runtime.host_memory import HostCopy

T = TypeVar("T")


@dataclass
class _Slot(Generic[T]):
    """A `_Slot` is device memory for one block, and which block is in it; ``None`` while that is uncertain."""

    buffer: Tensor
    arrived: Any = None
    block: int | None = None
    weights: T | None = None


class WeightStream(Generic[T]):
    """A `WeightStream` yields the weights of one block after the other; the next ones travel while these compute.

    Two slots of device memory are all it takes. On CUDA transfers go through a stream of their own: a block is copied
    once the work queued before it is done, and the work that uses it waits for the copy. Behind the last block comes
    the first one, which the next pass finds in place. On other devices copies are made on the spot.

    What is yielded may be used until the next block is asked for, on the stream that is current then; only one
    iteration at a time. One that was abandoned, by an exception say, leaves nothing wrong behind.

    Args:
        copies: The weights of every block, at least one.
        device: Where they are used.
    """

    def __init__(self, copies: Sequence[HostCopy[T]], device: torch.device) -> None:
        self.copies = copies
        self.device = device
        self._slots: list[_Slot[T]] = []
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __iter__(self) -> Iterator[T]:
        """Yield the weights of every block, in order."""
        count = len(self.copies)
        if not self._slots:
            self._slots = self._make_slots()
        for k in range(count):
            following = (k + 1) % count
            here = self._find(k)
            if here is None:
                ahead = self._find(following)
                here = 0 if ahead is None else 1 - ahead
                self._load(self._slots[here], k)
            if self._find(following) is None:
                self._load(self._slots[1 - here], following)
            yield self._receive(self._slots[here])

    def park(self) -> None:
        """Give the device memory back; the next iteration takes it again."""
        self._slots = []

    def unpark(self) -> None:
        """Do nothing: blocks come when they are asked for."""

    def _find(self, block: int) -> int | None:
        return next((place for place, slot in enumerate(self._slots) if slot.block == block), None)

    @torch.inference_mode(False)
    def _make_slots(self) -> list[_Slot[T]]:
        size = max(copy.nbytes for copy in self.copies)
        slots: list[_Slot[T]] = []
        for _ in range(2):
            slots.append(_Slot(torch.empty(size, dtype=torch.uint8, device=self.device)))
            if self._stream is not None:  # pragma: no cover - cuda
                # Given back, it is not handed out again before a transfer under way has ended.
                slots[-1].buffer.record_stream(self._stream)
                slots[-1].arrived = torch.cuda.Event()
        return slots

    @torch.inference_mode(False)
    @torch.no_grad()
    def _load(self, slot: _Slot[T], block: int) -> None:
        """Queue the transfer of a block into a slot, behind all work that is queued now and may still use it."""
        copy, slot.block = self.copies[block], None
        aside: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        if self._stream is not None:  # pragma: no cover - cuda
            self._stream.wait_stream(torch.cuda.current_stream(self.device))
            aside = torch.cuda.stream(self._stream)
        with aside:
            slot.buffer[: copy.nbytes].copy_(copy.buffer, non_blocking=True)
        if self._stream is not None:  # pragma: no cover - cuda
            slot.arrived.record(self._stream)
        slot.weights, slot.block = copy.view(slot.buffer), block

    def _receive(self, slot: _Slot[T]) -> T:
        if slot.arrived is not None:  # pragma: no cover - cuda
            torch.cuda.current_stream(self.device).wait_event(slot.arrived)
        assert slot.weights is not None
        return slot.weights
