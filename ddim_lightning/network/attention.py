"""Rows attend to their own keys and values and to those of other rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ddim_lightning.network.flash import Flash, use_flash

KeyValue = tuple[Tensor, Tensor]
"""Keys and values of one layer, behind norms and rotation, (rows, tokens, heads, channels) each."""
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
        flash: The FlashAttention that the kernel is of; ``None`` where it is of none, or of whichever is switched on.
    """

    name: str
    attend: AttentionFn
    attend_lse: LseFn | None = None
    flash: Flash | None = None

    def active(self) -> AbstractContextManager[None]:
        """Return a context in which `attend` and `attend_lse` run this kernel; see `use_flash`."""
        return use_flash(self.flash)

    def choose(self, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> Attention:
        """Return the kernel for queries of a shape, (rows, heads, tokens, channels): this one."""
        return self


class Lent(NamedTuple):
    """`Lent` keys and values are those of another group of rows of the pass.

    Args:
        key: (rows, tokens, heads, channels).
        value: Likewise.
        inside: (n,) int64: where the tokens are that readers under a mask have of their own; ``None`` without a mask.
        outside: (m,) int64: where those are that they have not.
    """

    key: Tensor
    value: Tensor
    inside: Tensor | None = None
    outside: Tensor | None = None


class _Met(NamedTuple):
    """`_Met` keys and values are attended to by the first rows beside their own; one row serves all of them."""

    key: Tensor
    value: Tensor
    readers: int
    scale: Tensor | None = None


def attend_reading(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    reads: tuple[int, ...],
    kv_scale: Tensor | None,
    attention: Attention,
    held: KeyValue | None = None,
    held_rows: tuple[int, ...] = (),
    lent: Lent | None = None,
    outside: tuple[int, ...] = (),
) -> Tensor:
    """Attend, the first rows to the keys and values of another row as well, and all of them to those that are held.

    Args:
        query: (kept rows, tokens, heads, channels).
        key: (rows, tokens, heads, channels), the kept rows first.
        value: As the keys.
        reads: Row ``k`` of the first also reads row ``reads[k]``.
        kv_scale: Scalar s, 0 .. 1: ``log(s)`` is added to the logits of keys that are read; ``None`` is 1.
        attention: The kernel.
        held: Keys and values of rows of a former pass, of any number of tokens; ``None`` where none are held.
        held_rows: For each kept row the held row that it attends to.
        lent: Keys and values of the rows that ``reads`` and ``outside`` name; ``None`` for those of this call.
        outside: For each row the row that its tokens outside a mask are those of: it has tokens inside alone, and
            attends to them and to these, whether it reads or not. Empty without a mask.

    Returns:
        (kept rows, tokens, heads, channels).

    Source: merging by log-sum-exp is equation 4 of Dao 2023, "FlashAttention-2", arXiv:2307.08691, for two blocks.
    """
    kept = query.shape[0]
    # In a training under autocast norms leave queries and keys in float32, projections values in the lower precision.
    query, key = query.to(value.dtype), key.to(value.dtype)
    lent = Lent(key, value) if lent is None else lent
    met = _meet_outside(lent, outside, bool(reads), kv_scale)
    if reads:
        parts = _pick(lent, outside or reads, lent.inside if outside else None)
        met.append(_Met(*parts, len(reads), kv_scale))
    if held is not None:
        met.append(_Met(pick_rows(held[0], held_rows), pick_rows(held[1], held_rows), kept))
    key, value = key[:kept], value[:kept]
    if not met:
        return _turn(attention.attend(_turn(query), _turn(key), _turn(value), None))
    # What kernels say of the log-sum-exp has no gradient, which would be lost without a word.
    wants_gradient = any(x.requires_grad for x in (query, key, value, *(one.value for one in met)))
    if attention.attend_lse is None or wants_gradient:
        return _attend_buffer(query, key, value, met, attention.attend)
    own, own_lse = attention.attend_lse(_turn(query), _turn(key), _turn(value))
    output, lse = _turn(own), own_lse.transpose(1, 2)
    for k, one in enumerate(met, 1):
        output, lse = _merge(output, lse, query, one, attention.attend_lse, last=k == len(met))
    return output


def _meet_outside(lent: Lent, outside: tuple[int, ...], reads: bool, kv_scale: Tensor | None) -> list[_Met]:
    """Return what rows under a mask attend to in place of their own tokens outside it.

    Rows that read all of that row meet these keys twice: as their own at 1, and as what they read at s. That is once at
    1 + s; what is left to be read are the row's keys inside.
    """
    if not outside or lent.outside is None or lent.outside.shape[0] == 0:  # kernels want at least one key
        return []
    scale = None
    if reads:
        scale = lent.key.new_full((), 2.0, dtype=torch.float32) if kv_scale is None else 1.0 + kv_scale
    return [_Met(*_pick(lent, outside, lent.outside), len(outside), scale)]


def _pick(lent: Lent, rows: tuple[int, ...], tokens: Tensor | None) -> KeyValue:
    """Return keys and values of some rows, and of those some tokens or all."""
    key, value = pick_rows(lent.key, rows), pick_rows(lent.value, rows)
    return (key, value) if tokens is None else (key[:, tokens], value[:, tokens])


def _merge(
    own: Tensor, own_lse: Tensor, query: Tensor, met: _Met, attend_lse: LseFn, last: bool
) -> tuple[Tensor, Tensor]:
    """Return attention over what is met as well, and its log-sum-exp unless it is the last."""
    kept, tokens, readers, scale = *query.shape[:2], met.readers, met.scale
    read_query = query[:readers]
    if (rows := met.key.shape[0]) < readers:
        # Readers of one row are one long row of queries.
        read_query = read_query.unflatten(0, (rows, -1)).flatten(1, 2)
    read, read_lse = attend_lse(_turn(read_query), _turn(met.key), _turn(met.value))
    read = _turn(read).unflatten(1, (-1, tokens)).flatten(0, 1)
    read_lse = read_lse.transpose(1, 2).reshape(readers, tokens, -1)
    odds = own_lse[:readers] - read_lse
    share = torch.sigmoid(odds if scale is None else odds - scale.log())
    merged = torch.lerp(read, own[:readers], share[..., None].to(own.dtype))
    if not last:
        read_lse = read_lse if scale is None else read_lse + scale.log()
        own_lse = torch.cat([torch.logaddexp(own_lse[:readers], read_lse), own_lse[readers:]])
    return merged if readers == kept else torch.cat([merged, own[readers:]]), own_lse


def pick_rows(rows: Tensor, picked: tuple[int, ...]) -> Tensor:
    """Return the picked rows, each once and as a view where they are neighbors, all of them as often in a row.

    Of (4, 4, 5, 5) these are the rows 4 and 5; of (4, 5, 4) three rows are made.
    """
    first, count = picked[0], len(set(picked))
    if len(picked) % count == 0:
        times = len(picked) // count
        if picked == tuple(first + k // times for k in range(len(picked))):
            return rows[first : first + count]
    return torch.stack([rows[row] for row in picked])


def _attend_buffer(query: Tensor, key: Tensor, value: Tensor, met: Sequence[_Met], attend: AttentionFn) -> Tensor:
    """Attend to one buffer of keys and values, for each group of rows that reads the same kinds of them."""
    attended, start = [], 0
    for stop in sorted({query.shape[0], *(one.readers for one in met)}):
        read = [one for one in met if one.readers >= stop]
        parts = [(key[start:stop], value[start:stop])]
        parts += [
            (_spread(one.key, one.readers, start, stop), _spread(one.value, one.readers, start, stop)) for one in read
        ]
        keys, values = (torch.cat(kind, dim=1) for kind in zip(*parts, strict=True))
        scales = [None, *(one.scale for one in read)]
        bias = None if all(scale is None for scale in scales) else _make_bias(query, [k for k, _ in parts], scales)
        attended.append(_turn(attend(_turn(query[start:stop]), _turn(keys), _turn(values), bias)))
        start = stop
    return attended[0] if len(attended) == 1 else torch.cat(attended)


def _spread(rows: Tensor, readers: int, start: int, stop: int) -> Tensor:
    """Return what some of the readers attend to, a row for each; one row is not copied."""
    times = readers // rows.shape[0]
    if rows.shape[0] == 1:
        return rows.expand(stop - start, -1, -1, -1)
    return (rows if times == 1 else rows.repeat_interleave(times, dim=0))[start:stop]


def _make_bias(query: Tensor, keys: Sequence[Tensor], scales: Sequence[Tensor | None]) -> Tensor:
    """Return the logarithms of the scales, (1, 1, query tokens, key tokens), a view of one row."""
    biases = [
        query.new_zeros(key.shape[1]) if scale is None else scale.log().to(query.dtype).expand(key.shape[1])
        for key, scale in zip(keys, scales, strict=True)
    ]
    bias = torch.cat(biases)
    return bias.expand(1, 1, query.shape[1], -1)


def _turn(x: Tensor) -> Tensor:
    """Between (rows, tokens, heads, channels), as projections make it, and (rows, heads, tokens, channels)."""
    return x.transpose(1, 2)


def sdpa_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """Run PyTorch's scaled-dot-product attention, which picks a kernel itself."""
    return scaled_dot_product_attention(query, key, value, attn_mask=bias)
