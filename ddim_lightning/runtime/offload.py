"""The weights of the part of a model that works are on the device; the others wait in host memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ddim_lightning.runtime.host_memory import HostCopy

_CHUNK = 2**30


class Parkable(Protocol):
    """A `Parkable` is weights that can leave the device and come back."""

    def park(self) -> None:
        """Leave the device; does nothing when that has happened already."""
        ...

    def unpark(self) -> None:
        """Come to the device; does nothing when that has happened already."""
        ...


class Placement:
    """A `Placement` keeps the weights of one part on the device, and of no other.

    Args:
        device: The device.
        parts: What the parts consist of, by name; all parked.
    """

    def __init__(self, device: torch.device, parts: Mapping[str, Sequence[Parkable]]) -> None:
        self.device = device
        self.parts = parts
        self.current: str | None = None
        """The part whose weights are on the device."""

    def use(self, name: str | None) -> None:
        """Park all other parts, then bring one to the device.

        Args:
            name: The part; ``None`` only parks.
        """
        if name is not None and name == self.current:
            return
        self.current = None
        for other, part in self.parts.items():
            if other != name:
                for weights in part:
                    weights.park()
        if name is not None:
            for weights in self.parts[name]:
                weights.unpark()
        self.current = name

    def check(self, device: torch.device) -> None:
        """Raise a ValueError for another device than this: parked weights would come back to the old one."""
        if torch.empty(0, device=device).device != self.device:
            rule = f"a model loaded for {self.device} with parked weights cannot move; must be loaded anew"
            raise ValueError(f"offload: {rule}, got device {str(device)!r}")


class ParkedModule:
    """A `ParkedModule` keeps its frozen weights in host memory; they come to the device as copies.

    It is parked from the beginning, wherever its weights were before. Copies are dropped, not written back.

    Args:
        module: Its parameters and buffers are replaced by those of the host.
        device: Where it works.
        clear_cache: Called before weights change their place: whoever holds them lets go.
        chunk: Bytes of one piece of host memory, unless a single tensor is larger.
    """

    def __init__(
        self,
        module: nn.Module,
        device: torch.device,
        clear_cache: Callable[[], None] = lambda: None,
        chunk: int = _CHUNK,
    ) -> None:
        self.device, self.clear_cache = device, clear_cache
        self.parked = True
        self._chunks: list[tuple[list[Tensor], HostCopy[tuple[Tensor, ...]]]] = []
        clear_cache()
        for tensors in _divide(_list_tensors(module), chunk):
            copy = HostCopy(tuple(tensors), device)
            _point(tensors, copy.weights)
            self._chunks.append((tensors, copy))

    def park(self) -> None:
        """Let the weights be those on the host, and give the device memory back."""
        if not self.parked:
            self.clear_cache()
            for tensors, copy in self._chunks:
                _point(tensors, copy.weights)
            self.parked = True

    @torch.inference_mode(False)
    @torch.no_grad()
    def unpark(self) -> None:
        """Let the weights be copies on the device; where it has no room for them, all stay on the host."""
        if not self.parked:
            return
        self.parked = False
        self.clear_cache()
        try:
            for tensors, copy in self._chunks:
                buffer = torch.empty_like(copy.buffer, device=self.device)
                _point(tensors, copy.view(buffer.copy_(copy.buffer, non_blocking=True)))
        except BaseException:
            self.park()
            raise


class StreamedModule:
    """A `StreamedModule` stays in host memory; each of its layers is on the device while it computes, and no longer.

    Nothing travels ahead and no memory is page-locked: it is for modules that run a few times.

    Args:
        module: Its weights are frozen, and are moved to the host first.
        layers: Those of its modules that come one at a time; all others come now and stay until it is parked.
        device: Where it works.
    """

    def __init__(self, module: nn.Module, layers: Iterable[nn.Module], device: torch.device) -> None:
        nn.Module.to(module, "cpu")
        layers = list(layers)
        inside = {id(tensor) for layer in layers for tensor in _list_tensors(layer)}
        self._outside = [tensor for tensor in _list_tensors(module) if id(tensor) not in inside]
        self._on_host = [tensor.data for tensor in self._outside]
        _point(self._outside, [tensor.to(device) for tensor in self._on_host])
        self._hooks = [hook for layer in layers for hook in _stream_layer(layer, device)]

    def park(self) -> None:
        """Leave the device, and be an ordinary module on the host."""
        for hook in self._hooks:
            hook.remove()
        _point(self._outside, self._on_host)


def _stream_layer(layer: nn.Module, device: torch.device) -> tuple[RemovableHandle, RemovableHandle]:
    """Bring a layer's weights to the device when it is called; once it is done, or failed, they are the host's."""
    tensors = _list_tensors(layer)
    on_host = [tensor.data for tensor in tensors]
    return (
        layer.register_forward_pre_hook(lambda *_: _point(tensors, [tensor.to(device) for tensor in on_host])),
        layer.register_forward_hook(lambda *_: _point(tensors, on_host), always_call=True),
    )


def _list_tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _divide(tensors: Sequence[Tensor], chunk: int) -> Iterator[list[Tensor]]:
    """Divide tensors, in their order, into lists of at most ``chunk`` bytes or one storage."""
    # Parts of one storage stay together: together they may be one matrix.
    order = {tensor.untyped_storage().data_ptr(): k for k, tensor in reversed(list(enumerate(tensors)))}
    gathered: list[Tensor] = []
    size = 0
    for tensor in sorted(tensors, key=lambda one: order[one.untyped_storage().data_ptr()]):
        kin = bool(gathered) and gathered[-1].untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()
        if gathered and size + tensor.nbytes > chunk and not kin:
            yield gathered
            gathered, size = [], 0
        gathered.append(tensor)
        size += tensor.nbytes
    if gathered:
        yield gathered


@torch.inference_mode(False)
def _point(tensors: Sequence[Tensor], at: Sequence[Tensor]) -> None:
    for tensor, other in zip(tensors, at, strict=True):
        tensor.data = other
