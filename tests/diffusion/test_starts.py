"""Where an edit starts: each formula written again, and what the random one must not know."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from ddim_lightning.diffusion.editors import KVInjection
from ddim_lightning.diffusion.editors.starts import STARTS, make_start
from ddim_lightning.diffusion.inverters import BDIA, EditFriendly, UniInv
from ddim_lightning.diffusion.sampling import edit, invert
from ddim_lightning.types import EditRequest


def seeded(seed=3):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(params=[UniInv(), BDIA(), EditFriendly()], ids=repr)
def inversion(request, toy, clean, make_schedule):
    found = invert(toy, clean, make_schedule(10), request.param, generator=seeded(8))
    toy.seen.clear()
    return found


@pytest.mark.parametrize("i", [0, 4, 9])
def test_inverted_is_the_trajectorys_own_level(i, inversion):
    assert torch.equal(make_start("inverted", inversion, i, None, 1), inversion.levels[i])


def test_random_at_pure_noise_knows_nothing_of_the_source(inversion, clean):
    start = make_start("random", inversion, 0, seeded(), 1)
    assert torch.equal(start, torch.randn(clean.shape, generator=seeded(), dtype=torch.float64))
    elsewhere = replace(inversion, levels=7.0 - inversion.levels, state=(7.0 - inversion.state[0],))
    assert torch.equal(make_start("random", elsewhere, 0, seeded(), 1), start)
    assert not torch.equal(make_start("random", inversion, 0, seeded(4), 1), start)


@pytest.mark.parametrize("i", [1, 6])
def test_random_at_a_later_level_is_the_clean_latents_under_fresh_noise(i, inversion, clean):
    noise = torch.randn(clean.shape, generator=seeded(), dtype=torch.float64)
    angle = inversion.schedule.angles[i]
    expected = math.cos(angle) * clean + math.sin(angle) * noise
    torch.testing.assert_close(make_start("random", inversion, i, seeded(), 1), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("order", [1, 2, 5])
@pytest.mark.parametrize("i", [1, 4])
def test_k_rnr_is_its_recursion(i, order, inversion, clean):
    """``x_{k+1} = a x0 + s x_k`` from the inverted latent, K times."""
    angle, x = inversion.schedule.angles[i], inversion.levels[0]
    for _ in range(order):
        x = math.cos(angle) * clean + math.sin(angle) * x
    torch.testing.assert_close(make_start("k_rnr", inversion, i, None, order), x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("initial", list(STARTS))
def test_an_edit_starts_there(initial, toy, inversion):
    editor = KVInjection(initial=initial, first_step=2, order=4)
    edit(toy, inversion, editor, EditRequest("right"), generator=seeded())
    branches, step, _ = toy.seen[0]
    assert step.i == 2
    assert torch.equal(branches[0].latents, make_start(initial, inversion, 2, seeded(), 4))
