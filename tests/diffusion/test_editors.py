"""K/V injection: which branches it asks for, at which strength, and what it does with what comes back."""

from __future__ import annotations

import pytest
import torch

from ddim_lightning.diffusion.editors import KVInjection
from ddim_lightning.diffusion.inverters import UniInv
from ddim_lightning.diffusion.loop import edit, invert
from ddim_lightning.diffusion.steps import forward_step
from ddim_lightning.types import EditRequest

REQUEST = EditRequest("right", negative_prompt="left", guidance_scale=6.0)


@pytest.fixture
def inversion(toy, clean, make_table):  # type: ignore[no-untyped-def]
    found = invert(toy, clean, make_table(10), UniInv(), prompt="left")
    toy.seen.clear()
    return found


def run(toy, inversion, editor, request=REQUEST, seed=0):  # type: ignore[no-untyped-def]
    return edit(toy, inversion, editor, request, generator=torch.Generator().manual_seed(seed))


def test_default_is_one_shared_source_row_on_the_trajectory(toy, inversion) -> None:  # type: ignore[no-untyped-def]
    run(toy, inversion, KVInjection())
    assert len(toy.seen) == 10
    for branches, step, strength in toy.seen:
        target, source = branches
        assert target.prompts == ("left", "right") and target.guidance_scale == 6.0 and target.reads == 1
        assert source.prompts == ("left",) and source.reads is None and not source.wanted
        assert torch.equal(source.latents, inversion.levels[step.i])
        assert torch.equal(strength, torch.ones(4))
    assert torch.equal(toy.seen[0][0][0].latents, inversion.levels[0])


def test_shared_row_is_told_the_source_prompt_when_there_is_one(toy, inversion) -> None:  # type: ignore[no-untyped-def]
    run(toy, inversion, KVInjection(), EditRequest("right", source_prompt="", guidance_scale=6.0))
    assert {branches[1].prompt for branches, _, _ in toy.seen} == {""}


def test_paired_rows_are_the_scripts(toy, inversion) -> None:  # type: ignore[no-untyped-def]
    run(toy, inversion, KVInjection(source_rows="paired"))
    for branches, _, _ in toy.seen:
        assert branches[0].prompts == branches[1].prompts == ("left", "right")


def test_update_is_a_ddim_step_of_the_target(toy, inversion) -> None:  # type: ignore[no-untyped-def]
    landed = run(toy, inversion, KVInjection())
    branches, step, strength = toy.seen[-1]
    velocity = toy(branches, step, strength)[0]
    assert torch.equal(landed, forward_step(branches[0].latents, velocity, step))


def test_ranges_of_layers_and_steps(toy, inversion) -> None:  # type: ignore[no-untyped-def]
    run(toy, inversion, KVInjection(layers=(1, 3), steps=(2, 5), strength=0.25))
    reading = {step.i: strength for branches, step, strength in toy.seen if len(branches) == 2}
    assert set(reading) == {2, 3, 4}
    assert all(torch.equal(strength, torch.tensor([0.0, 0.25, 0.25, 0.0])) for strength in reading.values())
    alone = [branches[0] for branches, _, strength in toy.seen if strength is None]
    assert len(alone) == 7 and all(target.reads is None for target in alone)


@pytest.mark.parametrize("editor", [KVInjection(strength=0.0), KVInjection(layers=(2, 2)), KVInjection(steps=(3, 3))])
def test_nothing_to_read_is_no_source_row_at_all(editor: KVInjection, toy, inversion) -> None:  # type: ignore[no-untyped-def]
    run(toy, inversion, editor)
    assert all(len(branches) == 1 and strength is None for branches, _, strength in toy.seen)


@pytest.mark.parametrize("scale", [1.0, 6.0])
@pytest.mark.parametrize(
    "editor",
    [
        KVInjection(),
        KVInjection(source_rows="paired"),
        KVInjection(steps=(2, 6)),
        KVInjection(steps=(2, None), source_rows="paired"),
        KVInjection(strength=0.0),
        KVInjection(layers=(1, 1)),
    ],
)
def test_planned_rows_are_the_rows_asked_for(editor: KVInjection, scale: float, toy, inversion) -> None:  # type: ignore[no-untyped-def]
    request = EditRequest("right", guidance_scale=scale)
    run(toy, inversion, editor, request)
    rows = sum(len(branch.prompts) for branches, _, _ in toy.seen for branch in branches)
    assert rows == editor.count_calls(request, 10)


def test_random_start_depends_on_the_seed_alone(toy, inversion) -> None:  # type: ignore[no-untyped-def]
    editor = KVInjection(initial="random")
    first, again, other = (run(toy, inversion, editor, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    noise = torch.randn(inversion.levels[0].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.equal(toy.seen[0][0][0].latents, noise)


def test_injection_pulls_the_edit_towards_the_source(toy, inversion, clean) -> None:  # type: ignore[no-untyped-def]
    request = EditRequest("right", guidance_scale=1.0)
    distances = [
        float((run(toy, inversion, KVInjection(strength=strength), request) - clean).norm())
        for strength in (0.0, 0.5, 1.0)
    ]
    assert distances[0] > distances[1] > distances[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": 1.5}, "strength: must lie in 0 .. 1, got 1.5"),
        ({"layers": (3, 1)}, "layers: must be a range"),
        ({"steps": (-1, None)}, "steps: must be a range"),
        ({"source_rows": "none"}, "source_rows: must be one of shared, paired, got 'none'"),
        ({"initial": "zeros"}, "initial: must be one of"),
        ({"guidance": "linear"}, "guidance: must be one of"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KVInjection(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("editor", "message"),
    [
        (KVInjection(layers=(4, None)), "editor.layers: must end within the 4"),
        (KVInjection(layers=(0, 5)), "editor.layers: must end within the 4"),
        (KVInjection(steps=(11, None)), "editor.steps: must end"),
    ],
)
def test_ranges_that_do_not_fit_the_model_are_refused(editor: KVInjection, message: str, toy, inversion) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        run(toy, inversion, editor)
