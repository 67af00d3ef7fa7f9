"""FlowEdit: the rotated difference of a pair, and the edit that changes nothing."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from ddim_lightning.diffusion.editors import FlowEdit
from ddim_lightning.diffusion.inverters import DDIM
from ddim_lightning.diffusion.sampling import edit, invert
from ddim_lightning.types import EditRequest

REQUEST = EditRequest("right", "up", source_prompt="left", guidance_scale=4.0)


def make_flow(**options):
    """From the first step, one noise, an unguided source, nothing attended to, unless an option says otherwise."""
    plain = {
        "first_step": 0,
        "guidance_steps": (0, None),
        "num_noise_samples": 1,
        "source_guidance": 1.0,
        "kv_scale": 0.0,
    }
    return FlowEdit(**(plain | options))


@pytest.fixture
def inversion(toy, clean, make_schedule):
    found = invert(toy, clean, make_schedule(10), DDIM())
    toy.seen.clear()
    return found


def run(denoiser, inversion, editor, request=REQUEST, seed=0):
    return edit(denoiser, inversion, editor, request, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "editor",
    [
        make_flow(),
        make_flow(noise="fixed"),
        make_flow(num_noise_samples=3),
        make_flow(num_noise_samples=2, kv_scale=0.3),
        make_flow(source_guidance=2.0, first_step=3),
        make_flow(source_guidance=2.0, guidance_steps=(2, 6)),
    ],
    ids=repr,
)
def test_update_is_the_rotated_difference_of_the_pair(editor, toy, clean, inversion):
    """``a' (z' - x0) = cos h a (z - x0) - sin h (v_t - v_s)`` at every step, both under the same noise."""
    schedule = inversion.schedule
    state = editor.start(inversion, REQUEST, torch.Generator().manual_seed(1), toy.num_layers)
    for step in list(schedule)[editor.first_step :]:
        z = state.latents
        branches, kv_scale = editor.branches(state, step, inversion)
        velocities = toy(branches, step, kv_scale)
        state = editor.update(state, velocities, step, inversion)
        a, a_next, h = math.cos(step.angle), math.cos(step.angle_next), step.angle - step.angle_next
        assert len(branches) == 2 * editor.num_noise_samples
        for target, source in zip(branches[::2], branches[1::2], strict=True):
            torch.testing.assert_close(target.latents - source.latents, a * (z - clean), rtol=0, atol=1e-12)
            guided = step.i in range(10)[slice(*editor.guidance_steps)]
            assert (target.prompt, source.prompt) == ("right", "left")
            assert (target.guidance_scale, source.guidance_scale) == (
                (4.0, editor.source_guidance) if guided else (1.0, 1.0)
            )
        apart = (
            sum(v_t - v_s for v_t, v_s in zip(velocities[::2], velocities[1::2], strict=True))
            / editor.num_noise_samples
        )
        expected = math.cos(h) * a * (z - clean) - math.sin(h) * apart
        torch.testing.assert_close(a_next * (state.latents - clean), expected, rtol=0, atol=1e-12)
    assert float((state.latents - clean).norm() / clean.norm()) > 0.1


@pytest.mark.parametrize("scale", [1.0, 6.0])
@pytest.mark.parametrize("first_step", [0, 4])
def test_an_edit_to_the_source_returns_the_source(first_step, scale, toy, clean, inversion):
    editor = make_flow(source_guidance=scale, first_step=first_step)
    landed = run(toy, inversion, editor, EditRequest("right", "up", "right", scale))
    assert float((landed - clean).norm() / clean.norm()) <= 1e-13
    assert toy.nfe == (10 - first_step) * (2 if scale == 1.0 else 4)


@pytest.mark.parametrize("kv_scale", [0.0, 0.05])
@pytest.mark.parametrize("num_steps", [5, pytest.param(50, marks=pytest.mark.slow)])
def test_an_edit_to_the_source_returns_the_source_in_float32(num_steps, kv_scale, trained):
    """Attended to or not: keys and values that are one's own once more change no attention."""
    model, text = trained.denoiser, trained.caption
    inversion = invert(model, trained.clean, trained.schedules[num_steps], DDIM())
    editor = make_flow(source_guidance=6.0, kv_scale=kv_scale)
    landed = run(model, inversion, editor, EditRequest(text, "", text, 6.0))
    assert landed.dtype == torch.float32
    assert float((landed - trained.clean).norm() / trained.clean.norm()) <= 1e-5
    assert model.nfe == inversion.nfe + 4 * num_steps  # both branches, guided, at every step


def test_noise_is_fresh_at_every_step_and_draw_or_one_for_all(toy, clean, inversion):
    for noise, kinds in (("fresh", 20), ("fixed", 2)):
        toy.seen.clear()
        run(toy, inversion, make_flow(noise=noise, num_noise_samples=2))
        drawn = [
            (branch.latents - math.cos(step.angle) * clean) / math.sin(step.angle)
            for branches, step, _ in toy.seen
            for branch in branches[1::2]
        ]
        assert len({round(float(n.flatten()[7]), 6) for n in drawn}) == kinds
        assert float(torch.stack(drawn).std()) == pytest.approx(1.0, abs=0.15)


def test_every_second_draw_is_the_negative_of_the_one_before(toy, clean, inversion):
    for noise in ("fresh", "fixed"):
        toy.seen.clear()
        run(toy, inversion, make_flow(noise=noise, num_noise_samples=4))
        for branches, step, _ in toy.seen:
            drawn = [branch.latents - math.cos(step.angle) * clean for branch in branches[1::2]]
            torch.testing.assert_close(drawn[0], -drawn[1], rtol=0, atol=1e-14)
            torch.testing.assert_close(drawn[2], -drawn[3], rtol=0, atol=1e-14)
            assert float((drawn[0] - drawn[2]).norm() / drawn[0].norm()) > 0.5


def test_each_draw_of_the_edit_attends_to_the_source_under_the_same_noise(toy, inversion):
    run(toy, inversion, make_flow(num_noise_samples=2, kv_scale=0.3))
    for branches, _, kv_scale in toy.seen:
        assert [branch.kv_source for branch in branches] == [1, None, 3, None]
        torch.testing.assert_close(kv_scale, torch.full((toy.num_layers,), 0.3))
    toy.seen.clear()
    run(toy, inversion, make_flow(num_noise_samples=2))
    assert all(kv_scale is None and branches[0].kv_source is None for branches, _, kv_scale in toy.seen)


def test_attending_holds_what_the_prompt_leaves_alone(trained):
    """The more is attended to, the nearer the edit stays to the source."""
    request = EditRequest("a green cross moving up on a blue background", "", trained.caption, 1.0)
    inversion = invert(trained.denoiser, trained.clean, trained.schedules[10], DDIM())
    edits = [run(trained.denoiser, inversion, make_flow(kv_scale=s), request) for s in (0.0, 0.1, 1.0)]
    apart = [float((edited - trained.clean).norm()) for edited in edits]
    assert apart[0] > apart[1] > apart[2]


def test_the_seed_and_nothing_else_decides(toy, inversion):
    first, again, other = (run(toy, inversion, make_flow(), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_of_the_inversion_only_the_clean_latents_are_used(toy, inversion):
    levels = inversion.levels.clone()
    levels[:-1] = torch.nan
    blind = replace(inversion, levels=levels, state=(), residual=None)
    assert torch.equal(run(toy, blind, make_flow()), run(toy, inversion, make_flow()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": "none"}, "noise: must be one of .*got 'none'"),
        ({"num_noise_samples": 0}, "num_noise_samples: must be at least 1, got 0"),
        ({"kv_scale": 1.1}, "kv_scale: must lie in 0 .. 1, got 1.1"),
        ({"source_guidance": -1.0}, "source_guidance: must not be negative, got -1.0"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        make_flow(**options)
