"""One block of CogVideoX is a function of its weights: what diffusers computes, with less work around it."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm

from ddim_lightning.network.attention import Attention, KeyValue, attend_reading
from ddim_lightning.network.weights import BlockWeights

Rotary = tuple[Tensor, Tensor] | Tensor
"""cos and sin over text and video tokens, (tokens, channels of a head) each; or, for float32 on the spot, the complex
numbers that turn pairs of channels, (tokens, channels / 2)."""


class Layout(NamedTuple):
    """A `Layout` says which rows a block has and what they do; it is fixed while a graph is used.

    Args:
        rows: Rows at hand.
        kept: How many of them, the first, are wanted behind the block; the others only lend their keys and values.
        reads: For each of the first rows, the row whose keys and values it also attends to.
        heads: Attention heads.
        eps: Of the norms before attention and before the feed-forward part.
        held_rows: For each kept row the held row that it attends to; empty where none are held.
    """

    rows: int
    kept: int
    reads: tuple[int, ...]
    heads: int
    eps: float
    held_rows: tuple[int, ...] = ()


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

    Returns:
        Video and text tokens of the kept rows.

    Source: Yang et al. 2024, "CogVideoX", arXiv:2408.06072, section 2.2 ("expert adaptive LayerNorm").
    """
    query, key, value = _make_heads(video, text, weights, modulation, rotary, layout)
    attended = attend_reading(query, key, value, layout.reads, kv_scale, attention, held, layout.held_rows)
    return _end_block(video, text, attended, weights, modulation, layout)


def lend_block(
    video: Tensor,
    text: Tensor,
    weights: BlockWeights,
    modulation: Tensor,
    rotary: Rotary | None,
    layout: Layout,
    attention: Attention,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run a block whose keys and values are to be held; arguments as in `run_block`.

    Returns:
        Video and text tokens of the kept rows, none where the layout keeps none; keys and values of all rows.
    """
    query, key, value = _make_heads(video, text, weights, modulation, rotary, layout)
    if layout.kept == 0:
        return video[:0], text[:0], key, value
    attended = attend_reading(query, key, value, (), None, attention)
    return *_end_block(video, text, attended, weights, modulation, layout), key, value


def _make_heads(
    video: Tensor, text: Tensor, weights: BlockWeights, modulation: Tensor, rotary: Rotary | None, layout: Layout
) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries of the kept rows, keys and values of all, behind norms and rotation."""
    video_in, text_in = modulation[0].unbind(0)
    query, key, value = _project(_norm_both(video, text, video_in, text_in, layout.eps), weights, layout)
    if rotary is not None:
        query, key = rotate(query, rotary), rotate(key, rotary)
    return query, key, value


def _end_block(
    video: Tensor, text: Tensor, attended: Tensor, weights: BlockWeights, modulation: Tensor, layout: Layout
) -> tuple[Tensor, Tensor]:
    """Add what was attended to, (kept rows, tokens, heads, channels), and the feed-forward part."""
    num_text, kept = text.shape[1], layout.kept
    (video_in, text_in), (video_ff, text_ff) = modulation.unbind(0)
    attended = weights.out(attended.flatten(2))
    video = torch.addcmul(video[:kept], attended[:, num_text:], video_in[2])
    text = torch.addcmul(text[:kept], attended[:, :num_text], text_in[2])
    tokens = _norm_both(video, text, video_ff, text_ff, layout.eps)
    tokens = weights.down(activate(weights.up(tokens)))
    video = torch.addcmul(video, tokens[:, num_text:], video_ff[2])
    text = torch.addcmul(text, tokens[:, :num_text], text_ff[2])
    return video, text


def activate(x: Tensor) -> Tensor:
    """Apply the GELU of the tanh; on a CPU, where tanh is slow, as the logistic function: (1 + tanh u) / 2 = s(2 u).

    Source: Hendrycks, Gimpel 2016, "Gaussian error linear units", arXiv:1606.08415, section 2.
    """
    if x.device.type != "cpu" or x.dtype != torch.float32 or x.requires_grad:
        return gelu(x, approximate="tanh")
    slope = 2 * math.sqrt(2 / math.pi)
    gate = torch.addcmul(x.new_full((), slope), x, x, value=0.044715 * slope)
    # In place, for memory that is touched for the first time costs as much as what is computed.
    return gate.mul_(x).sigmoid_().mul_(x)


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """Turn neighboring channels of (rows, tokens, heads, channels) by the angles of their token.

    Source: Su et al. 2021, "RoFormer", arXiv:2104.09864, equation 34.
    """
    if isinstance(rotary, Tensor):
        # One pass over the data instead of four, which a compiler fuses; compilers have no complex numbers.
        return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * rotary[:, None]).flatten(-2)
    cos, sin = (table[:, None] for table in rotary)
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    return (x * cos + torch.stack([-second, first], dim=-1).flatten(-2) * sin).to(x.dtype)


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
    else:
        width = tokens.shape[-1]
        key, value = weights.qkv.take(width)(tokens).unflatten(-1, (2, layout.heads, -1)).unbind(2)
        query = key[:0]
        if layout.kept:
            query = weights.qkv.take(0, width)(tokens[: layout.kept]).unflatten(-1, (layout.heads, -1))
    return weights.norm_query(query), weights.norm_key(key), value
