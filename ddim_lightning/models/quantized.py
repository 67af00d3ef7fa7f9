"""Linear layers of a block in 8 bits: weights as integers, or weights and activations as 8-bit floats."""

from __future__ import annotations

from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn.functional import linear

from ddim_lightning.models.weights import BlockWeights, Linear

Precision = Literal["none", "int8", "fp8"]
PRECISIONS: tuple[Precision, ...] = ("none", "int8", "fp8")
"""``none``: as loaded. ``int8``: `Int8Linear`. ``fp8``: `Fp8Linear`."""

FP8_CAPABILITY = (8, 9)
"""The first compute capability with products of 8-bit floats (Ada; Hopper is 9.0)."""

_INT8_MAX = 127.0
_FP8 = torch.float8_e4m3fn
_FP8_MAX = 448.0
_FP8_MULTIPLE = 16


class Int8Linear(NamedTuple):
    """A linear layer whose weight is kept in integers, and which computes in the dtype of its scale.

    It takes half the memory of bfloat16 and no less time: the weight is brought back for each product.

    Args:
        weight: (out, in) int8, -127 .. 127.
        scale: (out,), > 0: what one unit of a row stands for.
        bias: (out,), or ``None``.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        """Apply it to (..., in)."""
        # Scaled before the product: sums of 127 times an activation would leave the range of float16.
        return linear(x, self.dequantize(), self.bias)

    def take(self, start: int, stop: int | None = None) -> Int8Linear:
        """Return the part that makes the outputs from ``start`` to ``stop``, without a copy."""
        return Int8Linear(self.weight[start:stop], self.scale[start:stop], _cut(self.bias, start, stop))

    def dequantize(self) -> Tensor:
        """Return the weight that it multiplies by, (out, in) in the dtype of the scale."""
        return self.weight.to(self.scale.dtype) * self.scale[:, None]


class Fp8Linear(NamedTuple):
    """A linear layer that multiplies 8-bit floats; every token is scaled to their range when it comes.

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
        tokens, scale = _scale_rows(x.reshape(-1, x.shape[-1]), _FP8_MAX)
        product = torch._scaled_mm(
            tokens.to(_FP8),
            self.weight.t(),
            scale_a=scale,
            scale_b=self.scale[None],
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )
        output: Tensor = product.to(x.dtype).unflatten(0, x.shape[:-1])
        return output if self.bias is None else output + self.bias

    def take(self, start: int, stop: int | None = None) -> Fp8Linear:
        """Return the part that makes the outputs from ``start`` to ``stop``, without a copy."""
        return Fp8Linear(self.weight[start:stop], self.scale[start:stop], _cut(self.bias, start, stop))

    def dequantize(self) -> Tensor:
        """Return the weight that it multiplies by, (out, in) float32."""
        return self.weight.float() * self.scale[:, None]


def check_precision(precision: str, device: torch.device | None = None) -> None:
    """Find out whether linear layers can run in a precision.

    Args:
        precision: One of `PRECISIONS`.
        device: Where; ``None`` checks the name alone.

    Raises:
        ValueError: Another name, or ``fp8`` on a device without products of 8-bit floats.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision: must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if precision != "fp8" or device is None:
        return
    found = device.type
    if device.type == "cuda" and torch.version.cuda is not None:
        capability = torch.cuda.get_device_capability(device)
        if capability >= FP8_CAPABILITY:
            return
        found = f"{torch.cuda.get_device_name(device)} with {capability[0]}.{capability[1]}"
    least = ".".join(map(str, FP8_CAPABILITY))
    raise ValueError(f"precision: fp8 needs a CUDA device of compute capability {least} or more, got {found}")


@torch.no_grad()
def quantize_block(weights: BlockWeights, precision: Precision) -> BlockWeights:
    """Bring the large products of a block to 8 bits: query, key and value, and the feed-forward part.

    The projection behind the attention stays as it is, and so does all that is no part of a block's products: patches,
    timestep, norms.

    Args:
        weights: Of the block, as gathered.
        precision: ``none`` returns them as they are.

    Raises:
        ValueError: For ``fp8``, a projection whose sizes the kernel cannot take.
    """
    if precision == "none":
        return weights
    quantize = quantize_int8 if precision == "int8" else quantize_fp8
    # What `gather_block` makes is plain.
    qkv, up, down = (quantize(cast(Linear, part)) for part in (weights.qkv, weights.up, weights.down))
    return weights._replace(qkv=qkv, up=up, down=down)


def quantize_int8(layer: Linear) -> Int8Linear:
    """Round each row of a weight to the nearest of 255 values that lie evenly between minus and plus its largest.

    No weight moves by more than half a scale. The scale is rounded to the weight's dtype first, and the integers are
    found for the rounded one.
    """
    largest = layer.weight.float().abs().amax(dim=1)
    scale = (largest / _INT8_MAX).to(layer.weight.dtype)
    scale = torch.where(scale > 0.0, scale, torch.ones_like(scale))  # a row of zeros
    units = layer.weight.float() / scale.float()[:, None]
    weight = units.round().clamp(-_INT8_MAX, _INT8_MAX).to(torch.int8)
    return Int8Linear(weight, scale, layer.bias)


def quantize_fp8(layer: Linear) -> Fp8Linear:
    """Scale each row of a weight so that its largest is 448, the largest of the format, and round to the nearest.

    No weight moves by more than a sixteenth of itself, or 2^-10 scales where it is less than 2^-6 of them.

    Raises:
        ValueError: A size that is no multiple of 16.
    """
    if any(size % _FP8_MULTIPLE for size in layer.weight.shape):
        rule = f"fp8 needs projections whose sizes are multiples of {_FP8_MULTIPLE}"
        raise ValueError(f"precision: {rule}, got {tuple(layer.weight.shape)}")
    scaled, scale = _scale_rows(layer.weight, _FP8_MAX)
    return Fp8Linear(scaled.to(_FP8), scale[:, 0], layer.bias)


def _scale_rows(x: Tensor, largest: float) -> tuple[Tensor, Tensor]:
    """Return rows with ``largest`` as their largest magnitude, and their scales (rows, 1), both in float32."""
    x = x.float()
    scale = (x.abs().amax(dim=1, keepdim=True) / largest).clamp(min=torch.finfo(torch.float32).tiny)
    return x / scale, scale


def _cut(bias: Tensor | None, start: int, stop: int | None) -> Tensor | None:
    return None if bias is None else bias[start:stop]
