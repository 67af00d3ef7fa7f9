"""Rows attend to their own keys and values and to those of other rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

AttentionFn = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""(query, key, value, bias) -> output. Query, key, value: (rows, heads, tokens, channels); the bias is added to the
logits and broadcasts to (rows, heads, query tokens, key tokens), or is None."""
LseFn = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(query, key, value) -> output and the logarithm of the sum of the exponentials of each query's logits, (rows, heads,
tokens) float32: what it takes to merge attention over two sets of keys."""


@dataclass(frozen=True)
class Attention:
    """An `Attention` is an attention kernel with its name.

    Args:
        name: As it goes on record.
        attend: Attention.
        attend_lse: The same with the log-sum-exp, where the kernel gives it; without, rows that read get their keys
            and values in one buffer, with a bias where the kv_scale is not 1.
    """

    name: str
    attend: AttentionFn
    attend_lse: LseFn | None = None

    def choose(self, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> Attention:
        """Return the kernel for queries of a shape, (rows, heads, tokens, channels): this one."""
        return self


def attend_reading(
    query: Tensor, key: Tensor, value: Tensor, reads: tuple[int, ...], kv_scale: Tensor | None, attention: Attention
) -> Tensor:
    """Attend, the first rows to the keys and values of another row as well.

    Args:
        query: (kept rows, tokens, heads, channels).
        key: (rows, tokens, heads, channels), the kept rows first.
        value: As the keys.
        reads: Row ``k`` of the first also reads row ``reads[k]``.
        kv_scale: Scalar s, 0 .. 1: ``log(s)`` is added to the logits of keys that are read; ``None`` is 1.
        attention: The kernel.

    Returns:
        (kept rows, tokens, heads, channels).

    Source: merging by log-sum-exp is equation 4 of Dao 2023, "FlashAttention-2", arXiv:2307.08691, for two blocks.
    """
    kept, readers = query.shape[0], len(reads)
    # In a training under autocast norms leave queries and keys in float32, projections values in the lower precision.
    query, key = query.to(value.dtype), key.to(value.dtype)
    if not readers:
        return _turn(attention.attend(_turn(query), _turn(key[:kept]), _turn(value[:kept]), None))
    if attention.attend_lse is None:
        return _attend_buffer(query, key, value, reads, kv_scale, attention.attend)
    own, own_lse = attention.attend_lse(_turn(query), _turn(key[:kept]), _turn(value[:kept]))
    read_query, read_key, read_value = query[:readers], pick_rows(key, reads), pick_rows(value, reads)
    if read_key.shape[0] == 1:
        # Readers of one row are one long row of queries.
        read_query = read_query.flatten(0, 1)[None]
    read, read_lse = attention.attend_lse(_turn(read_query), _turn(read_key), _turn(read_value))
    own, read = _turn(own), _turn(read).unflatten(1, (-1, query.shape[1])).flatten(0, 1)
    own_lse, read_lse = own_lse.transpose(1, 2), read_lse.transpose(1, 2).reshape(readers, query.shape[1], -1)
    odds = own_lse[:readers] - read_lse
    share = torch.sigmoid(odds if kv_scale is None else odds - kv_scale.log())
    merged = torch.lerp(read, own[:readers], share[..., None].to(own.dtype))
    return merged if readers == kept else torch.cat([merged, own[readers:]])


def pick_rows(rows: Tensor, picked: tuple[int, ...]) -> Tensor:
    """Return the picked rows; one row where all are the same, and a view where they are neighbors."""
    first, count = picked[0], len(picked)
    if all(row == first for row in picked):
        return rows[first : first + 1]
    if picked == tuple(range(first, first + count)):
        return rows[first : first + count]
    return torch.stack([rows[row] for row in picked])


def _attend_buffer(
    query: Tensor, key: Tensor, value: Tensor, reads: tuple[int, ...], kv_scale: Tensor | None, attend: AttentionFn
) -> Tensor:
    kept, readers, tokens, bias = query.shape[0], len(reads), key.shape[1], None
    keys, values = (
        torch.cat([kv[:readers], pick_rows(kv, reads).expand(readers, -1, -1, -1)], dim=1) for kv in (key, value)
    )
    if kv_scale is not None:
        bias = torch.cat([query.new_zeros(tokens), kv_scale.log().to(query.dtype).expand(tokens)])
        bias = bias.expand(1, 1, tokens, 2 * tokens)
    reading = _turn(attend(_turn(query[:readers]), _turn(keys), _turn(values), bias))
    if readers == kept:
        return reading
    query, key, value = (_turn(tensor[readers:kept]) for tensor in (query, key, value))
    return torch.cat([reading, _turn(attend(query, key, value, None))])


def _turn(x: Tensor) -> Tensor:
    """Between (rows, tokens, heads, channels), as projections make it, and (rows, heads, tokens, channels)."""
    return x.transpose(1, 2)


def sdpa_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """Run PyTorch's scaled-dot-product attention, which picks a kernel itself."""
    return scaled_dot_product_attention(query, key, value, attn_mask=bias)
