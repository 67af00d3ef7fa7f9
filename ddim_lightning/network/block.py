"""One block of CogVideoX is a function of its weights: what diffusers computes, with less work around it."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm

from ddim_lightning.network.attention import Attention, KeyValue, Lent, attend_reading
from ddim_lightning.network.layout import Layout
from ddim_lightning.network.weights import BlockWeights

Rotary = tuple[Tensor, Tensor] | Tensor
"""cos and sin over text and video tokens, (tokens, channels of a head) each; or, for float32 on the spot, the complex
numbers that turn pairs of channels, (tokens, channels / 2)."""


def run_block(
    video: Tensor,
    text: Tensor,
    weights: BlockWeights,
    modulation: Tensor,
    rotary: Rotary | None,
    kv_scale: Tensor | None,
    layout: Layout,
    attention: Attention,
    held: KeyValue | None = None,
    lent: Lent | None = None,
) -> tuple[Tensor, Tensor]:
    """Run a block.

    Args:
        video: (rows, video tokens, width).
        text: (rows, text tokens, width).
        weights: Of the block.
        modulation: (2, 2, 3, width), see `Modulation`.
        rotary: Of the tokens, or ``None`` for a model without rotary embeddings.
        kv_scale: Scalar, 0 .. 1: how much the reading rows attend to what they read; ``None`` is 1.
        layout: What the rows do.
        attention: The kernel.
        held: Keys and values of a former pass, which all kept rows attend to; ``None`` where none are held.
        lent: Keys and values of the group that is read; ``None`` where rows of this one are, or none.

    Returns:
        Video and text tokens of the kept rows.

    Source: Yang et al. 2024, "CogVideoX", arXiv:2408.06072, section 2.2 ("expert adaptive LayerNorm").
    """
    # Keys and values are let go of before the feed-forward part.
    video, text = _attend(video, text, weights, modulation[0], rotary, kv_scale, layout, attention, held, lent)[:2]
    return _feed_forward(video, text, weights, modulation[1], layout)


def lend_block(
    video: Tensor,
    text: Tensor,
    weights: BlockWeights,
    modulation: Tensor,
    rotary: Rotary | None,
    kv_scale: Tensor | None,
    layout: Layout,
    attention: Attention,
    held: KeyValue | None = None,
    lent: Lent | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run a block whose keys and values others will attend to; arguments as in `run_block`.

    Returns:
        Video and text tokens of the kept rows, none where the layout keeps none; keys and values of all rows.
    """
    video, text, key, value = _attend(
        video, text, weights, modulation[0], rotary, kv_scale, layout, attention, held, lent
    )
    if layout.kept:
        video, text = _feed_forward(video, text, weights, modulation[1], layout)
    return video, text, key, value


def _attend(
    video: Tensor,
    text: Tensor,
    weights: BlockWeights,
    modulation: Tensor,
    rotary: Rotary | None,
    kv_scale: Tensor | None,
    layout: Layout,
    attention: Attention,
    held: KeyValue | None,
    lent: Lent | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return video and text tokens of the kept rows behind the attention, keys and values of all rows."""
    (of_video, of_text), num_text, kept = modulation.unbind(0), text.shape[1], layout.kept
    query, key, value = _project(_norm_both(video, text, of_video, of_text, layout.eps), weights, layout)
    # One after the other: what is on the way is let go of before the next one comes.
    query = rotate(weights.norm_query(query), rotary)
    key = rotate(weights.norm_key(key), rotary)
    if layout.lends:
        value = value.contiguous()  # a view would keep all of the product
    if kept == 0:
        return video[:0], text[:0], key, value
    attended = weights.out(
        attend_reading(
            query, key, value, layout.reads, kv_scale, attention, held, layout.held_rows, lent, layout.outside
        ).flatten(2)
    )
    video = torch.addcmul(video[:kept], attended[:, num_text:], of_video[2])
    text = torch.addcmul(text[:kept], attended[:, :num_text], of_text[2])
    return video, text, key, value


def _feed_forward(
    video: Tensor, text: Tensor, weights: BlockWeights, modulation: Tensor, layout: Layout
) -> tuple[Tensor, Tensor]:
    """Return video and text tokens behind the feed-forward part."""
    (of_video, of_text), num_text = modulation.unbind(0), text.shape[1]
    tokens = weights.up(_norm_both(video, text, of_video, of_text, layout.eps))
    tokens = weights.down(activate(tokens))
    video = torch.addcmul(video, tokens[:, num_text:], of_video[2])
    text = torch.addcmul(text, tokens[:, :num_text], of_text[2])
    return video, text


def activate(x: Tensor) -> Tensor:
    """Apply the GELU of the tanh, in place unless gradients are wanted.

    On a CPU, where tanh is slow, it is the logistic function: (1 + tanh u) / 2 = s(2 u).

    Source: Hendrycks, Gimpel 2016, "Gaussian error linear units", arXiv:1606.08415, section 2.
    """
    if x.requires_grad:
        return gelu(x, approximate="tanh")
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return torch.ops.aten.gelu_(x, approximate="tanh")  # type: ignore[no-any-return]
    slope = 2 * math.sqrt(2 / math.pi)
    gate = torch.addcmul(x.new_full((), slope), x, x, value=0.044715 * slope)
    # In place, for memory that is touched for the first time costs as much as what is computed.
    return gate.mul_(x).sigmoid_().mul_(x)


def rotate(x: Tensor, rotary: Rotary | None) -> Tensor:
    """Turn neighboring channels of (rows, tokens, heads, channels) by the angles of their token.

    Source: Su et al. 2021, "RoFormer", arXiv:2104.09864, equation 34.
    """
    if rotary is None:
        return x
    if isinstance(rotary, Tensor):
        # One pass over the data instead of four, which a compiler fuses; compilers have no complex numbers.
        return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * rotary[:, None]).flatten(-2)
    cos, sin = (table[:, None].unflatten(-1, (-1, 2)) for table in rotary)
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    # Rounded one by one: tables are of float32, which takes twice the memory of bfloat16.
    turned = (first * cos[..., 0] - second * sin[..., 0]).to(x.dtype)
    return torch.stack([turned, (second * cos[..., 1] + first * sin[..., 1]).to(x.dtype)], dim=-1).flatten(-2)


def _norm_both(video: Tensor, text: Tensor, of_video: Tensor, of_text: Tensor, eps: float) -> Tensor:
    width = video.shape[-1:]
    return torch.cat(
        [layer_norm(text, width, of_text[0], of_text[1], eps), layer_norm(video, width, of_video[0], of_video[1], eps)],
        dim=1,
    )


def _project(tokens: Tensor, weights: BlockWeights, layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries of the kept rows, keys and values of all, (rows, tokens, heads, channels) each."""
    if layout.kept == layout.rows:
        query, key, value = weights.qkv(tokens).unflatten(-1, (3, layout.heads, -1)).unbind(2)
        return query, key, value
    width = tokens.shape[-1]
    key, value = weights.qkv.take(width)(tokens).unflatten(-1, (2, layout.heads, -1)).unbind(2)
    query = key[:0]
    if layout.kept:
        query = weights.qkv.take(0, width)(tokens[: layout.kept]).unflatten(-1, (layout.heads, -1))
    return query, key, value
