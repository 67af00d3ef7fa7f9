"""The weights of a transformer as plain tensors, gathered once, for a forward pass of our own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch
from diffusers import CogVideoXTransformer3DModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.nn.functional import linear


class Projection(Protocol):
    """A linear layer, in whatever precision it computes."""

    def __call__(self, x: Tensor) -> Tensor:
        """Apply it to (..., in), giving (..., out)."""
        ...


class Linear(NamedTuple):
    """A linear layer in the dtype of its input.

    Args:
        weight: (out, in).
        bias: (out,) or ``None``.
    """

    weight: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        """Apply it to (..., in)."""
        return linear(x, self.weight, self.bias)

    def rows(self, start: int, stop: int) -> Linear:
        """Return the part that makes outputs ``start`` to ``stop``, without a copy."""
        return Linear(self.weight[start:stop], None if self.bias is None else self.bias[start:stop])


class Affine(NamedTuple):
    """Weight and bias of a layer norm, (width,) each, ``None`` where it has none, and its epsilon."""

    weight: Tensor | None
    bias: Tensor | None
    eps: float


class BlockWeights(NamedTuple):
    """One block.

    Args:
        heads: Attention heads.
        eps: Of the norm before attention, and of that before the feed-forward part; their weights are part of the
            modulation.
        query: (width, width).
        key_value: (2 width, width), keys first.
        norm_query: Over the channels of a head.
        norm_key: Likewise.
        out: After attention.
        up: Into the feed-forward part.
        down: Out of it.
    """

    heads: int
    eps: tuple[float, float]
    query: Projection
    key_value: Projection
    qkv: Projection
    norm_query: Affine
    norm_key: Affine
    out: Projection
    up: Projection
    down: Projection
