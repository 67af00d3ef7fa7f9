"""Waits of the host for the device are answered, and named by kind, line, stage and step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from .lines import Place, find_place

aten = torch.ops.aten


class Wait(NamedTuple):
    """A `Wait` is something that the host asked of the device and had to wait for.

    Args:
        kind: What was asked, such as ``item`` or ``copy to the host``.
        place: The line.
        stage: In which it was.
        in_step: Whether it was between two steps of a loop: the first step may bring tables to the device.
    """

    kind: str
    place: Place
    stage: str
    in_step: bool


class Waits:
    """The `Waits` count the waits of the host."""

    def __init__(self) -> None:
        self.counts: Counter[Wait] = Counter()
        self.stage = "start"
        self.in_step = False

    def enter(self, stage: str, in_step: bool = False) -> None:
        """Say what begins."""
        self.stage, self.in_step = stage, in_step

    def note(self, kind: str, waits: bool) -> None:
        """Count a wait where there is one."""
        if waits:
            self.counts[Wait(kind, find_place(), self.stage, self.in_step)] += 1

    def list_in_steps(self) -> dict[Wait, int]:
        """Return the waits between the steps of a loop, and how often they came."""
        return {wait: count for wait, count in self.counts.items() if wait.in_step}


def answer_wait(waits: Waits, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Answer an operation that the host may have to wait for; `NotImplemented` for all others.

    The answers are numbers of one, ``True``, tensors of zeros, and as many elements as there may be.
    """
    return _ANSWERS[func](waits, args, kwargs) if func in _ANSWERS else NotImplemented


def _answer_item(waits: Waits, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool | int | float:
    (tensor,) = args
    waits.note("item", lies_on_device(tensor))
    return True if tensor.dtype == torch.bool else 1.0 if tensor.is_floating_point() else 1


def _answer_equal(waits: Waits, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    waits.note("equal", any(map(lies_on_device, args)))
    return True


def _answer_nonzero(waits: Waits, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    (tensor,) = args
    waits.note("nonzero", lies_on_device(tensor))
    return torch.Tensor.new_empty(tensor, (tensor.numel(), tensor.ndim), dtype=torch.int64)


def _answer_to(waits: Waits, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    tensor, device = args[0], kwargs.get("device")
    if device is None or (torch.device(device).type == "cuda") == lies_on_device(tensor):
        return NotImplemented  # stays where it is
    if not lies_on_device(tensor):
        waits.note("copy from pageable memory", not (kwargs.get("non_blocking") and _is_pinned(tensor)))
        return NotImplemented
    waits.note("copy to the host", not kwargs.get("non_blocking"))
    return torch.zeros(tensor.shape, dtype=kwargs.get("dtype") or tensor.dtype, device="cpu")


def _answer_copy(waits: Waits, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    target, source, *rest = args
    non_blocking = bool(rest[0]) if rest else bool(kwargs.get("non_blocking"))
    if lies_on_device(source) and not lies_on_device(target):
        waits.note("copy to the host", not (non_blocking and _is_pinned(target)))
        return NotImplemented if isinstance(target, FakeTensor) else target
    if lies_on_device(target) and not isinstance(source, FakeTensor) and source.ndim:
        waits.note("copy from pageable memory", True)  # whatever was asked for: the driver reads it before it returns
    return NotImplemented


def _answer_index(waits: Waits, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    tensor, indices, *values = args
    for index in indices:
        if isinstance(index, Tensor) and index.dtype == torch.bool:
            # How many they are is found out, but where one value goes to all of them.
            waits.note("nonzero", lies_on_device(index) and not (values and values[0].numel() == 1))
        elif isinstance(index, Tensor):
            waits.note("copy from pageable memory", lies_on_device(tensor) and not isinstance(index, FakeTensor))
    return NotImplemented


_ANSWERS: dict[Any, Callable[[Waits, Sequence[Any], Mapping[str, Any]], Any]] = {
    aten._local_scalar_dense.default: _answer_item,
    aten.equal.default: _answer_equal,
    aten.nonzero.default: _answer_nonzero,
    aten._to_copy.default: _answer_to,
    aten.copy_.default: _answer_copy,
    aten.index.Tensor: _answer_index,
    aten.index_put.default: _answer_index,
    aten.index_put_.default: _answer_index,
}


def lies_on_device(tensor: Tensor) -> bool:
    """Whether a tensor is the device's."""
    return isinstance(tensor, FakeTensor) and tensor.fake_device.type == "cuda"


def _is_pinned(tensor: Tensor) -> bool:
    """Whether a tensor of the host is in page-locked memory, which alone has no values."""
    return isinstance(tensor, FakeTensor)
