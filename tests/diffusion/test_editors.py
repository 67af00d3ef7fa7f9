"""What editors ask the model for, above all K/V injection, and what they do with what comes back."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
import torch

from ddim_lightning.diffusion.editors import Denoise, DirectInversion, FlowEdit, KVInjection
from ddim_lightning.diffusion.inverters import UniInv
from ddim_lightning.diffusion.sampling import edit, edit_together, invert
from ddim_lightning.diffusion.steps import denoise_step
from ddim_lightning.types import EditRequest

REQUEST = EditRequest("right", negative_prompt="left", guidance_scale=6.0)


@pytest.fixture
def inversion(toy, clean, make_schedule):
    found = invert(toy, clean, make_schedule(10), UniInv(), prompt="left")
    toy.seen.clear()
    return found


def run(toy, inversion, editor, request=REQUEST, seed=0):
    return edit(toy, inversion, editor, request, generator=torch.Generator().manual_seed(seed))


def test_default_is_one_shared_source_on_the_trajectory(toy, inversion):
    run(toy, inversion, KVInjection())
    assert len(toy.seen) == 10
    for branches, step, kv_scale in toy.seen:
        target, source = branches
        assert target.prompts == ("left", "right") and target.guidance_scale == 6.0 and target.kv_source == 1
        assert source.prompts == ("left",) and source.kv_source is None and not source.needs_velocity
        assert torch.equal(source.latents, inversion.levels[step.i])
        assert torch.equal(kv_scale, torch.ones(4))
    assert torch.equal(toy.seen[0][0][0].latents, inversion.levels[0])


def test_a_shared_source_is_told_the_source_prompt_when_there_is_one(toy, inversion):
    run(toy, inversion, KVInjection(), EditRequest("right", source_prompt="", guidance_scale=6.0))
    assert {branches[1].prompt for branches, _, _ in toy.seen} == {""}


def test_a_paired_source_is_the_scripts(toy, inversion):
    run(toy, inversion, KVInjection(source_rows="paired"))
    for branches, _, _ in toy.seen:
        assert branches[0].prompts == branches[1].prompts == ("left", "right")


def test_update_is_a_ddim_step_of_the_target(toy, inversion):
    landed = run(toy, inversion, KVInjection())
    branches, step, kv_scale = toy.seen[-1]
    velocity = toy(branches, step, kv_scale)[0]
    assert torch.equal(landed, denoise_step(branches[0].latents, velocity, step))


def test_ranges_of_layers_and_steps(toy, inversion):
    run(toy, inversion, KVInjection(layers=(1, 3), steps=(2, 5), kv_scale=0.25))
    attending = {step.i: kv_scale for branches, step, kv_scale in toy.seen if len(branches) == 2}
    assert set(attending) == {2, 3, 4}
    assert all(torch.equal(kv_scale, torch.tensor([0.0, 0.25, 0.25, 0.0])) for kv_scale in attending.values())
    alone = [branches[0] for branches, _, kv_scale in toy.seen if kv_scale is None]
    assert len(alone) == 7 and all(target.kv_source is None for target in alone)


@pytest.mark.parametrize("editor", [KVInjection(kv_scale=0.0), KVInjection(layers=(2, 2)), KVInjection(steps=(3, 3))])
def test_nothing_to_attend_to_is_no_source_at_all(editor, toy, inversion):
    run(toy, inversion, editor)
    assert all(len(branches) == 1 and kv_scale is None for branches, _, kv_scale in toy.seen)


PAIRED = {"source_rows": "paired"}
EDITORS = [
    KVInjection(),
    KVInjection(**PAIRED),
    KVInjection(steps=(2, 6)),
    KVInjection(steps=(2, None), **PAIRED),
    KVInjection(kv_scale=0.0),
    KVInjection(layers=(1, 1)),
    *(KVInjection(source_rows=rows, source_text=text) for rows in ("shared", "paired") for text in ("source", "edit")),
    KVInjection(source_text="inversion", **PAIRED),
    KVInjection(guidance_steps=(3, 7)),
    KVInjection(guidance_steps=(3, 7), steps=(5, 9), **PAIRED),
    KVInjection(guidance="script_dynamic"),
    KVInjection(negative="source"),
    KVInjection(first_step=3, steps=(1, 6)),
    KVInjection(first_step=9, initial="k_rnr", **PAIRED),
    KVInjection(eval_every=2),
    Denoise(),
    Denoise(initial="random", guidance_steps=(2, 6)),
    Denoise(first_step=2, negative="source"),
    DirectInversion(),
    DirectInversion(kv_scale=1.0, **PAIRED),
    DirectInversion(replay_steps=(2, 6)),
    DirectInversion(replay_steps=(2, 6), kv_scale=0.5, steps=(4, 8), first_step=3),
    DirectInversion(source_text="edit", replay_steps=(7, 7), kv_scale=1.0),
    FlowEdit(),
    FlowEdit(num_noise_samples=3, noise="fixed"),
    FlowEdit(source_guidance=3.0, num_noise_samples=2),
    FlowEdit(source_guidance=3.0, guidance_steps=(2, 5), first_step=1),
]


@pytest.mark.parametrize("together", [1, 2, 3])
@pytest.mark.parametrize("scale", [1.0, 6.0])
@pytest.mark.parametrize("editor", EDITORS, ids=repr)
def test_stated_nfe_are_those_spent(editor, scale, together, toy, inversion):
    requests = [EditRequest(prompt, "up", "left", scale) for prompt in ("right", "", "up")[:together]]
    generators = [torch.Generator().manual_seed(0) for _ in requests]
    edit_together(toy, inversion, editor, requests, generators=generators)
    assert toy.nfe == editor.count_nfe(requests[0], inversion.schedule, together)


def test_an_edit_to_the_source_itself_is_no_shortcut(toy, inversion):
    """Target and source are the same work at the first step; both are evaluated, as planned."""
    editor, request = DirectInversion(), EditRequest("left", guidance_scale=1.0)
    run(toy, inversion, editor, request)
    assert toy.nfe == 20 == editor.count_nfe(request, inversion.schedule)


@pytest.mark.parametrize(
    ("source_text", "source_rows", "told"),
    [
        ("auto", "shared", ""),
        ("auto", "paired", "right"),
        ("source", "paired", ""),
        ("inversion", "shared", "left"),
        ("edit", "shared", "right"),
    ],
)
def test_what_the_source_is_told(source_text, source_rows, told, toy, inversion):
    editor = KVInjection(source_text=source_text, source_rows=source_rows)
    run(toy, inversion, editor, EditRequest("right", "up", source_prompt="", guidance_scale=3.0))
    expected = (told,) if source_rows == "shared" else ("up", told)
    assert {branches[1].prompts for branches, _, _ in toy.seen} == {expected}


def test_guidance_has_a_window_of_steps(toy, inversion):
    run(toy, inversion, KVInjection(guidance_steps=(3, 7)))
    assert [branches[0].guidance_scale for branches, _, _ in toy.seen] == [1.0] * 3 + [6.0] * 4 + [1.0] * 3


def test_a_later_start_leaves_the_first_steps_out(toy, inversion):
    run(toy, inversion, KVInjection(first_step=4))
    assert [step.i for _, step, _ in toy.seen] == [4, 5, 6, 7, 8, 9]
    assert torch.equal(toy.seen[0][0][0].latents, inversion.levels[4])


def test_guidance_may_move_away_from_the_source_prompt(toy, inversion):
    run(
        toy, inversion, KVInjection(negative="source"), EditRequest("right", "up", source_prompt="", guidance_scale=3.0)
    )
    assert {branches[0].prompts for branches, _, _ in toy.seen} == {("", "right")}
    with pytest.raises(ValueError, match=r"^source_prompt: .*got None"):
        run(toy, inversion, KVInjection(negative="source"), EditRequest("right", "up", guidance_scale=3.0))


@pytest.mark.parametrize("source_rows", ["shared", "paired"])
def test_the_source_enters_the_transformer_as_the_trajectory_bit_for_bit(source_rows, trained):
    """The first row behind the two of the edit."""
    inversion, rows = invert(trained.denoiser, trained.clean, trained.schedules[5], UniInv()), []
    hook = trained.denoiser.network.transformer.patch_embed.register_forward_pre_hook(
        lambda _, arguments: rows.append(arguments[1][2:3].clone())
    )
    try:
        request = EditRequest("a red circle", source_prompt=trained.caption, guidance_scale=3.0)
        edit(trained.denoiser, inversion, KVInjection(source_rows=source_rows), request)
    finally:
        hook.remove()
    assert all(torch.equal(row, level) for row, level in zip(rows, inversion.levels[:-1], strict=True))


def test_random_start_depends_on_the_seed_alone(toy, inversion):
    editor = KVInjection(initial="random")
    first, again, other = (run(toy, inversion, editor, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    noise = torch.randn(inversion.levels[0].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.equal(toy.seen[0][0][0].latents, noise)


def test_injection_pulls_the_edit_towards_the_source(toy, inversion, clean):
    request = EditRequest("right", guidance_scale=1.0)
    distances = [
        float((run(toy, inversion, KVInjection(kv_scale=kv_scale), request) - clean).norm())
        for kv_scale in (0.0, 0.5, 1.0)
    ]
    assert distances[0] > distances[1] > distances[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kv_scale": 1.5}, "kv_scale: must lie in 0 .. 1, got 1.5"),
        ({"layers": (3, 1)}, "layers: must be a range"),
        ({"steps": (-1, None)}, "steps: must be a range"),
        ({"source_rows": "none"}, "source_rows: must be one of .*got 'none'"),
        ({"initial": "zeros"}, "initial: must be one of"),
        ({"guidance": "linear"}, "guidance: must be one of"),
        ({"source_text": "none"}, "source_text: must be one of .*got 'none'"),
        ({"negative": "none"}, "negative: must be one of .*got 'none'"),
        ({"guidance_steps": (4, 3)}, r"guidance_steps: must be a range .*got \(4, 3\)"),
        ({"first_step": -1}, "first_step: must be a range"),
        ({"first_step": 1.5}, "first_step: .* 0 .. 1, got 1.5"),
        ({"steps": (0.6, 0.2)}, "steps: must be a range"),
        ({"order": 0}, "order: must be at least 1, got 0"),
        ({"initial": "k_rnr"}, "first_step: .* at least 1, got 0"),
        ({"velocity_mask": 1.5}, "velocity_mask: must lie in 0 .. 1, got 1.5"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        KVInjection(**options)


@pytest.mark.parametrize(
    ("editor", "message"),
    [
        (KVInjection(layers=(4, None)), "editor.layers: must end within the 4"),
        (KVInjection(layers=(0, 5)), "editor.layers: must end within the 4"),
        (KVInjection(steps=(11, None)), "editor.steps: must end"),
        (KVInjection(guidance_steps=(0, 11)), "editor.guidance_steps: must end within the 10"),
        (DirectInversion(replay_steps=(10, None)), "editor.replay_steps: must end within the 10"),
        (FlowEdit(first_step=10), "editor.first_step: must be one of the 10 steps, got 10"),
    ],
)
def test_ranges_that_do_not_fit_the_model_are_refused(editor, message, toy, inversion):
    with pytest.raises(ValueError, match=message):
        run(toy, inversion, editor)


@pytest.mark.parametrize(
    ("shares", "places"),
    [
        (KVInjection(first_step=0.4), KVInjection(first_step=4)),
        (KVInjection(steps=(0.2, 0.5), layers=(0.5, None)), KVInjection(steps=(2, 5), layers=(2, None))),
        (KVInjection(guidance_steps=(0, 0.26)), KVInjection(guidance_steps=(0, 3))),
        (DirectInversion(replay_steps=(0.5, 1.0)), DirectInversion(replay_steps=(5, 10))),
        (FlowEdit(), FlowEdit(first_step=3)),
        (FlowEdit(first_step=0.08, guidance_steps=(0.42, 0.8)), FlowEdit(first_step=1, guidance_steps=(4, 8))),
    ],
    ids=repr,
)
def test_shares_are_places_of_any_schedule(shares, places, toy, inversion):
    request = EditRequest("right", guidance_scale=3.0)
    assert torch.equal(run(toy, inversion, shares, request), run(toy, inversion, places, request))
    assert shares.count_nfe(request, inversion.schedule) == places.count_nfe(request, inversion.schedule)


def test_a_share_may_lie_past_what_there_is(toy, inversion):
    with pytest.raises(ValueError, match=r"editor.first_step: must be one of the 10 steps, got 1.0"):
        run(toy, inversion, KVInjection(first_step=1.0))
    with pytest.raises(ValueError, match=r"editor.steps: must end within the 10 .*got \(8, 0.5\)"):
        run(toy, inversion, KVInjection(steps=(8, 0.5)))


@pytest.mark.parametrize("initial", ["inverted", "random"])
@pytest.mark.parametrize(
    "options", [{}, {"guidance_steps": (2, 7)}, {"first_step": 3}, {"negative": "source"}], ids=repr
)
def test_plain_denoising_is_injection_of_nothing(options, initial, toy, inversion):
    """Bit for bit; and nothing of a source is evaluated."""
    request = EditRequest("right", "up", "left", 6.0)
    plain = run(toy, inversion, Denoise(initial=initial, **options), request)
    assert all(len(branches) == 1 and kv_scale is None for branches, _, kv_scale in toy.seen)
    assert {branches[0].kv_source for branches, _, _ in toy.seen} == {None}
    assert torch.equal(plain, run(toy, inversion, KVInjection(initial=initial, kv_scale=0.0, **options), request))
    editors = Denoise(initial=initial, **options), KVInjection(initial=initial, kv_scale=0.0, **options)
    assert len({editor.count_nfe(request, inversion.schedule, 2) for editor in editors}) == 1


def test_plain_denoising_of_the_trained_model_is_injection_of_nothing(trained):
    inversion = invert(trained.denoiser, trained.clean, trained.schedules[5], UniInv(), prompt=trained.caption)
    request = EditRequest("a green cross moving up on a blue background", guidance_scale=2.0)
    for initial in ("inverted", "random"):
        plain, nothing = (
            run(trained.denoiser, inversion, editor, request)
            for editor in (Denoise(initial=initial), KVInjection(initial=initial, kv_scale=0.0))
        )
        assert torch.equal(plain, nothing)


def test_denoising_from_noise_knows_nothing_of_the_source(toy, inversion):
    elsewhere = replace(inversion, levels=7.0 - inversion.levels)
    ours, theirs = (run(toy, found, Denoise(initial="random")) for found in (inversion, elsewhere))
    assert torch.equal(ours, theirs)
    assert not torch.equal(run(toy, inversion, Denoise()), run(toy, elsewhere, Denoise()))


def test_denoising_takes_no_options_of_a_source():
    for option in ("layers", "steps", "kv_scale", "source_rows", "source_text", "eval_every", "outside"):
        with pytest.raises(TypeError, match=option):
            Denoise(**{option: 1})


def test_defaults_are_those_of_the_papers():
    """None of what was tuned on the tiny model."""
    plain = {"first_step": 0, "guidance": "constant", "guidance_steps": (0, None), "negative": "request"}
    plain |= {"velocity_mask": None}
    denoise = plain | {"initial": "inverted", "order": 3}
    source = denoise | {"layers": (0, None), "steps": (0, None), "source_rows": "shared", "source_text": "auto"}
    source |= {"outside": "edit"}
    assert asdict(Denoise()) == denoise
    # The reference script attends fully, in every layer and at every step.
    assert asdict(KVInjection()) == source | {"kv_scale": 1.0, "eval_every": 1}
    # Algorithm 1 corrects every step and attends to nothing.
    assert asdict(DirectInversion()) == source | {"kv_scale": 0.0, "replay_steps": (0, None)}
    # Stable Diffusion 3 in the paper: n_max = 33 of 50 steps, one noise, the source guided by 3.5.
    flow = {"noise": "fresh", "num_noise_samples": 1, "source_guidance": 3.5, "kv_scale": 0.0, "eval_every": 1}
    flow |= {"outside": "edit"}
    assert asdict(FlowEdit()) == plain | {"first_step": 0.34} | flow
    assert FlowEdit().get_first_step(50) == 50 - 33
