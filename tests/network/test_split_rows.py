"""How the rows of a pass are split over processes, and what a process evaluates of them."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from ddim_lightning.network.held import HeldOnDevice, HeldRows
from ddim_lightning.network.split_rows import READING, Share, SplitRows, _make_share, plan_rows

LAYOUTS = {
    "one row": (1, ()),
    "guided": (2, ()),
    "two noises, guided": (6, ()),
    "paired sources": (2, (2, 3)),
    "paired sources, wanted": (4, (2, 3)),
    "one source": (2, (2, 2)),
    "one source, wanted": (3, (2, 2)),
    "two prompts, one source": (4, (4, 4, 4, 4)),
    "two prompts, paired sources": (4, (4, 5, 4, 5)),
    "three prompts, one source, wanted": (7, (6,) * 6),
    "a reader, and rows that read nothing": (5, (4,)),
    "a source that reads": (3, (1, 2)),
}


def find_optimum(wanted, reads, ranks):
    """The least that the process with the most work can have, over all ways to give rows to processes."""
    costs = []
    for owners in product(range(ranks), repeat=wanted):
        given = [[row for row in range(wanted) if owners[row] == rank] for rank in range(ranks)]
        costs.append(max(_make_share(rows, reads).cost for rows in given if rows))
    return min(costs)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize(("wanted", "reads"), LAYOUTS.values(), ids=LAYOUTS)
def test_each_row_is_given_once_with_all_that_it_reads_and_nobody_has_more_work_than_needed(wanted, reads, ranks):
    shares = plan_rows(wanted, reads, ranks)
    assert len(shares) == ranks
    assert sorted(row for share in shares for row in share.gives) == list(range(wanted))
    for share in shares:
        assert set(share.gives) <= set(share.rows[: share.wanted])
        for place, row in enumerate(share.rows):
            if row < len(reads):
                assert share.rows[share.reads[place]] == reads[row]
            else:
                assert place >= len(share.reads)
    if ranks**wanted <= 4096:
        assert max(share.cost for share in shares) == find_optimum(wanted, reads, ranks)


def test_plans_in_closed_form():
    whole = Share((0, 1, 2), 2, (2, 2), (0, 1))
    assert plan_rows(2, (2, 2), 1) == (whole,)
    assert whole.cost == 3 + 2 * READING
    # A source that both read is evaluated twice; paired ones are not, and wanted ones are given where they are read.
    assert plan_rows(2, (2, 2), 2) == (Share((0, 2), 1, (1,), (0,)), Share((1, 2), 1, (1,), (1,)))
    assert plan_rows(4, (2, 3), 2) == (Share((0, 2), 2, (1,), (0, 2)), Share((1, 3), 2, (1,), (1, 3)))
    assert [share.gives for share in plan_rows(4, (4, 5, 4, 5), 2)] == [(0, 2), (1, 3)]
    assert [share.gives for share in plan_rows(6, (), 4)] == [(0,), (1,), (2, 3), (4, 5)]
    # Who has nothing to do evaluates the first row, too.
    assert plan_rows(1, (), 2) == (Share((0,), 1, (), (0,)), Share((0,), 1, (), ()))


class Group:
    """A process of two, which is told beforehand what the other one sends."""

    at_work, size = True, 2

    def __init__(self, rank, other=None):
        self.rank, self.other = rank, other

    def check_same(self, what, value):
        self.said = value

    def gather(self, tensor):
        self.sent = tensor
        other = torch.zeros_like(tensor) if self.other is None else self.other
        return torch.stack([tensor, other] if self.rank == 0 else [other, tensor])


class Sums:
    """Stands for a network: a row's velocity is the sum of itself, of what it reads, and of what it is told."""

    def __call__(self, latents, prompt_embeds, timestep, *, wanted, reads, held, masks, factor):
        self.rows = len(latents)
        output = latents + prompt_embeds[:, 0, 0, None, None, None, None]
        for row, source in enumerate(reads):
            output[row] += 10 * masks[row] * latents[source]
        return factor * (output + held[0][0][list(held.rows)])[:wanted]


@pytest.mark.parametrize(("wanted", "reads"), LAYOUTS.values(), ids=LAYOUTS)
def test_shares_put_together_are_the_whole_pass(wanted, reads):
    count = max(wanted, *(row + 1 for row in reads), 1)
    generator = torch.Generator().manual_seed(0)
    latents, embeds = (torch.randn(count, *size, generator=generator) for size in ((2, 3, 1, 1), (5, 4)))
    kept = HeldOnDevice([(torch.randn(3, 2, 3, 1, 1, generator=generator), torch.zeros(3, 2, 3, 1, 1))])
    held = HeldRows([kept], tuple(row % 3 for row in range(count)))
    masks = tuple(torch.rand(2, 1, 1, 1, generator=generator) for _ in reads)
    more = {"wanted": wanted, "reads": reads, "held": held, "masks": masks, "factor": 0.5}
    whole = Sums()(latents, embeds, 7, **more)
    networks, groups = [Sums(), Sums()], [Group(0), Group(1)]
    for network, group in zip(networks, groups, strict=True):
        SplitRows(network, group)(latents, embeds, 7, **more)
        assert network.rows == len(plan_rows(wanted, reads, 2)[group.rank].rows)
    assert groups[0].said == groups[1].said == (7, tuple(latents.shape), wanted, reads)
    for rank in (0, 1):
        group = Group(rank, groups[1 - rank].sent)
        assert torch.equal(SplitRows(Sums(), group)(latents, embeds, 7, **more), whole)
