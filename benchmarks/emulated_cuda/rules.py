"""What a GPU refuses: operations on several dtypes, and how attention is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten

ONE_DTYPE = {
    aten.mm.default,
    aten.addmm.default,
    aten.bmm.default,
    aten.baddbmm.default,
    aten.convolution.default,
    aten.native_layer_norm.default,
    aten.native_group_norm.default,
    aten.lerp.Tensor,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
    aten._scaled_dot_product_efficient_attention.default,
}
"""Operations whose kernels take tensors of one dtype, where those of a CPU or of fake tensors may take several."""


def check_dtypes(function: Any, tensors: Sequence[Tensor]) -> None:
    """Raise a RuntimeError, as a kernel would, where an operation gets tensors of several dtypes."""
    if function in ONE_DTYPE and len({tensor.dtype for tensor in tensors}) > 1:
        found = ", ".join(f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}" for tensor in tensors)
        raise RuntimeError(f"{function}: expected tensors of one dtype, got {found}")


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Run scaled-dot-product attention by the kernel that PyTorch would take on a GPU, of those that are switched on.

    The choice itself cannot be asked for without a driver. Masks are taken by the memory-efficient kernel, float32 by
    that and by the plain products.

    Raises:
        RuntimeError: No kernel that is switched on takes the tensors.
    """
    backends = torch.backends.cuda
    check_dtypes(aten._scaled_dot_product_flash_attention.default, (query, key, value))
    half = query.dtype in (torch.float16, torch.bfloat16)
    output: Tensor
    if half and attn_mask is None and backends.flash_sdp_enabled():
        output = aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, scale=scale)[0]
    elif half and attn_mask is None and backends.cudnn_sdp_enabled():
        output = aten._scaled_dot_product_cudnn_attention(
            query, key, value, None, False, dropout_p, is_causal, scale=scale
        )[0]
    elif backends.mem_efficient_sdp_enabled():
        bias = None if attn_mask is None else attn_mask.expand(*query.shape[:3], key.shape[2])
        output = aten._scaled_dot_product_efficient_attention(
            query, key, value, bias, False, dropout_p, is_causal, scale=scale
        )[0]
    elif backends.math_sdp_enabled():
        output = aten._scaled_dot_product_attention_math(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )[0]
    else:
        raise RuntimeError("No available kernel. Aborting execution.")
    return output
