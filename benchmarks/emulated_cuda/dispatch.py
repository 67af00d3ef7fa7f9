"""Operations are carried out on tensors of the device without values: shapes, dtypes, strides and storages alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from .ledger import Ledger
from .outcomes import Outcomes
from .patches import Generator
from .rules import attend, check_dtypes
from .waits import Waits, answer_wait, lies_on_device

aten = torch.ops.aten


class EmulatedDispatch(TorchDispatchMode):
    """An `EmulatedDispatch` carries out what PyTorch is asked for while it is entered.

    Tensors on ``cuda`` are fake tensors. Tensors on the CPU stay real, so that the host decides as it always does; but
    page-locked memory has no values either, nor have weights that were moved there from the device.

    Args:
        memory: Of the device.
        pinned: Page-locked memory of the host.
        waits: Of the host for the device.
    """

    def __init__(self, memory: Ledger, pinned: Ledger, waits: Waits) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.memory, self.pinned, self.waits = memory, pinned, waits
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.outcomes = Outcomes(self.fake)

    def __torch_dispatch__(
        self, func: Any, types: Sequence[Any], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Carry out an operation: on the host as ever, on the device without values."""
        kwargs = dict(kwargs or {})
        if func is torch.ops.prim.device.default:
            return args[0].fake_device
        tensors = list(_iterate_tensors((*args, *kwargs.values())))
        if kwargs.pop("pin_memory", None):
            return self._pin(func, args, kwargs)
        named = kwargs.get("device") or next((one for one in args if isinstance(one, torch.device)), None)
        if not is_cuda(named) and not any(isinstance(tensor, FakeTensor) for tensor in tensors):
            return func(*args, **kwargs)
        if kwargs.get("generator") is not None and not Generator.on_device:
            raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
        if func.is_view and not _is_composite(func):
            return self.outcomes.view(func, args, kwargs)
        made = self._decompose(func, args, kwargs)
        if made is NotImplemented:
            made = answer_wait(self.waits, func, args, kwargs)
        return self._run(func, args, kwargs, tensors) if made is NotImplemented else made

    def _decompose(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Carry out what is made of other operations one by one.

        Under inference mode they come whole, and would hide what they allocate on their way.
        """
        with self:
            if func is aten.scaled_dot_product_attention.default:
                return attend(*args, **kwargs)
            if not _is_composite(func):
                return NotImplemented
            # The kernel that runs on a GPU. Some have another one for fake tensors, which computes in float32.
            return func._op_dk(torch._C.DispatchKey.CompositeImplicitAutograd, *args, **kwargs)

    def _run(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], tensors: Sequence[Tensor]) -> Any:
        check_dtypes(func, tensors)

        def work_out() -> Any:
            # PyTorch remembers its outcomes with their arguments: a storage among them would live forever.
            self.fake.cache_enabled = func is not aten.set_.source_Storage_storage_offset
            with self.fake:
                return func(*map(_blank, args), **{name: _blank(value) for name, value in kwargs.items()})

        made = self.outcomes.find(func, args, kwargs, work_out)
        for tensor in _iterate_tensors((made,)):
            if lies_on_device(tensor):
                self.memory.add(tensor)
        return made

    def _pin(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
        if is_cuda(kwargs.get("device")):
            raise RuntimeError(f"{func}: only dense CPU tensors can be pinned")
        with self.fake:
            buffer: Tensor = func(*args, **kwargs)
        self.pinned.add(buffer)
        return buffer


def is_cuda(device: Any) -> bool:
    """Whether an argument names the device."""
    return device is not None and torch.device(device).type == "cuda"


def _iterate_tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _iterate_tensors(value)


@cache
def _is_composite(func: Any) -> bool:
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"))


def _blank(value: Any) -> Any:
    """Return a real tensor as one without values, so that nothing of it is computed."""
    if isinstance(value, Tensor) and not isinstance(value, FakeTensor):
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)
    if isinstance(value, list | tuple):
        return type(value)(map(_blank, value))
    return value
