"""How many rows go together, by what is said to be free."""

from __future__ import annotations

import math

import torch
from diffusers.configuration_utils import FrozenDict

from benchmarks.published import COGVIDEOX_5B_TRANSFORMER
from ddim_lightning.engine.rows import FittingRows, get_room
from ddim_lightning.models.memory import count_pass_tensors
from ddim_lightning.network.layout import RowLayout

LAYOUT = RowLayout(6, 6, (4, 4, 5, 5))
TENSOR = 17_776 * 3072 * 2
"""Bytes of a tensor of one row of CogVideoX-5B at 49 x 480 x 720 in bfloat16."""


def choose(free, most=None, layout=LAYOUT):
    """Ask as often as there are values, of a pass without any."""
    values = iter(free)
    rows = FittingRows(FrozenDict({"patch_size_t": None} | COGVIDEOX_5B_TRANSFORMER), most, lambda device: next(values))
    latents = torch.empty(layout.rows, 13, 16, 60, 90, dtype=torch.bfloat16, device="meta")
    embeds = torch.empty(layout.rows, 226, 4096, dtype=torch.bfloat16, device="meta")
    return [rows(layout, latents, embeds) for _ in range(2)]


def test_all_rows_where_they_fit_else_the_largest_group():
    for group in (6, 4, 2, 1):
        free = count_pass_tensors(6, 2, group) * TENSOR
        assert choose([1.001 * free, 0.0]) == [group, group]  # it stays, whatever is free later
    assert choose([-TENSOR]) == [1, 1]  # less is left than must be
    assert choose([math.inf], layout=RowLayout(2, 2)) == [2, 2]


def test_what_is_asked_for_goes_first_and_a_cpu_takes_all():
    assert choose([], most=2) == [2, 2]
    assert get_room(torch.device("cpu")) == math.inf
