"""Weights are packed into one piece of host memory, so that one transfer brings them to the device."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

ALIGNMENT = 256
"""Bytes; a CUDA tensor of its own begins at a multiple of this."""

_HOST_ALIGNMENT = 64
"""Bytes; a CPU tensor of its own begins at a multiple of this."""


class _Place(NamedTuple):
    """A `_Place` says where a tensor lies in the buffer, ``start`` in bytes."""

    start: int
    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype


class HostMemory:
    """A `HostMemory` hands out page-locked memory, many pieces of one allocation.

    PyTorch takes allocations of page-locked memory in powers of two, which would make up to twice of each piece.

    Args:
        total: Bytes of all pieces that will be asked for.
        chunk: Bytes of an allocation, a power of two, unless a single piece is larger or less is left to ask for.
    """

    def __init__(self, total: int, chunk: int = 2**30) -> None:
        self._left, self._chunk = total, chunk
        self._free = torch.empty(0, dtype=torch.uint8, device="cpu")

    @classmethod
    def make_for(cls, tensors: Iterable[Tensor]) -> HostMemory:
        """Make it for copies of tensors."""
        return cls(sum(_align(tensor.nbytes) for tensor in tensors))

    def take(self, nbytes: int) -> Tensor:
        """Return (nbytes,) uint8, page-locked, that begins at a multiple of `ALIGNMENT`."""
        taken = _align(nbytes)
        if len(self._free) < taken:
            size = max(taken, min(self._chunk, self._left))
            self._free = torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=True)
        piece, self._free = self._free[:nbytes], self._free[taken:]
        self._left -= taken
        return piece


class HostCopy(Generic[T]):
    """A `HostCopy` is a copy of weights in host memory that can see any copy of that memory as these weights.

    Tensors that fill one storage between them stay neighbors: parts of one matrix can be taken as one again.

    Kernels may round differently for tensors that begin elsewhere. So tensors begin as they would had they been loaded
    straight to the device: on a CPU as far from a multiple of `ALIGNMENT` as what is copied, because weights from a
    file begin anywhere; elsewhere at one.

    Args:
        weights: Tensors in tuples, named or not, that may hold other tuples and plain values; copied.
        device: Where they will be used. For CUDA the memory is page-locked, as transfers beside computation want it.
        memory: Where the copy goes on CUDA; ``None`` makes an allocation of its own.
    """

    @torch.inference_mode(False)
    @torch.no_grad()
    def __init__(self, weights: T, device: torch.device, memory: HostMemory | None = None) -> None:
        tensors = list(_iterate(weights))
        self._places, self.nbytes = _lay_out(tensors, keep=device.type == "cpu")
        if device.type == "cuda":
            self.buffer = (memory or HostMemory(self.nbytes)).take(self.nbytes)
        else:
            self.buffer = torch.empty(self.nbytes, dtype=torch.uint8, device="cpu")
        """(bytes,) uint8, never written to again."""
        self.weights: T = self._fill(weights, self.buffer)
        """The weights, on the host."""
        for copy, tensor in zip(_iterate(self.weights), tensors, strict=True):
            copy.copy_(tensor)

    @torch.inference_mode(False)
    def view(self, buffer: Tensor) -> T:
        """Return the weights as they lie in a copy of ``buffer``, on whatever device that is.

        Args:
            buffer: uint8, at least ``nbytes`` long; what is behind them is not looked at.
        """
        return self._fill(self.weights, buffer)

    def _fill(self, weights: T, buffer: Tensor) -> T:
        places = iter(self._places)

        def view(_: Tensor) -> Tensor:
            place = next(places)
            # Not a view in autograd's sense: compilers would follow one back to the bytes it is of.
            empty = buffer.new_empty(0, dtype=place.dtype)
            start = buffer.storage_offset() + place.start
            return empty.set_(buffer.untyped_storage(), start // empty.itemsize, place.shape, place.stride)

        filled: T = _map(weights, view)
        return filled


def _align(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def _map(weights: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(weights, Tensor):
        return function(weights)
    if isinstance(weights, tuple):
        parts = [_map(part, function) for part in weights]
        return type(weights)(*parts) if hasattr(weights, "_fields") else tuple(parts)
    return weights


def _iterate(weights: Any) -> Iterator[Tensor]:
    if isinstance(weights, Tensor):
        yield weights
    elif isinstance(weights, tuple):
        for part in weights:
            yield from _iterate(part)


def _lay_out(tensors: list[Tensor], keep: bool) -> tuple[list[_Place], int]:
    """Give every tensor its place; returns the places, in the order of the tensors, and the bytes they take."""
    storages: dict[int, list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        storages[tensor.untyped_storage().data_ptr()].append(tensor)
    starts: dict[int, int] = {}
    size = 0
    for tensor in tensors:
        storage = tensor.untyped_storage()
        family = storages[storage.data_ptr()]
        # Weights fresh from a file may be parts of the whole file; these are no family.
        together = sum(one.nbytes for one in family) == storage.nbytes()
        if together and id(family[0]) in starts:
            starts[id(tensor)] = starts[id(family[0])] + tensor.data_ptr() - family[0].data_ptr()
            continue
        begin = storage.data_ptr() if together else tensor.data_ptr()
        size = _align(size) + (begin % _HOST_ALIGNMENT if keep else 0)
        starts[id(tensor)] = size + tensor.data_ptr() - begin
        size += storage.nbytes() if together else _span(tensor)
    return [_Place(starts[id(one)], one.shape, one.stride(), one.dtype) for one in tensors], size


def _span(tensor: Tensor) -> int:
    """Bytes from a tensor's first element to its last."""
    steps = sum((count - 1) * stride for count, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (1 + steps) * tensor.itemsize if tensor.numel() else 0
