"""The products of a block are made by whichever library is faster at them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.utils.flop_counter import register_flop_formula

_HAS_ONEDNN = torch.backends.mkldnn.is_available()
_OPERATOR = "ddim_lightning::multiply"


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Apply a linear layer, as `torch.nn.functional.linear` does.

    PyTorch gives products of float32 on a CPU to MKL, and those of bfloat16 to oneDNN, which is twice as fast on AMD
    processors in float32, too. It has no gradients. Exported graphs keep PyTorch's own operator, for they are to run
    anywhere.

    Args:
        x: (..., in).
        weight: (out, in), same dtype.
        bias: (out,), or ``None``.

    Returns:
        (..., out); both libraries give the same numbers within rounding.
    """
    if x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_grad_enabled() or not _HAS_ONEDNN:
        return linear(x, weight, bias)
    # PyTorch 2.11 says so of all that it compiles, which costs time and no more.
    if torch.compiler.is_exporting() or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return linear(x, weight, bias)
    product: Tensor = torch.ops.ddim_lightning.multiply(x, weight, bias)
    return product


def _multiply_by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")
    return product


def _make_fake(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _count_flops(x: Sequence[int], weight: Sequence[int], *_: Any, **__: Any) -> int:
    """Count a multiplication and an addition for each weight and token, given shapes."""
    return 2 * math.prod(x) * weight[0]


# An operator around oneDNN's, which the compiler takes for constant weights alone; ours are arguments. It is made of
# parts, since `torch.library.custom_op` costs as much as a small product, and once, since notebooks reload modules.
if not hasattr(torch.ops.ddim_lightning, "multiply"):
    torch.library.define(_OPERATOR, "(Tensor x, Tensor weight, Tensor? bias) -> Tensor")
    torch.library.impl(_OPERATOR, "CPU", _multiply_by_onednn)
    torch.library.register_fake(_OPERATOR, _make_fake)
    register_flop_formula(torch.ops.ddim_lightning.multiply)(_count_flops)
