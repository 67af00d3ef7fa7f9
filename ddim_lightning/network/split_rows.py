"""The rows of a pass are split over the processes of a group, each of which has the whole network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ddim_lightning.network.attention import pick_rows
from ddim_lightning.network.held import Held, HeldRows
from ddim_lightning.runtime.clip_group import ClipGroup

if TYPE_CHECKING:
    from ddim_lightning.network.denoiser import RunsRows

READING = 0.5
"""What it costs a row to read another one, in rows: 0.49 for CogVideoX-5B at 49 x 480 x 720, less for smaller clips."""


class Share(NamedTuple):
    """A `Share` is what one process evaluates of a pass.

    Args:
        rows: Which rows of the pass; those that read come first, those that are only read last.
        wanted: How many of them, the first, are evaluated to the end.
        reads: For each of the first of them the place among them of the row that it reads.
        gives: Rows of the pass whose velocities it gives to the others; each wanted row is given by one process.
    """

    rows: tuple[int, ...]
    wanted: int
    reads: tuple[int, ...]
    gives: tuple[int, ...]

    @property
    def cost(self) -> float:
        """What it costs, in rows that read nothing."""
        return len(self.rows) + READING * len(self.reads)


@lru_cache(maxsize=256)
def plan_rows(wanted: int, reads: tuple[int, ...], ranks: int) -> tuple[Share, ...]:
    """Split the rows of a pass, so that the process with the most work has as little as possible.

    A row that is read is evaluated wherever one of its readers is. So readers of the same row stand next to each other
    when the rows are cut into as many pieces as there are processes. A process for which no row is left evaluates
    those of the first one, and gives nothing: all compute shapes that they know.

    Args:
        wanted: How many rows, the first, are wanted.
        reads: For each of the first rows the row it reads.
        ranks: How many processes.

    Returns:
        For each process its share.
    """
    order = sorted(range(wanted), key=lambda row: (_find_source(row, reads), row))

    @cache
    def cut(stop: int, pieces: int) -> tuple[float, float, tuple[Share, ...]]:
        """Cut the first rows into at most so many pieces: the largest cost, all cost, and the shares."""
        if stop == 0:
            return 0.0, 0.0, ()
        options = []
        for start in range(stop) if pieces > 1 else (0,):
            largest, total, shares = cut(start, pieces - 1)
            share = _make_share(order[start:stop], reads)
            options.append((max(largest, share.cost), total + share.cost, (*shares, share)))
        return min(options, key=lambda option: option[:2])

    shares = cut(wanted, ranks)[2]
    return shares + (shares[0]._replace(gives=()),) * (ranks - len(shares))


def _find_source(row: int, reads: tuple[int, ...]) -> int:
    """Return the row that a row reads, or that one reads, and so on; itself where it reads none."""
    while row < len(reads):
        row = reads[row]
    return row


def _make_share(gives: Sequence[int], reads: tuple[int, ...]) -> Share:
    """Return the share of a process that gives some rows, with all that they read."""
    needed: set[int] = set()
    todo: Iterable[int] = gives
    while todo := set(todo) - needed:
        needed |= todo
        todo = (reads[row] for row in todo if row < len(reads))
    rows = sorted(needed, key=lambda row: (row >= len(reads), row not in gives, row))
    own_reads = tuple(rows.index(reads[row]) for row in rows if row < len(reads))
    last = max(rows.index(row) for row in gives)
    return Share(tuple(rows), max(last + 1, len(own_reads)), own_reads, tuple(sorted(gives)))


class SplitRows:
    """A `SplitRows` evaluates rows of a pass as a network does, each process of a group its share.

    All processes end with the same bytes: each velocity comes from one of them. While the group works on no clip, and
    for latents that want gradients, each process evaluates all rows.

    Args:
        network: Evaluates rows; all that is not said here goes to it as it is.
        group: The processes.
    """

    def __init__(self, network: RunsRows, group: ClipGroup) -> None:
        self.network = network
        self.group = group

    def __call__(
        self,
        latents: Tensor,
        prompt_embeds: Tensor,
        timestep: int,
        *,
        wanted: int | None = None,
        reads: tuple[int, ...] = (),
        held: HeldRows | None = None,
        masks: Sequence[Tensor | None] = (),
        **more: Any,
    ) -> Tensor:
        """Evaluate the rows; see `Network`.

        Raises:
            GroupError: Another process evaluates other rows, or is gone.
        """
        if not self.group.at_work or latents.requires_grad:
            return self.network(
                latents, prompt_embeds, timestep, wanted=wanted, reads=reads, held=held, masks=masks, **more
            )
        wanted = latents.shape[0] if wanted is None else wanted
        shares = plan_rows(wanted, reads, self.group.size)
        share = shares[self.group.rank]
        velocity = self.network(
            pick_rows(latents, share.rows),
            pick_rows(prompt_embeds, share.rows),
            timestep,
            wanted=share.wanted,
            reads=share.reads,
            held=None if held is None else HeldRows(held.held, tuple(held.rows[row] for row in share.rows)),
            masks=tuple(masks[row] for row in share.rows if row < len(masks)),
            **more,
        )
        # All send as many rows as the one with the most; indices that are tensors would make the host wait.
        given = velocity.new_zeros((max(len(one.gives) for one in shares), *velocity.shape[1:]))
        for k, row in enumerate(share.gives):
            given[k] = velocity[share.rows.index(row)]
        self.group.check_same("rows", (timestep, tuple(latents.shape), wanted, reads))
        gathered = self.group.gather(given)
        places = {row: (rank, k) for rank, one in enumerate(shares) for k, row in enumerate(one.gives)}
        return torch.stack([gathered[places[row]] for row in range(wanted)])

    def hold(self, latents: Tensor, prompt_embeds: Tensor, timestep: int) -> Held:
        """Evaluate rows for their keys and values alone, all of them in every process; see `Network`."""
        return self.network.hold(latents, prompt_embeds, timestep)
