"""Steps that a cache skips: which they are, what is foretold, and that all branches are of one step."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from ddim_lightning.diffusion.editors import Denoise, DirectInversion, FlowEdit, KVInjection
from ddim_lightning.diffusion.inverters import DDIM
from ddim_lightning.diffusion.sampling import edit, edit_together, invert
from ddim_lightning.diffusion.step_cache import CachedDenoiser, StepCache
from ddim_lightning.types import Branch, EditRequest

REQUEST = EditRequest("right", "up", source_prompt="left", guidance_scale=4.0)
CHANGES = (0.0, 0.3, 0.2, 0.2, 0.1, 0.1, 0.1, 0.4, 0.1, 0.1)
EVALUATED = {0.0: set(range(10)), 0.25: {0, 1, 3, 6, 7, 9}, 0.5: {0, 2, 6, 8, 9}, 9.0: {0, 9}}
"""By threshold, added up by hand: those of 0.5 are .3 + .2, then .2 + .1 + .1 + .1, then .4 + .1."""


@pytest.fixture
def inversion(toy, clean, make_schedule):
    found = invert(toy, clean, make_schedule(10), DDIM(), prompt="left")
    toy.seen.clear()
    return found


def run(denoiser, inversion, editor, cache=None, request=REQUEST):
    return edit(denoiser, inversion, editor, request, generator=torch.Generator().manual_seed(0), cache=cache)


def list_steps(denoiser):
    return [step.i for _, step, _ in denoiser.seen]


@pytest.mark.parametrize("threshold", EVALUATED)
def test_a_step_is_evaluated_where_changes_since_the_last_one_come_to_the_threshold(threshold, toy, inversion):
    """Changes are sums of tenths, so that the thresholds are met within rounding; see `EVALUATED`."""
    cache = StepCache(threshold - 1e-9 if threshold else 0.0, CHANGES)
    run(toy, inversion, Denoise(), cache)
    assert set(list_steps(toy)) == EVALUATED[threshold]
    assert len(toy.seen) == len(EVALUATED[threshold])


def test_foretold_velocities_lie_on_the_line_through_the_last_two(toy, inversion, closed_form):
    """Written again, with the rule of TeaCache as its authors state it: add up, compare, begin anew."""
    schedule, latents, found, added = inversion.schedule, inversion.levels[0], [], 0.0
    for step, change in zip(schedule, CHANGES, strict=True):
        added += change
        if step.i in (0, 9) or added >= 0.25:
            added = 0.0
            negative, positive = (closed_form(latents, step.angle, text) for text in ("up", "right"))
            found.append((step.angle, negative + 4.0 * (positive - negative)))
            velocity = found[-1][1]
        elif len(found) == 1:
            velocity = found[0][1]
        else:
            (a, v), (b, w) = found[-2:]
            velocity = w + (w - v) * (step.angle - b) / (b - a)
        h = step.angle - step.angle_next
        latents = math.cos(h) * latents - math.sin(h) * velocity
    edited = run(toy, inversion, Denoise(), StepCache(0.25, CHANGES))
    torch.testing.assert_close(edited, latents, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "editor",
    [
        Denoise(),
        KVInjection(steps=(2, 7), guidance_steps=(0, 4)),
        KVInjection(eval_every=2),
        DirectInversion(replay_steps=(0, 5)),
        FlowEdit(num_noise_samples=2, kv_scale=0.1, guidance_steps=(3, 8)),
    ],
)
def test_a_threshold_of_zero_evaluates_what_is_evaluated_without_a_cache(editor, toy, inversion):
    plain = run(toy, inversion, editor)
    steps = list_steps(toy)
    toy.seen.clear()
    assert torch.equal(run(toy, inversion, editor, StepCache(0.0, CHANGES)), plain)
    assert list_steps(toy) == steps


@pytest.mark.parametrize("editor", [DirectInversion(), FlowEdit()])
def test_an_edit_to_the_source_prompt_stays_exact(editor, toy, clean, inversion):
    """Source and edit are foretold together from evaluations of one step, so what they have in common cancels."""
    own = replace(REQUEST, prompt="left", guidance_scale=1.0)
    edited = run(toy, inversion, editor, StepCache(0.5, CHANGES), own)
    assert len(toy.seen) < 7
    torch.testing.assert_close(edited, clean, rtol=0, atol=1e-9)


def test_branches_that_change_are_evaluated(toy, inversion):
    """Where guidance sets in and where the source is no longer read no velocity of such branches is there yet."""
    run(toy, inversion, KVInjection(steps=(0, 4), guidance_steps=(5, 10)), StepCache(9.0, CHANGES))
    assert list_steps(toy) == [0, 4, 5, 9]


def test_all_requests_are_evaluated_or_none(toy, inversion):
    requests = [REQUEST, replace(REQUEST, prompt="up")]
    generators = [torch.Generator().manual_seed(0) for _ in requests]
    cache = StepCache(0.25, CHANGES)
    together = edit_together(toy, inversion, DirectInversion(), requests, generators=generators, cache=cache)
    assert set(list_steps(toy)) == {0, 1, 3, 6, 7, 9}
    assert all(len(branches) == 3 for branches, _, _ in toy.seen)  # two edits and the source that they share
    for request, edited in zip(requests, together, strict=True):
        torch.testing.assert_close(edited, run(toy, inversion, DirectInversion(), cache, request), rtol=0, atol=1e-12)


def test_every_edit_begins_anew(toy, inversion):
    cache = StepCache(0.5, CHANGES)
    first = run(toy, inversion, Denoise(), cache)
    run(toy, inversion, Denoise(), cache, replace(REQUEST, prompt="up"))
    assert torch.equal(run(toy, inversion, Denoise(), cache), first)


def test_a_mask_is_made_from_velocities_that_were_evaluated(toy, inversion):
    run(toy, inversion, Denoise(velocity_mask=0.5), StepCache(9.0, CHANGES))
    probes = [step for branches, step, _ in toy.seen if len(branches) == 2]
    assert len(probes) > 2 and list_steps(toy)[len(probes) :] == [0, 9]


def test_a_branch_whose_velocity_nobody_needs_is_not_foretold(toy, clean, make_schedule):
    cached = CachedDenoiser(toy, StepCache(9.0, CHANGES))
    branches = [Branch(clean, "right", kv_source=1), Branch(clean, "left", needs_velocity=False)]
    schedule, kv_scale = make_schedule(10), torch.ones(toy.num_layers)
    for k in (0, 1):
        target, source = cached(branches, schedule[k], kv_scale)
        assert target is not None and source is None
    assert len(toy.seen) == 1 and cached.num_layers == toy.num_layers
