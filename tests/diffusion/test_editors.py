"""What editors ask the model for, above all K/V injection, and what they do with what comes back."""

from __future__ import annotations

import pytest
import torch

from ddim_lightning.diffusion.editors import Editor, FlowEdit, KVInjection, DirectInversion
from ddim_lightning.diffusion.inverters import DDIM, UniInv
from ddim_lightning.diffusion.sampling import edit, edit_together, invert
from ddim_lightning.diffusion.steps import denoise_step
from ddim_lightning.types import EditRequest

REQUEST = EditRequest("right", negative_prompt="left", guidance_scale=6.0)


@pytest.fixture
def inversion(toy, clean, make_table):
    found = invert(toy, clean, make_table(10), UniInv(), prompt="left")
    toy.seen.clear()
    return found


def run(toy, inversion, editor, request=REQUEST, seed=0):
    return edit(toy, inversion, editor, request, generator=torch.Generator().manual_seed(seed))


def test_default_is_one_shared_source_row_on_the_trajectory(toy, inversion):
    run(toy, inversion, KVInjection())
    assert len(toy.seen) == 10
    for branches, step, kv_scale in toy.seen:
        target, source = branches
        assert target.prompts == ("left", "right") and target.guidance_scale == 6.0 and target.reads == 1
        assert source.prompts == ("left",) and source.reads is None and not source.wanted
        assert torch.equal(source.latents, inversion.levels[step.i])
        assert torch.equal(kv_scale, torch.ones(4))
    assert torch.equal(toy.seen[0][0][0].latents, inversion.levels[0])


def test_shared_row_is_told_the_source_prompt_when_there_is_one(toy, inversion):
    run(toy, inversion, KVInjection(), EditRequest("right", source_prompt="", guidance_scale=6.0))
    assert {branches[1].prompt for branches, _, _ in toy.seen} == {""}


def test_paired_rows_are_the_scripts(toy, inversion):
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
    reading = {step.i: kv_scale for branches, step, kv_scale in toy.seen if len(branches) == 2}
    assert set(reading) == {2, 3, 4}
    assert all(torch.equal(kv_scale, torch.tensor([0.0, 0.25, 0.25, 0.0])) for kv_scale in reading.values())
    alone = [branches[0] for branches, _, kv_scale in toy.seen if kv_scale is None]
    assert len(alone) == 7 and all(target.reads is None for target in alone)


@pytest.mark.parametrize("editor", [KVInjection(kv_scale=0.0), KVInjection(layers=(2, 2)), KVInjection(steps=(3, 3))])
def test_nothing_to_read_is_no_source_row_at_all(editor: KVInjection, toy, inversion):
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
    KVInjection(source="replayed"),
    KVInjection(source="replayed", kv_scale=0.0, source_text="edit"),
    KVInjection(source="replayed", first_step=1, steps=(2, 5), **PAIRED),
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
def test_planned_rows_are_the_rows_asked_for(editor: Editor, scale: float, together: int, toy, inversion):
    requests = [EditRequest(prompt, "up", "left", scale) for prompt in ("right", "", "up")[:together]]
    generators = [torch.Generator().manual_seed(0) for _ in requests]
    edit_together(toy, inversion, editor, requests, generators=generators)
    assert toy.rows == editor.count_nfe(requests[0], inversion.schedule, together)


def test_an_edit_to_the_source_itself_is_no_shortcut(toy, inversion):
    """Target and source are the same work at the first step; both are evaluated, as planned."""
    editor, request = DirectInversion(), EditRequest("left", guidance_scale=1.0)
    run(toy, inversion, editor, request)
    assert toy.rows == 20 == editor.count_nfe(request, inversion.schedule)


@pytest.mark.parametrize(
    ("source_text", "rows", "told"),
    [
        ("auto", "shared", ""),
        ("auto", "paired", "right"),
        ("source", "paired", ""),
        ("inversion", "shared", "left"),
        ("edit", "shared", "right"),
    ],
)
def test_what_the_source_rows_are_told(source_text, rows, told, toy, inversion):
    editor = KVInjection(source_text=source_text, source_rows=rows)
    run(toy, inversion, editor, EditRequest("right", "up", source_prompt="", guidance_scale=3.0))
    expected = (told,) if rows == "shared" else ("up", told)
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
    with pytest.raises(ValueError, match=r"^source_prompt: negative='source' .* must be given, got None$"):
        run(toy, inversion, KVInjection(negative="source"), EditRequest("right", "up", guidance_scale=3.0))


def follow_source(denoiser, inversion, editor, request):
    """Run an edit step by step; return how far its source branch is from the trajectory at each level, in L2."""
    state, apart = editor.start(inversion, request, None, denoiser.num_layers), []
    for step in inversion.schedule:
        branches, kv_scale = editor.branches(state, step, inversion)
        state = editor.update(state, denoiser(branches, step, kv_scale), step, inversion)
        level = inversion.levels[step.i + 1]
        apart.append(float((state.source - level).norm() / level.norm()))
    return apart


def test_replay_keeps_a_free_source_on_the_trajectory(toy, clean, make_table):
    """DDIM's steps miss the trajectory by far; corrected, only rounding is left."""
    inversion = invert(toy, clean, make_table(10), DDIM(), prompt="left")
    editor = KVInjection(source="replayed", source_rows="paired")
    assert max(follow_source(toy, inversion, editor, REQUEST)) <= 1e-11
    for branches, step, _ in toy.seen[-10:]:
        _, free, stored = branches
        assert free.wanted and stored.wanted and branches[0].reads == 1
        assert torch.equal(stored.latents, inversion.levels[step.i])


@pytest.mark.parametrize("num_steps", [10, pytest.param(50, marks=pytest.mark.slow)])
def test_replay_keeps_a_free_source_on_the_trajectory_of_the_trained_model(num_steps, trained):
    inversion = invert(trained.denoiser, trained.clean, trained.tables[num_steps], UniInv())
    editor = KVInjection(source="replayed", source_rows="paired")
    request = EditRequest("a green cross moving up on a blue background", guidance_scale=6.0)
    apart = follow_source(trained.denoiser, inversion, editor, request)
    assert 0.0 < max(apart) <= 1e-3


def compare_source_rows(trained, editor):
    """For each step, whether the first row behind the two of the edit enters the transformer as the stored level."""
    inversion, rows = invert(trained.denoiser, trained.clean, trained.tables[5], UniInv()), []
    hook = trained.denoiser.network.transformer.patch_embed.register_forward_pre_hook(
        lambda _, arguments: rows.append(arguments[1][2:3].clone())
    )
    try:
        request = EditRequest("a red circle", source_prompt=trained.caption, guidance_scale=3.0)
        edit(trained.denoiser, inversion, editor, request)
    finally:
        hook.remove()
    return [torch.equal(row, level) for row, level in zip(rows, inversion.levels[:-1], strict=True)]


@pytest.mark.parametrize("rows", ["shared", "paired"])
def test_the_source_row_that_enters_the_transformer_is_the_trajectory_bit_for_bit(rows, trained):
    assert all(compare_source_rows(trained, KVInjection(source_rows=rows)))


def test_without_snapping_it_is_not(trained):
    same = compare_source_rows(trained, KVInjection(source="replayed", source_rows="paired"))
    assert same[0] and not all(same)


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
        ({"source_rows": "none"}, "source_rows: must be one of shared, paired, got 'none'"),
        ({"initial": "zeros"}, "initial: must be one of"),
        ({"guidance": "linear"}, "guidance: must be one of"),
        ({"source": "free"}, "source: must be one of snapped, replayed, got 'free'"),
        ({"source_text": "none"}, "source_text: must be one of auto, source, inversion, edit, got 'none'"),
        ({"negative": "none"}, "negative: must be one of request, source, got 'none'"),
        ({"guidance_steps": (4, 3)}, r"guidance_steps: must be a range with 0 <= first <= end, got \(4, 3\)"),
        ({"first_step": -1}, "first_step: must be a range with 0 <= first <= end"),
        ({"first_step": 1.5}, "first_step: a float is a share and must lie in 0 .. 1, got 1.5"),
        ({"steps": (0.6, 0.2)}, "steps: must be a range with 0 <= first <= end"),
        ({"order": 0}, "order: must be at least 1, got 0"),
        ({"initial": "k_rnr"}, "first_step: k_rnr starts below pure noise, so it must be at least 1, got 0"),
        ({"velocity_mask": 1.5}, "velocity_mask: must lie in 0 .. 1, got 1.5"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
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
def test_ranges_that_do_not_fit_the_model_are_refused(editor: KVInjection, message: str, toy, inversion):
    with pytest.raises(ValueError, match=message):
        run(toy, inversion, editor)


@pytest.mark.parametrize(
    ("shares", "places"),
    [
        (KVInjection(first_step=0.4), KVInjection(first_step=4)),
        (KVInjection(steps=(0.2, 0.5), layers=(0.5, None)), KVInjection(steps=(2, 5), layers=(2, None))),
        (KVInjection(guidance_steps=(0, 0.26)), KVInjection(guidance_steps=(0, 3))),
        (DirectInversion(replay_steps=(0.5, 1.0)), DirectInversion(replay_steps=(5, 10))),
        (FlowEdit(), FlowEdit(first_step=1, guidance_steps=(4, 8))),
    ],
    ids=repr,
)
def test_shares_are_places_of_any_table(shares, places, toy, inversion):
    request = EditRequest("right", guidance_scale=3.0)
    assert torch.equal(run(toy, inversion, shares, request), run(toy, inversion, places, request))
    assert shares.count_nfe(request, inversion.schedule) == places.count_nfe(request, inversion.schedule)


def test_a_share_may_lie_past_what_there_is(toy, inversion):
    with pytest.raises(ValueError, match=r"editor.first_step: must be one of the 10 steps, got 1.0"):
        run(toy, inversion, KVInjection(first_step=1.0))
    with pytest.raises(ValueError, match=r"editor.steps: must end within the 10 that there are, got \(8, 0.5\)"):
        run(toy, inversion, KVInjection(steps=(8, 0.5)))
