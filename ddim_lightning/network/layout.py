"""The rows of a pass are laid out before it runs: who goes through a block together, who reads whom, who goes on."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from torch import Tensor

from ddim_lightning.types import KVScale


class RowLayout(NamedTuple):
    """A `RowLayout` says which rows a pass has.

    Args:
        rows: How many.
        wanted: How many of them, the first, have velocities that are wanted.
        reads: For each of the first rows the row whose keys and values it also attends to.
    """

    rows: int
    wanted: int
    reads: tuple[int, ...] = ()


class Split(NamedTuple):
    """A `Split` divides the video tokens of rows that are edited under a mask.

    Args:
        inside: (n,) int64, ascending: the tokens that such a row has of its own.
        outside: (m,) int64, ascending: those that in every layer are the tokens of the row that it reads.
    """

    inside: Tensor
    outside: Tensor


class Layout(NamedTuple):
    """A `Layout` says which rows of a group a block has and what they do; it is fixed while a graph is used.

    Args:
        rows: Rows at hand.
        kept: How many of them, the first, are wanted behind the block; the others only lend their keys and values.
        reads: For each of the first rows, the row whose keys and values it also attends to: of the group that lends,
            and without one of its own.
        heads: Attention heads.
        eps: Of the norms before attention and before the feed-forward part.
        held_rows: For each kept row the held row that it attends to; empty where none are held.
        outside: For each row the lending group's row that its tokens outside a mask are those of; empty without one.
        lends: Whether a group that comes later attends to its keys and values.
    """

    rows: int
    kept: int
    reads: tuple[int, ...]
    heads: int
    eps: float
    held_rows: tuple[int, ...] = ()
    outside: tuple[int, ...] = ()
    lends: bool = False


class Group(NamedTuple):
    """A `Group` is rows of a pass that go through each block together.

    Args:
        rows: Which, ascending.
        layouts: What they do in every layer.
        source: Position of the earlier group whose rows they read; ``None`` where they read none, or rows among them.
        split: Which tokens they have of their own; ``None`` where all.
    """

    rows: tuple[int, ...]
    layouts: tuple[Layout, ...] = ()
    source: int | None = None
    split: Split | None = None


def plan_pass(
    layout: RowLayout,
    size: int,
    kv_scale: KVScale | None,
    num_layers: int,
    heads: int,
    eps: float,
    *,
    held_rows: tuple[int, ...] = (),
    splits: Sequence[Split | None] = (),
) -> list[Group]:
    """Divide the rows of a pass into groups, and lay out every layer of each.

    Args:
        layout: The rows.
        size: Most rows of a group, >= 1.
        kv_scale: How much is read; a layer at 0 reads nothing. ``None`` reads in every layer.
        num_layers: How many layers.
        heads: Attention heads.
        eps: Of the modulated norms.
        held_rows: For each row the held row that it attends to in every layer; empty where none are held.
        splits: For each row that reads, which tokens it has of its own; empty where all have all.

    Raises:
        ValueError: A row that rows of another group read, and that reads itself.
    """
    reading = [bool(layout.reads) and (kv_scale is None or float(kv_scale[k]) > 0.0) for k in range(num_layers)]
    groups = _divide(layout, size, splits)
    for place, group in enumerate(groups):
        home = group.rows if group.source is None else groups[group.source].rows
        reads = tuple(home.index(layout.reads[row]) for row in group.rows if row < len(layout.reads))
        held = tuple(held_rows[row] for row in group.rows) if held_rows else ()
        asking = [other for other in groups if other.source == place]
        in_all = any(other.split is not None for other in asking)  # what is outside a mask is met in every layer
        lends = [bool(asking) and (in_all or reading[k]) for k in range(num_layers)]
        within = group.source is None and bool(reads)
        last = max((k for k in range(num_layers) if lends[k] or (within and reading[k])), default=-1)
        outside = () if group.split is None else reads
        rows, wanted, layouts = len(group.rows), sum(row < layout.wanted for row in group.rows), list[Layout]()
        for k in range(num_layers):
            kept = rows if k < last else wanted
            read = reads if reading[k] else ()
            layouts.append(Layout(rows, kept, read, heads, eps, held[:kept], outside, lends[k]))
            rows = kept
        groups[place] = group._replace(layouts=tuple(layouts))
    return groups


def _divide(layout: RowLayout, size: int, splits: Sequence[Split | None]) -> list[Group]:
    """Divide rows into groups; all of them are one where they fit and have all tokens of their own.

    Rows that read come right behind those that they read, so that one group's keys and values are lent at a time.
    """
    if layout.rows <= size and not any(splits):
        return [Group(tuple(range(layout.rows)))]
    readers = range(len(layout.reads))
    if chained := set(readers) & set(layout.reads):
        raise ValueError(f"reads: rows that are read must read none where they go in groups, got row {min(chained)}")
    own = list(splits) or [None] * len(readers)
    groups: list[Group] = []
    for rows in _cut(range(len(readers), layout.rows), size):
        source = len(groups)
        groups.append(Group(rows))
        reading = [row for row in readers if layout.reads[row] in rows]
        for split in {id(own[row]): own[row] for row in reading}.values():
            alike = [row for row in reading if own[row] is split]
            groups += [Group(piece, source=source, split=split) for piece in _cut(alike, size)]
    return groups


def count_video_tokens(config: Any, frames: int, height: int, width: int) -> int:
    """Return how many tokens a transformer of this config makes of latents of this size."""
    patch, patch_frames = int(config.patch_size), int(config.patch_size_t or 1)
    return (frames // patch_frames) * (height // patch) * (width // patch)


def _cut(rows: Sequence[int], size: int) -> list[tuple[int, ...]]:
    """Cut rows into as few pieces as their size allows, as even as can be."""
    pieces = -(-len(rows) // size)
    ends = [len(rows) * k // pieces for k in range(pieces + 1)]
    return [tuple(rows[start:stop]) for start, stop in pairwise(ends)]
