"""Keys and values of a pass are held for passes to come: on the device, on the host, or in 8 bits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ddim_lightning.network.attention import KeyValue
from ddim_lightning.runtime.host_memory import HostCopy
from ddim_lightning.runtime.streaming import WeightStream

Storage = Literal["device", "host", "fp8"]
"""Where held keys and values wait: on the device as they are, on the host as they are, on the device in 8 bits."""

_FP8 = torch.float8_e4m3fn
_FP8_MAX = 448.0


class Held(ABC):
    """A `Held` is the keys and values of every layer of a pass; they are let go of with it."""

    rows: int
    """How many rows the pass had."""
    nbytes: int
    """What it takes, in bytes, where it waits."""

    @abstractmethod
    def __getitem__(self, layer: int) -> KeyValue:
        """Return the keys and values of a layer, on the device, in the dtype that they were made in."""

    @abstractmethod
    def __iter__(self) -> Iterator[KeyValue]:
        """Yield those of every layer, in order; each may be used until the next one is asked for."""


class HeldOnDevice(Held):
    """A `HeldOnDevice` keeps keys and values as they are.

    Args:
        layers: Keys and values of every layer; copied, for they may be parts of what is larger.
    """

    def __init__(self, layers: Iterable[KeyValue]) -> None:
        # Queries, keys and values are one product, of which a view would keep all.
        self._layers = [(_copy(key), _copy(value)) for key, value in layers]
        self.rows = self._layers[0][0].shape[0]
        self.nbytes = sum(part.nbytes for layer in self._layers for part in layer)

    def __getitem__(self, layer: int) -> KeyValue:
        return self._layers[layer]

    def __iter__(self) -> Iterator[KeyValue]:
        return iter(self._layers)


class HeldOnHost(Held):
    """A `HeldOnHost` keeps keys and values in host memory; those of a layer come while the one before it computes.

    Args:
        layers: Keys and values of every layer, on the device where they will be used.
    """

    def __init__(self, layers: Iterable[KeyValue]) -> None:
        self._copies: list[HostCopy[KeyValue]] = []
        for key, value in layers:
            self._device = key.device
            self._copies.append(HostCopy((_copy(key), _copy(value)), key.device))
        self._stream = WeightStream(self._copies, self._device)
        self.rows = self._copies[0].weights[0].shape[0]
        self.nbytes = sum(copy.nbytes for copy in self._copies)

    def __getitem__(self, layer: int) -> KeyValue:
        copy = self._copies[layer]
        return copy.view(copy.buffer.to(self._device, non_blocking=True))

    def __iter__(self) -> Iterator[KeyValue]:
        return iter(self._stream)


class _Scaled(NamedTuple):
    """A `_Scaled` tensor is one of 8-bit floats, what they have to be multiplied by, and the dtype that it was of."""

    values: Tensor
    scale: Tensor
    dtype: torch.dtype


class HeldInFp8(Held):
    """A `HeldInFp8` keeps keys and values as 8-bit floats, each tensor scaled to their range; no longer exact.

    Args:
        layers: Keys and values of every layer.

    Source: Micikevicius et al. 2022, "FP8 formats for deep learning", arXiv:2209.05433.
    """

    def __init__(self, layers: Iterable[KeyValue]) -> None:
        self._layers = [(_scale(key), _scale(value)) for key, value in layers]
        self.rows = self._layers[0][0].values.shape[0]
        self.nbytes = sum(part.values.nbytes for layer in self._layers for part in layer)

    def __getitem__(self, layer: int) -> KeyValue:
        key, value = self._layers[layer]
        return _unscale(key), _unscale(value)

    def __iter__(self) -> Iterator[KeyValue]:
        return map(self.__getitem__, range(len(self._layers)))


_KINDS: dict[Storage, type[HeldOnDevice | HeldOnHost | HeldInFp8]] = {
    "device": HeldOnDevice,
    "host": HeldOnHost,
    "fp8": HeldInFp8,
}


def hold_layers(layers: Iterable[KeyValue], storage: Storage) -> Held:
    """Hold keys and values of every layer, (rows, tokens, heads, channels) each.

    Args:
        layers: Made one after the other, so that with ``host`` those of no more than a layer are on the device.
        storage: Where they wait.

    Raises:
        ValueError: Keys and values that want gradients anywhere but on the device.
    """
    return _KINDS[storage](layers if storage == "device" else _refuse_gradients(layers, storage))


@dataclass(frozen=True)
class HeldRows:
    """The `HeldRows` say what the rows of a pass attend to of passes before it.

    Args:
        held: Of one or several passes.
        rows: For each row of the pass the held row, counted over all of ``held``.
    """

    held: Sequence[Held]
    rows: tuple[int, ...]

    def __getitem__(self, layer: int) -> KeyValue:
        """Return keys and values of a layer, of all held rows."""
        return _join([held[layer] for held in self.held])

    def __iter__(self) -> Iterator[KeyValue]:
        """Yield those of every layer, in order."""
        return map(_join, zip(*self.held, strict=True))


def _join(pairs: Sequence[KeyValue]) -> KeyValue:
    keys, values = zip(*pairs, strict=True)
    return (keys[0], values[0]) if len(pairs) == 1 else (torch.cat(keys), torch.cat(values))


def _copy(tensor: Tensor) -> Tensor:
    return tensor.clone(memory_format=torch.contiguous_format)


def _scale(tensor: Tensor) -> _Scaled:
    largest = tensor.abs().amax().float().clamp(min=torch.finfo(torch.float32).tiny)
    scale = largest / _FP8_MAX
    return _Scaled((tensor.float() / scale).to(_FP8), scale, tensor.dtype)


def _unscale(scaled: _Scaled) -> Tensor:
    return (scaled.values.float() * scaled.scale).to(scaled.dtype)


def _refuse_gradients(layers: Iterable[KeyValue], storage: Storage) -> Iterator[KeyValue]:
    for key, value in layers:
        if key.requires_grad or value.requires_grad:
            raise ValueError(f"context: must be device where latents want gradients, got {storage!r}")
        yield key, value
