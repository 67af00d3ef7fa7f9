"""Steps at which the network is not evaluated: what is carried on, and what it spares."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from ddim_lightning.diffusion.editors import Denoise, DirectInversion, FlowEdit, KVInjection
from ddim_lightning.diffusion.editors.base import extrapolate
from ddim_lightning.diffusion.inverters import DDIM
from ddim_lightning.diffusion.sampling import edit, edit_together, invert
from ddim_lightning.types import EditRequest

REQUEST = EditRequest("right", "up", source_prompt="left", guidance_scale=4.0)


@pytest.fixture
def inversion(toy, clean, make_schedule):
    found = invert(toy, clean, make_schedule(10), DDIM(), prompt="left")
    toy.seen.clear()
    return found


def run(denoiser, inversion, editor, request=REQUEST):
    return edit(denoiser, inversion, editor, request, generator=torch.Generator().manual_seed(0))


def test_a_line_is_carried_on_exactly():
    def line(angle):
        return torch.tensor([2.0, -1.0]) * angle + 3.0

    carried = ((0.7, line(0.7)), (0.9, line(0.9)))
    torch.testing.assert_close(extrapolate(carried, 0.4), line(0.4))
    assert extrapolate(carried[:1], 0.4) is carried[0][1]


@pytest.mark.parametrize(("every", "first"), [(2, 0), (3, 1)])
def test_steps_between_take_the_velocity_on_the_line(every, first, toy, clean, inversion, closed_form):
    """Written again: guided velocities at every n-th step, a line through the last two of them between."""
    editor = KVInjection(kv_scale=0.0, eval_every=every, first_step=first)
    schedule, latents, found = inversion.schedule, inversion.levels[first], []
    for step in list(schedule)[first:]:
        if (step.i - first) % every == 0:
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
    torch.testing.assert_close(run(toy, inversion, editor), latents, rtol=0, atol=1e-12)


def test_flow_edit_moves_by_its_last_difference(toy, clean, inversion):
    """With one noise and a model that is linear, two steps by one difference are one larger step."""
    options = {"first_step": 0, "guidance_steps": (0, None), "num_noise_samples": 1, "kv_scale": 0.0, "noise": "fixed"}
    state = (editor := FlowEdit(eval_every=2, **options)).start(
        inversion, REQUEST, torch.Generator().manual_seed(1), toy.num_layers
    )
    first, second = list(inversion.schedule)[:2]
    branches, kv_scale = editor.branches(state, first, inversion)
    velocities = toy(branches, first, kv_scale)
    together = replace(first, angle_next=second.angle_next)
    once = editor.update(state, velocities, together, inversion).latents
    twice = editor.carry(editor.update(state, velocities, first, inversion), second, inversion).latents
    torch.testing.assert_close(twice, once, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "editor",
    [
        KVInjection(eval_every=2),
        KVInjection(eval_every=3, steps=(2, 7), guidance_steps=(0, 4), source_rows="paired"),
        FlowEdit(eval_every=2),
        FlowEdit(eval_every=4, first_step=3, source_guidance=2.0),
    ],
    ids=repr,
)
def test_stated_nfe_are_those_spent(editor, toy, inversion):
    for count in (1, 2):
        before = toy.nfe
        requests = [replace(REQUEST, prompt=prompt) for prompt in ("right", "up")[:count]]
        generators = [torch.Generator().manual_seed(0) for _ in requests]
        edit_together(toy, inversion, editor, requests, generators=generators)
        assert toy.nfe - before == editor.count_nfe(REQUEST, inversion.schedule, count)
    assert editor.count_nfe(REQUEST, inversion.schedule) < replace(editor, eval_every=1).count_nfe(
        REQUEST, inversion.schedule
    )


def test_every_step_is_told_to_the_callback(toy, inversion):
    seen = []
    edit(toy, inversion, KVInjection(eval_every=4), REQUEST, callback=lambda step, latents: seen.append(step.i))
    assert seen == list(range(10))
    assert {step.i for _, step, _ in toy.seen} == {0, 4, 8}


def test_a_mask_holds_between_too(toy, clean, inversion):
    mask = torch.zeros(1, *clean.shape[1:2], 1, *clean.shape[3:])
    mask[..., :2] = 1.0
    edited = run(toy, inversion, KVInjection(eval_every=3), replace(REQUEST, mask=mask))
    assert torch.equal(edited[..., 2:], clean[..., 2:])


def test_what_will_do_an_edit_no_good_is_told(make_schedule):
    few, many = (make_schedule(steps) for steps in (4, 50))
    told, untold = EditRequest("edit", source_prompt="source"), EditRequest("edit")
    editor = FlowEdit(first_step=0, eval_every=2)
    assert editor.check_request(told, many, "") == []
    assert editor.check_request(untold, many, "source") == []  # what the inversion was told is the source's prompt
    (missing,) = editor.check_request(untold, many, "")
    assert missing.startswith("source_prompt: not given")
    (sparse,) = editor.check_request(told, few, "")
    assert sparse.startswith("eval_every: 2 of 4 steps")
    assert FlowEdit(first_step=0).check_request(told, few, "") == []
    assert KVInjection().check_request(untold, few, "") == Denoise().check_request(untold, few, "") == []
    with pytest.raises(ValueError, match=r"^source_prompt: .*got None"):
        Denoise(negative="source").check_request(untold, many, "")


def test_fast_reads_the_source_in_the_noisier_half_and_keeps_all_that_was_asked_for():
    assert KVInjection(kv_scale=0.5, eval_every=5).fast() == KVInjection(kv_scale=0.5, eval_every=5, steps=(0, 0.5))
    for editor in (KVInjection(steps=(3, 9)), FlowEdit(num_noise_samples=4), Denoise(), DirectInversion()):
        assert editor.fast() is editor


@pytest.mark.parametrize("editor", [Denoise(), DirectInversion()], ids=repr)
def test_an_editor_that_evaluates_every_step_carries_nothing_on(editor, toy, inversion):
    state = editor.start(inversion, REQUEST, None, toy.num_layers)
    with pytest.raises(TypeError, match=f"{type(editor).__name__} evaluates every step"):
        editor.carry(state, inversion.schedule[0], inversion)


@pytest.mark.parametrize("method", [KVInjection, FlowEdit])
def test_fewer_than_every_step_cannot_be(method):
    with pytest.raises(ValueError, match=r"^eval_every: must be at least 1, got 0"):
        method(eval_every=0)
