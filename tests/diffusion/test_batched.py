"""The mathematics take batches, clip by clip as alone, and let gradients through."""

from __future__ import annotations

import pytest
import torch

from ddim_lightning import BDIA, DDIM, Denoise, DirectInversion, EditRequest, FixedPoint, FlowEdit, KVInjection, UniInv
from ddim_lightning.diffusion.sampling import edit, invert, reconstruct, sample
from tests.diffusion.conftest import GaussianDenoiser
from tests.modules import make_module

INVERTERS = [BDIA(), DDIM(), FixedPoint(tolerance=0), UniInv(), UniInv(extrapolate=True, extra_evals=0.5)]
EDITORS = [Denoise(), Denoise(velocity_mask=0.5), DirectInversion(), FlowEdit(), KVInjection()]


class Curved:
    """A `Denoiser` without a closed form, whose curvature depends on the clip."""

    num_layers = 4

    def __call__(self, branches, step, kv_scale=None):
        return [0.4 * torch.sin(1.3 * b.latents) + 0.1 * b.latents.roll(1, -1) ** 2 for b in branches]


@pytest.fixture
def clips(clean):
    return torch.cat([clean, 2.0 * clean.flip(3)])


@pytest.mark.parametrize("inverter", INVERTERS)
def test_inversions_of_a_batch_are_those_of_its_clips(inverter, clips, make_schedule):
    schedule, denoiser = make_schedule(6), Curved()
    both = invert(denoiser, clips, schedule, inverter)
    alone = [invert(denoiser, clip[None], schedule, inverter) for clip in clips]
    torch.testing.assert_close(both.levels, torch.cat([one.levels for one in alone], dim=1), rtol=0, atol=1e-12)
    returned = torch.cat([reconstruct(denoiser, one) for one in alone])
    torch.testing.assert_close(reconstruct(denoiser, both), returned, rtol=0, atol=1e-12)


def test_a_batch_stops_when_its_last_clip_does(clips, make_schedule):
    schedule, inverter = make_schedule(6), FixedPoint()
    both = invert(Curved(), clips, schedule, inverter)
    alone = [invert(Curved(), clip[None], schedule, inverter) for clip in clips]
    assert both.nfe >= max(one.nfe for one in alone)
    for k, one in enumerate(alone):
        torch.testing.assert_close(both.levels[:, k : k + 1], one.levels, rtol=0, atol=1e-3)


@pytest.mark.parametrize("editor", EDITORS)
def test_edits_of_a_batch_are_those_of_its_clips(editor, clips, make_schedule):
    schedule = make_schedule(6)
    request = EditRequest("right", "up", "left", guidance_scale=3.0)

    def run(latents):
        # What FlowEdit draws cancels out where the velocity is linear.
        inversion = invert(GaussianDenoiser(), latents, schedule, DDIM())
        return edit(GaussianDenoiser(), inversion, editor, request, generator=torch.Generator().manual_seed(0))

    alone = torch.cat([run(clip[None]) for clip in clips])
    torch.testing.assert_close(run(clips), alone, rtol=0, atol=1e-12)


def test_samples_of_a_batch_are_those_of_its_clips(clips, make_schedule):
    both, *alone = (sample(Curved(), noise, "a", make_schedule(6), 3.0) for noise in (clips, clips[:1], clips[1:]))
    torch.testing.assert_close(both, torch.cat(alone), rtol=0, atol=1e-12)


@pytest.mark.parametrize("inverter", INVERTERS)
def test_gradients_through_an_inversion_and_back(inverter, clips, make_schedule):
    schedule, latents = make_schedule(3), clips[:, :1, :, :2, :2].clone().requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: invert(Curved(), x, schedule, inverter).levels[0], latents)
    assert torch.autograd.gradcheck(lambda x: reconstruct(Curved(), invert(Curved(), x, schedule, inverter)), latents)


def test_gradients_through_an_edit(clips, make_schedule):
    schedule, latents = make_schedule(3), clips[:, :1, :, :2, :2].clone().requires_grad_(True)

    def run(x):
        return edit(Curved(), invert(Curved(), x, schedule, DDIM()), Denoise(), EditRequest("a", guidance_scale=3.0))

    assert torch.autograd.gradcheck(run, latents)


def test_gradients_through_the_real_network_are_those_of_diffusers(tiny_model):
    """Through one inversion step and a guided edit, also after a run without gradients."""
    latents = torch.randn(2, 3, 8, 4, 6, generator=torch.Generator().manual_seed(0))
    request, found = EditRequest("a red circle", guidance_scale=3.0), []
    for forward in ("fused", "diffusers"):
        options = {"num_inference_steps": 2, "inverter": "DDIM", "editor": "Denoise"}
        module = make_module(str(tiny_model), forward=forward, **options)
        module.load("cpu")
        engine = module.engine
        with torch.inference_mode():
            assert not engine.edit(engine.invert(latents, prompt="a square"), request).requires_grad
        start = latents.clone().requires_grad_(True)
        inversion = engine.invert(start, prompt="a square")
        (step,) = torch.autograd.grad(inversion.levels[1].square().sum(), start, retain_graph=True)
        (whole,) = torch.autograd.grad(engine.edit(inversion, request).square().sum(), start)
        with torch.no_grad():
            assert not engine.invert(start, prompt="a square").levels.requires_grad
        found.append((step, whole))
        assert not any(weight.grad is not None for weight in module.transformer.parameters())
    for ours, theirs in zip(*found, strict=True):
        assert ours.isfinite().all() and all(clip.norm() > 1.0 for clip in theirs)
        assert float((ours - theirs).norm() / theirs.norm()) <= 1e-5
