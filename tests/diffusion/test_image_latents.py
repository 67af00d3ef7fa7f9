"""What an image-to-video model is shown: the source its own image, the edit that of the request."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from ddim_lightning.diffusion.editors import Denoise, DirectInversion, FlowEdit, KVInjection
from ddim_lightning.diffusion.inversion import Inversion
from ddim_lightning.diffusion.inverters import FixedPoint
from ddim_lightning.diffusion.sampling import edit, edit_together, invert, merge_branches, reconstruct, sample
from ddim_lightning.types import Branch, EditRequest
from tests.diffusion.conftest import GaussianDenoiser

EDITORS = [
    Denoise(initial="random"),
    Denoise(velocity_mask=0.4),
    KVInjection(guidance_steps=(1, 8)),
    KVInjection(source_rows="paired", source_text="source", first_step=3, initial="k_rnr"),
    DirectInversion(kv_scale=0.5, replay_steps=(2, 8)),
    DirectInversion(source_rows="paired", source_text="source"),
    FlowEdit(num_noise_samples=2),
]


class ImageDenoiser(GaussianDenoiser):
    """The closed form, pulled towards the image that a branch is shown."""

    def _evaluate(self, branch, branches, step, kv_scale):
        return super()._evaluate(branch, branches, step, kv_scale) - 0.3 * branch.image_latents


@pytest.fixture
def model():
    return ImageDenoiser()


@pytest.fixture
def image(clean):
    return torch.cat([clean[:, :1], torch.zeros_like(clean[:, 1:])], dim=1)


@pytest.fixture
def inversion(model, clean, image, make_schedule):
    found = invert(model, clean, make_schedule(10), FixedPoint(tolerance=0.0), prompt="left", image_latents=image)
    assert all(branch.image_latents is image for branches, _, _ in model.seen for branch in branches)
    model.seen.clear()
    return found


def run(model, inversion, editor, *requests):
    generators = [torch.Generator().manual_seed(6) for _ in requests]
    return edit_together(model, inversion, editor, requests, generators=generators)


def test_the_way_back_is_under_the_same_image(model, inversion, clean, image):
    torch.testing.assert_close(reconstruct(model, inversion), clean, rtol=0, atol=1e-6)
    again = Inversion.from_dict(inversion.to_dict(), inversion.inverter, "left")
    assert torch.equal(again.image_latents, image)
    assert torch.equal(reconstruct(model, again), reconstruct(model, inversion))
    other = reconstruct(model, replace(inversion, image_latents=-image))
    assert (other - clean).abs().max() > 1e-2


@pytest.mark.parametrize("editor", EDITORS, ids=repr)
def test_the_edit_is_shown_the_request_and_the_source_its_own(editor, model, inversion, image):
    shown = EditRequest("right", source_prompt="up", guidance_scale=6.0, image_latents=-image)
    (edited,) = run(model, inversion, editor, shown)
    for branches, _, _ in model.seen:
        for branch in branches:
            assert branch.image_latents is (shown.image_latents if branch.prompt == "right" else image)
    model.seen.clear()
    (plain,) = run(model, inversion, editor, replace(shown, image_latents=None))
    assert all(branch.image_latents is image for branches, _, _ in model.seen for branch in branches)
    assert (edited - plain).abs().max() > 1e-3


@pytest.mark.parametrize("editor", EDITORS, ids=repr)
def test_together_each_edit_has_its_own_image(editor, model, inversion, image):
    requests = [EditRequest("right", source_prompt="up", image_latents=made) for made in (-image, None, 2.0 * image)]
    together = run(model, inversion, editor, *requests)
    apart = [run(model, inversion, editor, request)[0] for request in requests]
    assert all(map(torch.equal, together, apart))
    assert not any(torch.equal(apart[a], apart[b]) for a, b in ((0, 1), (1, 2), (0, 2)))


def test_the_source_is_evaluated_once_for_all_images(model, inversion, image):
    requests = [EditRequest("right", source_prompt="up", image_latents=made) for made in (-image, 2.0 * image)]
    run(model, inversion, KVInjection(), *requests)
    assert model.nfe == 10 * 3


def test_the_same_latents_under_two_images_are_two_branches(image):
    latents = torch.ones_like(image)
    merged, places = merge_branches([[Branch(latents, "up", image_latents=made)] for made in (image, -image, image)])
    assert places == [[0], [1], [0]] and len(merged) == 2


def test_an_editor_that_knows_of_no_image(model, inversion, image):
    """Its edited branch, made by the base, has the request's image; another, made by hand, the inversion's."""

    @dataclass(frozen=True)
    class Beside(Denoise):
        def branches(self, state, step, inversion):
            (target,), _ = super().branches(state, step, inversion)
            return [target, Branch(inversion.levels[step.i], "left")], None

    edit(model, inversion, Beside(), EditRequest("right", image_latents=-image))
    for (target, source), _, _ in model.seen:
        assert torch.equal(target.image_latents, -image) and source.image_latents is image


def test_sampling_is_shown_the_image(model, image, make_schedule):
    noise, schedule = torch.ones_like(image), make_schedule(4)
    shown, other = (sample(model, noise, "up", schedule, 2.0, made) for made in (image, -image))
    assert (shown - other).abs().max() > 1e-2
