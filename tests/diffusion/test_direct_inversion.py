"""Direct inversion: the correction written again, and the source that comes back under its own prompt."""

from __future__ import annotations

import math

import pytest
import torch

from ddim_lightning.diffusion.editors import DirectInversion
from ddim_lightning.diffusion.inverters import BDIA, DDIM, EditFriendly, FixedPoint, UniInv
from ddim_lightning.diffusion.sampling import edit, invert
from ddim_lightning.types import EditRequest

INVERTERS = [DDIM(), UniInv(), FixedPoint(), BDIA(), EditFriendly()]


def invert_with(inverter, toy, clean, schedule):
    found = invert(toy, clean, schedule, inverter, prompt="left", generator=torch.Generator().manual_seed(5))
    toy.seen.clear()
    return found


@pytest.mark.parametrize("scale", [1.0, 6.0])
@pytest.mark.parametrize("inverter", INVERTERS, ids=repr)
def test_an_edit_to_the_source_returns_the_source(inverter, scale, toy, clean, make_schedule):
    """Equal prompts and scales; the target is evaluated for itself."""
    inversion = invert_with(inverter, toy, clean, make_schedule(10))
    request = EditRequest("right", "up", source_prompt="right", guidance_scale=scale)
    editor = DirectInversion(source_rows="paired", source_text="source")
    landed = edit(toy, inversion, editor, request)
    assert float((landed - clean).norm() / clean.norm()) <= 1e-11
    assert toy.nfe == (4 if scale != 1.0 else 2) * 10


@pytest.mark.parametrize("inverter", [DDIM(), UniInv()], ids=repr)
def test_each_step_adds_what_it_misses_on_the_trajectory(inverter, toy, clean, make_schedule, closed_form):
    """Corrected where it is asked for; a plain step of the guided velocity elsewhere."""
    schedule = make_schedule(10)
    inversion = invert_with(inverter, toy, clean, schedule)
    levels, path = inversion.levels, []
    editor = DirectInversion(replay_steps=(2, 7))
    request = EditRequest("right", "up", source_prompt="", guidance_scale=3.0)
    edit(toy, inversion, editor, request, callback=lambda step, latents: path.append((step.i, latents)))
    z = levels[0]
    for i, latents in path:
        angle, h = schedule.angles[i], schedule.angles[i] - schedule.angles[i + 1]
        away, towards, source = (closed_form(x, angle, p) for x, p in ((z, "up"), (z, "right"), (levels[i], "")))
        target = away + 3.0 * (towards - away)
        if 2 <= i < 7:
            z = levels[i + 1] + math.cos(h) * (z - levels[i]) - math.sin(h) * (target - source)
        else:
            z = math.cos(h) * z - math.sin(h) * target
        torch.testing.assert_close(latents, z, rtol=0, atol=1e-12)
    assert [i for i, _ in path] == list(range(10))


def test_attending_to_the_source_costs_nothing_further(toy, clean, make_schedule):
    inversion = invert_with(UniInv(), toy, clean, make_schedule(10))
    request, results = EditRequest("right", guidance_scale=6.0), []
    for kv_scale in (0.0, 1.0):
        toy.seen.clear()
        results.append(edit(toy, inversion, DirectInversion(kv_scale=kv_scale), request))
        assert toy.nfe == 30
        assert all(branches[1].needs_velocity for branches, _, _ in toy.seen)
        assert all((branches[0].kv_source == 1) == (kv_scale > 0.0) for branches, _, _ in toy.seen)
    assert not torch.allclose(*results)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"replay_steps": (3, 2)}, r"replay_steps: must be a range .*got \(3, 2\)"),
        ({"kv_scale": -0.1}, "kv_scale: must lie in 0 .. 1, got -0.1"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        DirectInversion(**options)
