"""Several prompts in one pass: the same edits, the source evaluated once."""

from __future__ import annotations

import pytest
import torch

from ddim_lightning.diffusion.editors import Denoise, DirectInversion, FlowEdit, KVInjection
from ddim_lightning.diffusion.inverters import EditFriendly, UniInv
from ddim_lightning.diffusion.sampling import edit, edit_together, invert, merge_branches
from ddim_lightning.types import Branch, EditRequest

PROMPTS = ("right", "up", "")


def make_generators(count):
    return [torch.Generator().manual_seed(6) for _ in range(count)]


@pytest.fixture
def inversion(toy, clean, make_schedule):
    found = invert(toy, clean, make_schedule(10), UniInv(), prompt="left")
    toy.seen.clear()
    return found


@pytest.mark.parametrize(
    "editor",
    [
        KVInjection(),
        KVInjection(source_rows="paired", initial="random"),
        KVInjection(steps=(2, 6), guidance_steps=(1, 8)),
        Denoise(initial="random", guidance_steps=(1, 8)),
        KVInjection(first_step=3, initial="k_rnr", velocity_mask=0.4),
        DirectInversion(kv_scale=0.5, replay_steps=(2, 8)),
        FlowEdit(num_noise_samples=2, source_guidance=3.0),
    ],
    ids=repr,
)
def test_together_is_the_same_as_one_after_the_other(editor, toy, inversion):
    """Requests of all kinds at once: without guidance, under another negative or source prompt, with a mask."""
    half = torch.zeros(1, 2, 1, 4, 5, dtype=torch.float64)
    half[..., 2:] = 1.0
    requests = [
        EditRequest("right", "up", "left", 6.0),
        EditRequest("up", "", None, 1.0, half),
        EditRequest("", "right", "up", 2.0),
    ]
    apart = [
        edit(toy, inversion, editor, request, generator=generator)
        for request, generator in zip(requests, make_generators(3), strict=True)
    ]
    together = edit_together(toy, inversion, editor, requests, generators=make_generators(3))
    assert all(map(torch.equal, together, apart))
    assert not any(torch.equal(apart[a], apart[b]) for a, b in ((0, 1), (1, 2), (0, 2)))


def test_together_with_an_inverter_that_keeps_maps(toy, clean, make_schedule):
    inversion = invert(toy, clean, make_schedule(6), EditFriendly(), generator=make_generators(1)[0])
    requests = [EditRequest(prompt) for prompt in PROMPTS]
    together = edit_together(toy, inversion, KVInjection(), requests, generators=[None] * 3)
    assert all(torch.equal(a, edit(toy, inversion, KVInjection(), r)) for a, r in zip(together, requests, strict=True))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_source_is_evaluated_once(count, toy, inversion):
    requests = [EditRequest(prompt, "", "left", 6.0) for prompt in PROMPTS[:count]]
    edit_together(toy, inversion, KVInjection(), requests, generators=[None] * count)
    assert len(toy.seen) == 10 and toy.nfe == 10 * (2 * count + 1)
    for branches, step, _ in toy.seen:
        (source,) = [k for k, branch in enumerate(branches) if branch.kv_source is None]
        assert torch.equal(branches[source].latents, inversion.levels[step.i]) and branches[source].prompt == "left"
        targets = [branch for branch in branches if branch.kv_source is not None]
        assert [branch.prompt for branch in targets] == list(PROMPTS[:count])
        assert {branch.kv_source for branch in targets} == {source}


def test_the_callback_sees_all_of_them_after_every_step(toy, inversion):
    seen = []
    requests = [EditRequest(prompt) for prompt in PROMPTS[:2]]
    landed = edit_together(
        toy,
        inversion,
        KVInjection(),
        requests,
        generators=[None] * 2,
        callback=lambda step, latents: seen.append((step.i, latents)),
    )
    assert [i for i, _ in seen] == list(range(10))
    assert all(len(latents) == 2 for _, latents in seen) and all(map(torch.equal, seen[-1][1], landed))


def test_a_generator_too_few_is_noticed(toy, inversion):
    with pytest.raises(ValueError, match=r"zip\(\)"):
        edit_together(toy, inversion, KVInjection(), [EditRequest("up"), EditRequest("")], generators=[None])


def test_merging_keeps_the_source_and_the_need_of_each_branch():
    a, b, source = (torch.full((1, 1, 1, 1, 1), float(k)) for k in range(3))
    stored, needed = (Branch(source[:], "left", needs_velocity=needs) for needs in (False, True))
    other = Branch(source, "right", needs_velocity=False)
    merged, places = merge_branches(
        [
            [Branch(a, "up", kv_source=1), stored],
            [Branch(b, "up", kv_source=1), needed],
            [Branch(b, "up", kv_source=1), other],
        ]
    )
    assert places == [[0, 1], [2, 1], [3, 4]]
    assert [branch.kv_source for branch in merged] == [1, None, 1, 4, None]
    assert [branch.needs_velocity for branch in merged] == [True, True, True, True, False]
    assert [branch.prompt for branch in merged] == ["up", "left", "up", "up", "right"]


def test_equal_branches_of_one_edit_and_equal_values_elsewhere_stay_apart():
    a = torch.ones(1, 1, 1, 1, 1)
    merged, places = merge_branches([[Branch(a, "up"), Branch(a, "up")], [Branch(a, "up"), Branch(a.clone(), "up")]])
    assert places == [[0, 1], [0, 2]] and len(merged) == 3


def test_the_trained_model_agrees_within_rounding_at_every_step(trained):
    inversion = invert(trained.denoiser, trained.clean, trained.schedules[5], UniInv(), prompt=trained.caption)
    requests = [
        EditRequest(f"a {word} moving up on a blue background", guidance_scale=3.0)
        for word in ("red circle", "green cross")
    ]
    path, alone = [], [[], []]
    edit_together(
        trained.denoiser,
        inversion,
        KVInjection(),
        requests,
        generators=[None] * 2,
        callback=lambda _, latents: path.append(latents),
    )
    # In the first step both are the inverted latent, and their rows under the empty prompt are one.
    assert trained.denoiser.nfe == inversion.nfe + 5 * 5 - 1
    for k, request in enumerate(requests):
        edit(trained.denoiser, inversion, KVInjection(), request, callback=lambda _, x, k=k: alone[k].append(x))
    for i in range(5):
        for k in range(2):
            error = float((path[i][k] - alone[k][i]).norm() / alone[k][i].norm())
            assert error <= 1e-5 * (i + 1)


@pytest.mark.parametrize("count", [1, 3])
def test_a_noised_source_is_evaluated_once_a_draw(count, toy, inversion):
    requests = [EditRequest(prompt, "", "left", 6.0) for prompt in PROMPTS[:count]]
    editor = FlowEdit(first_step=0, num_noise_samples=2, source_guidance=1.0)
    generators = [torch.Generator().manual_seed(4) for _ in requests]
    edit_together(toy, inversion, editor, requests, generators=generators)
    assert toy.nfe == 10 * 2 * (2 * count + 1) == editor.count_nfe(requests[0], inversion.schedule, count)
