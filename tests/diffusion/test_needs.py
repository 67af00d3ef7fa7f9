"""What an editor says that it needs of an inversion is what it reads: no more, and no less."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ddim_lightning.diffusion.editors import Denoise, DirectInversion, FlowEdit, KVInjection
from ddim_lightning.diffusion.inversion import Inversion
from ddim_lightning.diffusion.inverters import BDIA, DDIM, EditFriendly, UniInv
from ddim_lightning.diffusion.sampling import edit, invert, reconstruct
from ddim_lightning.diffusion.schedule import NoiseSchedule
from ddim_lightning.types import EditRequest

REQUEST = EditRequest("right", "up", source_prompt="left", guidance_scale=3.0)
STEPS, LAYERS = 6, 4


def run(denoiser, inversion, editor, request=REQUEST):
    return edit(denoiser, inversion, editor, request, generator=torch.Generator().manual_seed(1))


def spoil(inversion, *, clean=False):
    """Make the clean latents, or everything else, of an inversion worthless."""
    levels = inversion.levels.clone()
    levels[-1 if clean else slice(-1)] = torch.nan
    if clean:
        return replace(inversion, levels=levels)
    state = tuple(torch.full_like(one, torch.nan) for one in inversion.state)
    return replace(inversion, levels=levels, state=state, residual=None)


def ranges(size):
    places = st.tuples(st.integers(0, size - 1), st.integers(0, size)).map(lambda ends: (min(ends), max(ends)))
    return places | st.just((0, None))


def editors():
    """Every editor with every option that bears on what it reads."""
    shared = {
        # From the last step on, no level but the clean one is left to be kept outside a mask.
        "first_step": st.integers(0, STEPS - 2),
        "velocity_mask": st.none() | st.just(0.3),
    }
    kv_scale = st.sampled_from([0.0, 0.5])
    start = {"initial": st.sampled_from(["inverted", "random"]), "order": st.integers(1, 3)}
    later = {"initial": st.just("k_rnr"), "first_step": st.integers(1, STEPS - 2)}
    source = {"layers": ranges(LAYERS), "steps": ranges(STEPS), "kv_scale": kv_scale}
    source["source_rows"] = st.sampled_from(["shared", "paired"])
    every = {"eval_every": st.integers(1, 3)}
    flow = {"noise": st.sampled_from(["fresh", "fixed"]), "num_noise_samples": st.integers(1, 2), "kv_scale": kv_scale}
    denoising = [
        (Denoise, shared | start),
        (KVInjection, shared | start | source | every),
        (DirectInversion, shared | start | source | {"replay_steps": ranges(STEPS)}),
    ]
    made = [st.builds(kind, **options | more) for kind, options in denoising for more in ({}, later)]
    return st.one_of(*made, st.builds(FlowEdit, **shared | flow | every))


@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    editor=editors(),
    inverter=st.sampled_from([DDIM(), UniInv(), BDIA(), EditFriendly()]),
    masked=st.booleans(),
    noisy=st.booleans(),
)
def test_what_is_not_needed_is_not_read_and_what_is_needed_is(
    editor, inverter, masked, noisy, toy, clean, make_schedule
):
    schedule = make_schedule(STEPS)
    if not noisy:  # begins where a little of the video is left
        longer = make_schedule(STEPS + 1)
        schedule = NoiseSchedule(longer.timesteps[1:], longer.angles[1:])
    inversion = invert(toy, clean, schedule, inverter, generator=torch.Generator().manual_seed(2))
    request = replace(REQUEST, mask=torch.full_like(clean[:, :, :1], 0.5) if masked else None)
    wanted, needs = run(toy, inversion, editor, request), editor.needs(request, schedule, inverter)
    same = {
        "levels": torch.equal(run(toy, spoil(inversion), editor, request), wanted),
        "clean": torch.equal(run(toy, spoil(inversion, clean=True), editor, request), wanted),
    }
    if needs == "levels":
        assert not same["levels"]
        with pytest.raises(ValueError, match=rf"^inversion: .*{type(editor).__name__}"):
            run(toy, Inversion.of_clean(clean, schedule, inverter), editor, request)
    else:
        assert same == {"levels": True, "clean": needs == "nothing"}
        assert torch.equal(run(toy, Inversion.of_clean(clean, schedule, inverter), editor, request), wanted)


@dataclass(frozen=True)
class SaysNothing(FlowEdit):
    """An editor of one's own: what it reads is not known, whatever its parent reads."""


@dataclass(frozen=True)
class Says(SaysNothing):
    """Another one, that says it."""

    needs = FlowEdit.needs


def test_an_editor_that_does_not_say_it_itself_needs_everything(toy, clean, make_schedule):
    schedule = make_schedule(4)
    assert SaysNothing().needs(REQUEST, schedule, DDIM()) == "levels"
    assert Says().needs(REQUEST, schedule, DDIM()) == "clean"
    source = Inversion.of_clean(clean, schedule, DDIM())
    assert run(toy, source, Says()).isfinite().all()
    with pytest.raises(ValueError, match=r"^inversion: .*SaysNothing"):
        run(toy, source, SaysNothing())


@dataclass(frozen=True)
class Lies(FlowEdit):
    """An editor that reads more than it says."""

    def needs(self, request, schedule, inverter):
        return "clean"

    def update(self, state, velocities, step, inversion):
        return replace(state, latents=inversion.levels[step.i + 1])


def test_levels_that_are_not_there_are_no_numbers(toy, clean, make_schedule):
    source = Inversion.of_clean(clean, make_schedule(4), UniInv(), "left")
    assert source.nfe == 0 and source.prompt == "left" and not source.was_made
    assert source.clean is clean and source.levels[4] is clean and source.levels[-1] is clean
    for read in (lambda: source.levels[0], lambda: source.levels[3], lambda: source.levels[:2], lambda: source.x_T):
        with pytest.raises(ValueError, match=r"^levels: no inversion was made"):
            read()
    with pytest.raises(ValueError, match=r"^levels: .* got 2; .*needs"):
        run(toy, source, Lies())
    for read in (source.to_dict, lambda: reconstruct(toy, source)):
        with pytest.raises(ValueError, match=r"^inversion: must be made by invert"):
            read()


def test_an_inversion_that_was_made_has_its_clean_latents(toy, clean, make_schedule):
    inversion = invert(toy, clean, make_schedule(4), UniInv())
    assert inversion.was_made and torch.equal(inversion.clean, clean) and torch.equal(inversion.levels[-1], clean)
