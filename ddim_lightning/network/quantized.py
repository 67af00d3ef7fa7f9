"""The large products of the blocks are made in 8-bit floats, beside the exact ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor

from ddim_lightning.network.adapters import Linear, read_change, read_state
from ddim_lightning.network.network import Network
from ddim_lightning.network.weights import BlockWeights, Modulation, list_projections

FP8_CAPABILITY = (8, 9)
"""The first compute capability with products of 8-bit floats (Ada; Hopper is 9.0)."""

_FP8 = torch.float8_e4m3fn
_FP8_MAX = 448.0
_FP8_MULTIPLE = 16

_CHUNK = 2**25
"""Values that are divided at a time, 128 MiB of float32."""


class Fp8Linear(NamedTuple):
    """An `Fp8Linear` is a linear layer that multiplies 8-bit floats; every token is scaled to their range.

    Args:
        weight: (out, in) float8_e4m3fn.
        scale: (out,) float32, > 0: what a row has to be multiplied by.
        bias: (out,), or ``None``.

    Source: Micikevicius et al. 2022, "FP8 formats for deep learning", arXiv:2209.05433; a scale for each token and
    each output as in torchao's ``PerRow``.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        """Apply it to (..., in); the result has the dtype of ``x`` and the precision of bfloat16, the kernel's."""
        tokens, scale = _quantize_rows(x.reshape(-1, x.shape[-1]))
        product = torch._scaled_mm(
            tokens,
            self.weight.t(),
            scale_a=scale,
            scale_b=self.scale[None],
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )
        output: Tensor = product.to(x.dtype).unflatten(0, x.shape[:-1])
        return output if self.bias is None else output.add_(self.bias)

    def take(self, start: int, stop: int | None = None) -> Fp8Linear:
        """Return the part that makes the outputs from ``start`` to ``stop``, without a copy."""
        return Fp8Linear(self.weight[start:stop], self.scale[start:stop], _cut(self.bias, start, stop))


def check_fp8(device: torch.device) -> None:
    """Raise a ValueError unless a device multiplies 8-bit floats."""
    found = device.type
    if device.type == "cuda" and torch.version.cuda is not None:
        capability = torch.cuda.get_device_capability(device)
        if capability >= FP8_CAPABILITY:
            return
        found = f"{torch.cuda.get_device_name(device)} with {capability[0]}.{capability[1]}"
    least = ".".join(map(str, FP8_CAPABILITY))
    raise ValueError(f"precision: fp8 needs a CUDA device of compute capability {least} or more, got {found}")


@torch.no_grad()
def quantize_block(weights: BlockWeights) -> BlockWeights:
    """Bring the large products of a block to 8 bits: query, key and value, and the feed-forward part.

    The projection behind the attention stays as it is, and so does all that is no part of a block's products: patches,
    timestep, norms.

    Args:
        weights: Weights of the block, as gathered.

    Raises:
        ValueError: A projection whose sizes the kernel cannot take.
    """
    # What `gather_block` makes is plain.
    qkv, up, down = (quantize_fp8(cast(Linear, part)) for part in (weights.qkv, weights.up, weights.down))
    return weights._replace(qkv=qkv, up=up, down=down)


def quantize_fp8(layer: Linear) -> Fp8Linear:
    """Scale each row of a weight so that its largest is 448, the largest of the format, and round to the nearest.

    No weight moves by more than a sixteenth of itself, or 2^-10 scales where it is less than 2^-6 of them.

    Raises:
        ValueError: A size that is no multiple of 16.
    """
    if any(size % _FP8_MULTIPLE for size in layer.weight.shape):
        rule = f"fp8 needs projections whose sizes are multiples of {_FP8_MULTIPLE}"
        raise ValueError(f"precision: {rule}, got {tuple(layer.weight.shape)}")
    weight, scale = _quantize_rows(layer.weight)
    return Fp8Linear(weight, scale[:, 0], layer.bias)


def _quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows whose largest magnitude is 448, in 8 bits, and their float32 scales (rows, 1).

    They are divided in float32, which a compiler does on the way. Without one it takes memory, four times that of the
    result, so that only some rows are divided at a time.
    """
    # A maximum is exact in any dtype. The norm is that of the magnitudes, which `abs` would write down first.
    largest = torch.linalg.vector_norm(x, math.inf, dim=1, keepdim=True).float()
    scale = (largest / _FP8_MAX).clamp(min=torch.finfo(torch.float32).tiny)
    if torch.compiler.is_compiling():
        return (x / scale).to(_FP8), scale
    quantized = torch.empty_like(x, dtype=_FP8, memory_format=torch.contiguous_format)
    count = max(1, _CHUNK // x.shape[1])
    for part in map(slice, range(0, len(x), count), range(count, len(x) + count, count)):
        quantized[part] = x[part] / scale[part]
    return quantized, scale


def _cut(bias: Tensor | None, start: int, stop: int | None) -> Tensor | None:
    return None if bias is None else bias[start:stop]


class QuantizedNetwork(Network):
    """A `QuantizedNetwork` is a `Network` over the same model that multiplies 8-bit floats.

    The exact weights stay: the other stages run on them, and from them those in 8 bits are made anew where they change
    or move. What a timestep decides is shared with the exact network.

    Args:
        exact: The network as loaded.

    Raises:
        ValueError: A projection whose sizes the kernel cannot take.
    """

    def __init__(self, exact: Network) -> None:
        super().__init__(exact.transformer, exact.attention, exact.context)
        self.exact = exact
        self._quantized: list[BlockWeights] = []
        self._quantized_from: list[object] = []
        _ = self.blocks  # a model that cannot be brought to 8 bits is found out while it is loaded

    @property
    def blocks(self) -> Sequence[BlockWeights]:
        """The weights of all blocks, brought to 8 bits anew where those of the model were changed or moved."""
        exact = list(self.exact.blocks)
        modules = self.transformer.transformer_blocks
        layers = [layer for block in modules for layer in list_projections(block).values()]
        changes = [read_change(weight) for layer in layers for weight in layer.parameters()]
        if (state := [*read_state(layers), *changes]) != self._quantized_from:
            self._quantized = []  # or both would be in memory
            with torch.inference_mode(False):
                self._quantized = [quantize_block(weights) for weights in exact]
            self._quantized_from = state
        return self._quantized

    def start_stage(self, timesteps: tuple[int, ...] = ()) -> None:
        """Bring the weights to 8 bits anew in the next pass; see `Network.start_stage`."""
        self._quantized_from = []
        self.exact.start_stage(timesteps)

    def get_modulation(self, timestep: int) -> Modulation:
        """Return what a timestep decides; see `Network.get_modulation`."""
        return self.exact.get_modulation(timestep)
