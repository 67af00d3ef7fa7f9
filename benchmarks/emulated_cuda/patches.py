"""PyTorch's functions that would ask a driver answer for the emulated device."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from .ledger import Ledger
from .waits import Waits, lies_on_device

NAME = "emulated GPU"


class Stream:
    """A `Stream` is a queue of work; here work is done when it is asked for."""

    def __init__(self, device: Any = None, **_: Any) -> None:
        self.device = device

    def wait_stream(self, stream: Stream) -> None:
        """Do nothing."""

    def wait_event(self, event: Event) -> None:
        """Do nothing."""

    def synchronize(self) -> None:
        """Wait for the device."""
        torch.cuda.synchronize()

    def record_event(self, event: Event | None = None) -> Event:
        """Record an event."""
        event = event or Event()
        event.record()
        return event


class Event:
    """An `Event` is a mark in a stream."""

    def __init__(self, **_: Any) -> None:
        self.at = 0.0

    def record(self, stream: Stream | None = None) -> None:
        """Mark now."""
        self.at = time.perf_counter()

    def elapsed_time(self, other: Event) -> float:
        """Return the milliseconds to another mark: the time of the emulation, not of a GPU."""
        return (other.at - self.at) * 1e3

    def synchronize(self) -> None:
        """Wait for the device."""
        torch.cuda.synchronize()

    def wait(self, stream: Stream | None = None) -> None:
        """Do nothing."""

    def query(self) -> bool:
        """Say that all work is done."""
        return True


class Generator(torch.Generator):
    """A `Generator` draws nothing on the device, whose tensors have no values; on the host it is what it was."""

    on_device = False
    """Whether one was made for the device: operations are not told which one they are given."""

    def __new__(cls, device: Any = "cpu") -> Generator:
        """Make one that lies on the host."""
        Generator.on_device |= torch.device(device).type == "cuda"
        return super().__new__(cls)


@contextlib.contextmanager
def patched_torch(memory: Ledger, waits: Waits, total: int, taken: int, capability: tuple[int, int]) -> Iterator[None]:
    """Let `torch.cuda` and what tensors say of their memory answer for the emulated device.

    Args:
        memory: Of the device.
        waits: Of the host for the device.
        total: Bytes that the device has.
        taken: Bytes of them that are not for us.
        capability: Its compute capability.
    """
    # Both are what PyTorch itself does for fake tensors on a machine without a driver.
    torch._C._ensureCUDADeviceGuardSet()
    lifts = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)
    current = Stream()
    Generator.on_device = False
    cuda = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "synchronize": lambda device=None: waits.note("synchronize", True),
        "empty_cache": lambda: None,
        "ipc_collect": lambda: None,
        "is_initialized": lambda: True,
        "_lazy_init": lambda: None,
        "_exchange_device": lambda device: 0,
        "_maybe_exchange_device": lambda device: 0,
        "Stream": Stream,
        "Event": Event,
        "current_stream": lambda device=None: current,
        "default_stream": lambda device=None: current,
        "stream": lambda stream: contextlib.nullcontext(),
        "get_device_name": lambda device=None: NAME,
        "get_device_capability": lambda device=None: capability,
        "get_device_properties": lambda device=None: SimpleNamespace(
            name=NAME, major=capability[0], minor=capability[1], total_memory=total, multi_processor_count=132
        ),
        "memory_allocated": lambda device=None: memory.current,
        "max_memory_allocated": lambda device=None: memory.since_reset,
        "memory_reserved": lambda device=None: memory.current,
        "max_memory_reserved": lambda device=None: memory.since_reset,
        "reset_peak_memory_stats": lambda device=None: memory.reset(),
        "reset_accumulated_memory_stats": lambda device=None: None,
        "mem_get_info": lambda device=None: (max(0, total - taken - memory.current), total),
    }

    def tell(tensor: FakeTensor, **named: Any) -> str:
        waits.note("print", lies_on_device(tensor))
        told: str = _real_repr(tensor, **named)
        return told

    tensors = [
        (FakeTensor, "__repr__", tell),
        (FakeTensor, "data_ptr", _address),
        (FakeTensor, "record_stream", lambda tensor, stream: None),
        (torch.UntypedStorage, "data_ptr", _storage_address),
        (torch.Tensor, "data", property(_get_data, _set_data)),
        (torch.Tensor, "pin_memory", _pin),
        # Modules that move keep their parameters, which are made over in place.
        (torch.__future__, "get_swap_module_params_on_conversion", lambda: True),
        (torch, "Generator", Generator),
        (torch.version, "cuda", torch.version.cuda or "13.0"),
    ]
    with contextlib.ExitStack() as stack:
        for name, value in cuda.items():
            stack.enter_context(patch.object(torch.cuda, name, value))
        for owner, name, new in tensors:
            stack.enter_context(patch.object(owner, name, new))
        try:
            yield
        finally:
            torch._C._set_only_lift_cpu_tensors(lifts)


_real_storage_address = torch.UntypedStorage.data_ptr
_real_data: Any = torch._C.TensorBase.data
_real_repr: Any = FakeTensor.__repr__


def _storage_address(storage: torch.UntypedStorage) -> int:
    """Return the address of a storage; one without memory has one that no other has, either."""
    return storage._cdata << 44 if storage.device.type == "meta" else _real_storage_address(storage)


def _address(tensor: Tensor) -> int:
    return _storage_address(tensor.untyped_storage()) + int(tensor.storage_offset()) * tensor.itemsize


def _get_data(tensor: Tensor) -> Tensor:
    data: Tensor = _real_data.__get__(tensor)
    return data


def _set_data(tensor: Tensor, other: Tensor) -> None:
    """Let a tensor be another one, also across devices, as it can be between real ones."""
    if isinstance(tensor, FakeTensor) and isinstance(other, FakeTensor):
        _real_data.__set__(tensor, other)
        tensor.fake_device = other.fake_device
    elif isinstance(tensor, FakeTensor) or isinstance(other, FakeTensor):
        new = other.detach().requires_grad_(tensor.requires_grad)
        if isinstance(tensor, torch.nn.Parameter):
            new = torch.nn.Parameter(new, requires_grad=tensor.requires_grad)
        torch.utils.swap_tensors(tensor, new)
    else:
        _real_data.__set__(tensor, other)


def _pin(tensor: Tensor, *_: Any) -> Tensor:
    pinned = torch.empty_like(tensor, device="cpu", pin_memory=True)
    return pinned.copy_(tensor)
