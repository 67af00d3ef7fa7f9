"""Inverters: closed forms, second implementations, round trips, orders of convergence, counted calls."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from ddim_lightning.diffusion.inverters import DDIM, Inverter, State, UniInv
from ddim_lightning.diffusion.loop import invert, reconstruct
from ddim_lightning.diffusion.schedule import StepTable
from ddim_lightning.types import VelocityFn

# Largest relative L2 error of a round trip on the toy at 50 steps, float64, by SNR shift: (without, with the residual).
# A wrong sign or index anywhere raises these by a factor, not by a few per cent.
ROUND_TRIP = {
    (DDIM, 1.0): (0.24, 0.18),
    (DDIM, 3.0): (0.48, 0.20),
    (UniInv, 1.0): (0.075, 0.013),
    (UniInv, 3.0): (0.31, 0.027),
}


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize(("method", "shift"), list(ROUND_TRIP))
@pytest.mark.parametrize("kept", [False, True])
def test_round_trip(method: type[Inverter], kept: bool, shift: float, toy, clean, make_table) -> None:  # type: ignore[no-untyped-def]
    inversion = invert(toy, clean, make_table(50, shift), method(keep_residual=kept), prompt="right")
    error = relative_error(reconstruct(toy, inversion), clean)
    assert error <= ROUND_TRIP[method, shift][kept]


@pytest.mark.parametrize("num_steps", [7, 28, 30, 50])
def test_uni_inv_comes_back_far_better_than_ddim(num_steps: int, toy, clean, make_table) -> None:  # type: ignore[no-untyped-def]
    errors = [
        relative_error(reconstruct(toy, invert(toy, clean, make_table(num_steps), inverter)), clean)
        for inverter in (DDIM(), UniInv(keep_residual=False), UniInv())
    ]
    assert errors[1] < errors[0]
    assert errors[2] < errors[0] / 15


def test_ddim_climbs_as_the_diffusers_formula(toy, clean, make_table, closed_form) -> None:  # type: ignore[no-untyped-def]
    table = make_table(10)
    inversion = invert(toy, clean, table, DDIM(), prompt="right")
    latents = clean
    for i in range(9, -1, -1):
        # Velocity of the cleaner latents at the noisier timestep, decoded at the cleaner level.
        velocity = closed_form(latents, table.angles[i], "right")
        low, high = table.angles[i + 1], table.angles[i]
        x0 = math.cos(low) * latents - math.sin(low) * velocity
        e = math.sin(low) * latents + math.cos(low) * velocity
        latents = math.cos(high) * x0 + math.sin(high) * e
        torch.testing.assert_close(inversion.levels[i], latents, rtol=0, atol=1e-13)
    assert inversion.residual is None and inversion.calls == 10


def test_uni_inv_climbs_as_published(toy, clean, make_table, closed_form) -> None:  # type: ignore[no-untyped-def]
    """Algorithm 1 of arXiv:2504.13109 in rotation form, written again."""
    table = make_table(10)
    inversion = invert(toy, clean, table, UniInv(), prompt="left")
    latents, velocity = clean, None
    for i in range(9, -1, -1):
        h = table.angles[i] - table.angles[i + 1]
        guess = latents if velocity is None else math.cos(h) * latents + math.sin(h) * velocity
        velocity = closed_form(guess, table.angles[i], "left")
        latents = (latents + math.sin(h) * velocity) / math.cos(h)
        torch.testing.assert_close(inversion.levels[i], latents, rtol=0, atol=1e-13)
    torch.testing.assert_close(inversion.state[0], latents, rtol=0, atol=1e-13)


def uniform_table(num_steps: int) -> StepTable:
    """A smooth grid, on which an order shows; it stops short of both ends."""
    angles = [1.4 - 1.2 * i / num_steps for i in range(num_steps + 1)]
    return StepTable(tuple(range(num_steps, 0, -1)), tuple(angles))


@pytest.mark.parametrize("method", [DDIM, UniInv])
def test_inverted_latent_converges_to_the_exact_flow(method: type[Inverter], toy, clean, exact) -> None:  # type: ignore[no-untyped-def]
    """Both are of first order against the ODE, as the DDIM step is."""
    errors = []
    for num_steps in (160, 320):
        table = uniform_table(num_steps)
        inverted = invert(toy, clean, table, method(), prompt="right").levels[0]
        errors.append(relative_error(inverted, exact(clean, table.angles[-1], table.angles[0], "right")))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(1.0, abs=0.05)


def test_round_trip_orders(toy, clean) -> None:  # type: ignore[no-untyped-def]
    """Undoing its own way down, Uni-Inv is of second order (the predictor is), DDIM of first."""
    for inverter, order in ((DDIM(), 1.0), (UniInv(), 2.0)):
        errors = [
            relative_error(reconstruct(toy, invert(toy, clean, uniform_table(n), inverter)), clean) for n in (160, 320)
        ]
        assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.05)


@pytest.mark.parametrize("inverter", [DDIM(), DDIM(keep_residual=True), UniInv(), UniInv(keep_residual=False)])
def test_stated_calls_are_the_calls_made(inverter: Inverter, toy, clean, make_table) -> None:  # type: ignore[no-untyped-def]
    inversion = invert(toy, clean, make_table(7), inverter)
    assert inversion.calls == len(toy.seen) == inverter.count_calls(7)


def test_residual_is_what_the_last_step_misses(toy, clean, make_table, closed_form) -> None:  # type: ignore[no-untyped-def]
    table = make_table(10)
    inversion = invert(toy, clean, table, UniInv(), prompt="right")
    angle = table.angles[9]
    velocity = closed_form(inversion.levels[9], angle, "right")
    landed = math.cos(angle) * inversion.levels[9] - math.sin(angle) * velocity
    torch.testing.assert_close(inversion.residual, clean - landed, rtol=0, atol=1e-14)


def test_reconstruction_uses_nothing_but_noise_state_and_residual(toy, clean, make_table) -> None:  # type: ignore[no-untyped-def]
    from dataclasses import replace

    inversion = invert(toy, clean, make_table(10), UniInv())
    blind = replace(inversion, levels=torch.full_like(inversion.levels, torch.nan))
    assert torch.equal(reconstruct(toy, blind), reconstruct(toy, inversion))


def test_levels_run_from_noise_to_clean_and_the_callback_sees_each(toy, clean, make_table) -> None:  # type: ignore[no-untyped-def]
    seen = []
    table = make_table(10)
    inversion = invert(toy, clean, table, UniInv(), callback=lambda step, latents: seen.append((step, latents)))
    assert inversion.levels.shape == (11, *clean.shape)
    assert torch.equal(inversion.levels[10], clean)
    assert [step.i for step, _ in seen] == list(range(9, -1, -1))
    for step, latents in seen:
        assert torch.equal(inversion.levels[step.i], latents)


def test_a_method_of_ones_own_with_its_own_way_down(toy, clean, make_table) -> None:  # type: ignore[no-untyped-def]
    """A state of several tensors travels through both loops."""

    @dataclass(frozen=True)
    class Remembering(Inverter):
        def up(self, velocity_fn: VelocityFn, state: State, table: StepTable, i: int) -> State:
            return (state[0] + 1.0, *state)

        def down(self, velocity_fn: VelocityFn, state: State, table: StepTable, i: int) -> State:
            return state[1:]

        def count_calls(self, num_steps: int) -> int:
            return 0

    inversion = invert(toy, clean, make_table(5), Remembering(keep_residual=False))
    assert len(inversion.state) == 6
    assert torch.equal(reconstruct(toy, inversion), clean)
    assert toy.seen == []
