"""The in-context edit against its definition, on a model with a closed form that attends to what it holds."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from ddim_lightning.diffusion.editors import InContextEdit
from ddim_lightning.diffusion.guidance import combine
from ddim_lightning.diffusion.inversion import Inversion
from ddim_lightning.diffusion.inverters import BDIA, DDIM
from ddim_lightning.diffusion.sampling import edit, edit_together, invert, make_contexts
from ddim_lightning.diffusion.schedule import NoiseSchedule
from ddim_lightning.diffusion.steps import add_noise, denoise_step
from ddim_lightning.types import EditRequest
from tests.diffusion.conftest import GaussianDenoiser, velocity_of

REQUEST = EditRequest("right", "up", "left", 2.0)


class ContextDenoiser(GaussianDenoiser):
    """The closed form, pulled towards the clean latents that a branch attends to."""

    def __init__(self):
        super().__init__()
        self.held = []

    def hold(self, branch):
        self.held.append(branch)
        return (branch,)

    def _evaluate(self, branch, branches, step, kv_scale):
        velocity = super()._evaluate(branch, branches, step, kv_scale)
        (source,) = branch.context or (None,)
        return velocity if source is None else attend(velocity, source.latents, step)


@dataclass(frozen=True)
class Noised(InContextEdit):
    """The edit from a noise that is given, as a batch draws it for all of its clips."""

    noise: Any = None

    def start(self, inversion, request, generator, num_layers):
        state = super().start(inversion, request, generator, num_layers)
        return replace(state, latents=self.noise, noise=self.noise, copy=self.noise.clone())

    needs = InContextEdit.needs


def attend(velocity, source, step):
    return velocity - 0.4 * math.sin(step.angle) * source


def make_generator(seed=6):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def model():
    return ContextDenoiser()


@pytest.fixture
def inversion(clean, make_schedule):
    return Inversion.of_clean(clean, make_schedule(4), BDIA(), "down")


def guide(latents, step, source, prompt, scale=2.0, negative="up"):
    """One guided velocity, written out."""
    rows = [attend(velocity_of(latents, step.angle, text), source, step) for text in (negative, prompt)]
    return combine(*rows, scale)


def test_it_denoises_noise_that_reads_the_clean_source(model, inversion, clean):
    found = edit(model, inversion, InContextEdit(source_timestep=3), REQUEST, generator=make_generator())
    latents = torch.randn(clean.shape, generator=make_generator(), dtype=clean.dtype)
    for step in inversion.schedule:
        latents = denoise_step(latents, guide(latents, step, clean, "right"), step)
    torch.testing.assert_close(found, latents, rtol=0, atol=1e-12)
    (source,) = model.held
    assert (source.prompt, source.timestep, source.guidance_scale) == ("left", 3, 1.0)
    assert torch.equal(source.latents, clean)


def test_the_prompt_of_a_source_that_has_none_is_that_of_the_inversion(model, inversion):
    edit(model, inversion, InContextEdit(), EditRequest("right"), generator=make_generator())
    assert [branch.prompt for branch in model.held] == ["down"]


@pytest.mark.parametrize("residual", [0.25, 1.0])
def test_what_copying_loses_is_given_back(residual, model, inversion, clean):
    editor = InContextEdit(identity_residual=residual)
    found = edit(model, inversion, editor, REQUEST, generator=make_generator())
    plain, copied = (
        edit(model, inversion, InContextEdit(), replace(REQUEST, prompt=prompt), generator=make_generator())
        for prompt in ("right", "left")
    )
    torch.testing.assert_close(found, plain + residual * (clean - copied), rtol=0, atol=1e-12)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("first_step", [0, 2])
def test_an_edit_to_the_source_prompt_returns_the_source_exactly(first_step, masked, model, clean, make_schedule):
    inversion = invert(model, clean, make_schedule(4), DDIM())
    request = replace(REQUEST, prompt="left", mask=make_mask(clean) if masked else None)
    editor = InContextEdit(identity_residual=1.0, first_step=first_step)
    assert torch.equal(edit(model, inversion, editor, request, generator=make_generator()), clean)
    assert not torch.allclose(edit(model, inversion, editor, REQUEST, generator=make_generator()), clean, atol=0.1)


def make_mask(clean):
    mask = torch.zeros(1, clean.shape[1], 1, *clean.shape[3:], dtype=clean.dtype)
    mask[..., 2:] = 1.0
    return mask


@pytest.mark.parametrize("residual", [0.0, 0.5])
@pytest.mark.parametrize("first_step", [0, 1])
def test_outside_a_mask_is_the_source_under_the_edits_own_noise(first_step, residual, model, clean, make_schedule):
    inversion = invert(model, clean, make_schedule(5), DDIM())
    start = inversion.levels[first_step] if first_step else None
    noise = torch.randn(clean.shape, generator=make_generator(), dtype=clean.dtype)
    if start is not None:
        angle = inversion.schedule.angles[first_step]
        noise = (start - math.cos(angle) * clean) / math.sin(angle)
    seen = []
    request = replace(REQUEST, mask=make_mask(clean))
    editor = InContextEdit(first_step=first_step, identity_residual=residual)
    found = edit(
        model, inversion, editor, request, generator=make_generator(), callback=lambda step, x: seen.append((step, x))
    )
    assert len(seen) == 5 - first_step
    for step, latents in seen:
        outside = add_noise(clean, noise, step.angle_next)
        torch.testing.assert_close(latents[..., :2], outside[..., :2], rtol=0, atol=1e-12)
        assert not torch.allclose(latents[..., 2:], outside[..., 2:], atol=0.05)
    assert torch.equal(found[..., :2], clean[..., :2])


def test_it_needs_the_clean_latents_and_later_starts_the_levels(model, inversion, clean, make_schedule):
    schedule, inverter = inversion.schedule, inversion.inverter
    mask = replace(REQUEST, mask=make_mask(clean))
    for editor, request, needed in (
        (InContextEdit(identity_residual=0.5), mask, "clean"),
        (InContextEdit(first_step=1), REQUEST, "levels"),
        (InContextEdit(velocity_mask=0.5), REQUEST, "levels"),
        (InContextEdit(velocity_mask=0.5), mask, "clean"),
    ):
        assert editor.needs(request, schedule, inverter) == needed
        if needed == "clean":  # others raise, for nothing else is there
            edit(model, inversion, editor, request, generator=make_generator())
    made = invert(model, clean, make_schedule(4), DDIM())
    seen = []
    edit(model, made, InContextEdit(first_step=1), REQUEST, callback=lambda step, latents: seen.append(step.i))
    first = model.seen[-3][0][0]
    assert seen == [1, 2, 3] and torch.equal(first.latents, made.levels[1])


@pytest.mark.parametrize("residual", [0.0, 0.5])
@pytest.mark.parametrize(("scale", "rows"), [(1.0, 1), (1.5, 2)])
def test_nfe_are_those_of_one_context_and_the_steps(scale, rows, residual, model, inversion):
    editor, requests = (
        InContextEdit(identity_residual=residual),
        [EditRequest(prompt, "", "left", scale) for prompt in ("right", "up", "left")],
    )
    per_edit = 4 * rows * (2 if residual else 1)
    for count in (1, 3):
        model.seen.clear()
        model.held.clear()
        generators = [make_generator() for _ in range(count)]
        edit_together(model, inversion, editor, requests[:count], generators=generators)
        assert len(model.held) == editor.context_nfe == 1
        assert model.nfe == count * per_edit
        assert 1 + model.nfe == editor.count_nfe(requests[0], inversion.schedule, count)


def test_with_a_later_start_edits_that_begin_alike_are_counted_as_they_are(model, clean, make_schedule):
    inversion = invert(model, clean, make_schedule(4), DDIM())
    editor = InContextEdit(first_step=2, identity_residual=0.5)
    requests = [EditRequest(prompt, "", "left", 2.0) for prompt in ("right", "up")]
    model.seen.clear()
    edit_together(model, inversion, editor, requests, generators=[None, None])
    assert 1 + model.nfe == 1 + 2 * 2 * 2 * 2 == editor.count_nfe(requests[0], inversion.schedule, 2)


def test_contexts_are_made_once_and_shared_where_they_are_the_same(model, inversion):
    editor = InContextEdit(identity_residual=0.5)
    requests = [EditRequest("right", "", source, 2.0) for source in ("left", "up", "left")]
    contexts = make_contexts(model, inversion, editor, requests)
    assert [branch.prompt for branch in model.held] == ["left", "up"]
    assert contexts[0] is contexts[2] is not contexts[1]
    generators = [make_generator() for _ in requests]
    together = edit_together(model, inversion, editor, requests, generators=generators, contexts=contexts)
    apart = [edit(model, inversion, editor, request, generator=make_generator()) for request in requests]
    assert all(map(torch.equal, together, apart))
    assert torch.equal(apart[0], apart[2]) and not torch.equal(apart[0], apart[1])
    assert len(model.held) == 2 + 3
    with pytest.raises(ValueError, match=r"zip\(\)"):
        edit_together(model, inversion, editor, requests, generators=generators, contexts=contexts[:2])


def test_a_source_and_its_copy_are_shown_the_image_of_the_source(model, inversion, clean):
    image, other = torch.ones_like(clean), torch.zeros_like(clean)
    shown = replace(inversion, image_latents=image)
    request = replace(REQUEST, image_latents=other)
    edit(model, shown, InContextEdit(identity_residual=0.5), request, generator=make_generator())
    assert model.held[0].image_latents is image
    for (target, copy), _, _ in model.seen:
        assert target.image_latents is other and copy.image_latents is image
        assert (target.prompt, copy.prompt) == ("right", "left")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source_timestep": -1}, r"^source_timestep: must lie in 0 \.\. 999, got -1"),
        ({"source_timestep": 1000}, r"^source_timestep: .* got 1000"),
        ({"identity_residual": 1.5}, r"^identity_residual: must lie in 0 \.\. 1, got 1\.5"),
        ({"identity_residual": -0.1}, r"^identity_residual: .* got -0\.1"),
    ],
)
def test_options_out_of_their_range(options, message):
    with pytest.raises(ValueError, match=message):
        InContextEdit(**options)


@pytest.fixture
def two_steps(trained):
    schedule = trained.schedules[5]
    picked = [0, 3]
    timesteps, angles = ([values[i] for i in picked] for values in (schedule.timesteps, schedule.angles))
    return NoiseSchedule(tuple(timesteps), (*angles, schedule.angles[-1]))


def test_on_the_trained_model_several_prompts_agree_with_each_alone(trained, two_steps):
    inversion = Inversion.of_clean(trained.clean, two_steps, DDIM(), trained.caption)
    editor = InContextEdit(identity_residual=0.5)
    requests = [
        EditRequest(f"a {word} moving up on a blue background", guidance_scale=1.5)
        for word in ("red circle", "green cross")
    ]
    generators = [make_generator() for _ in requests]
    together = edit_together(trained.denoiser, inversion, editor, requests, generators=generators)
    assert trained.denoiser.nfe == 1 + 2 * 2 * 2 * 2 == editor.count_nfe(requests[0], inversion.schedule, 2)
    for request, latents in zip(requests, together, strict=True):
        alone = edit(trained.denoiser, inversion, editor, request, generator=make_generator())
        assert float((latents - alone).norm() / alone.norm()) <= 1e-5
    # An edit to the source's own caption is the source, up to nothing at all.
    whole = replace(editor, identity_residual=1.0)
    same = edit(trained.denoiser, inversion, whole, replace(requests[0], prompt=trained.caption))
    assert torch.equal(same, trained.clean)


def test_a_batch_of_clips_is_each_alone(trained, two_steps):
    clean = torch.cat([trained.clean, trained.clean.flip(-1)])
    schedule, editor = two_steps, InContextEdit(identity_residual=0.5)
    request = EditRequest("a red circle moving up", "", trained.caption, 1.5)
    noise = torch.randn(clean.shape, generator=make_generator())
    whole = edit(
        trained.denoiser, Inversion.of_clean(clean, schedule, DDIM()), editor, request, generator=make_generator()
    )
    assert trained.denoiser.nfe == 2 * editor.count_nfe(request, schedule)
    for k in range(2):
        one = Inversion.of_clean(clean[k : k + 1], schedule, DDIM())
        alone = edit(trained.denoiser, one, Noised(noise=noise[k : k + 1], identity_residual=0.5), request)
        assert float((whole[k : k + 1] - alone).norm() / alone.norm()) <= 1e-5
