"""Inverters: closed forms, second implementations, round trips, orders of convergence, counted evaluations."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from ddim_lightning.diffusion.editors import KVInjection
from ddim_lightning.diffusion.inverters import BDIA, DDIM, EditFriendly, FixedPoint, Inverter, UniInv
from ddim_lightning.diffusion.sampling import edit, invert, reconstruct
from ddim_lightning.diffusion.schedule import NoiseSchedule
from ddim_lightning.types import EditRequest

LINE = UniInv(extrapolate=True)
TUNED = UniInv(extrapolate=True, extra_evals=0.12)
"""What is recommended for the bundled model."""

# Largest relative L2 error of a round trip on the toy at 50 steps, float64, by SNR shift: (without, with the residual).
# A wrong sign or index anywhere raises these by a factor, not by a few per cent.
ROUND_TRIP = {
    (DDIM(), 1.0): (0.24, 0.18),
    (DDIM(), 3.0): (0.48, 0.20),
    (UniInv(), 1.0): (0.071, 0.0125),
    (UniInv(), 3.0): (0.30, 0.026),
    (TUNED, 1.0): (0.065, 4.4e-3),
    (TUNED, 3.0): (0.30, 0.015),
    (replace(TUNED, first_step_iterations=5), 1.0): (0.011, 0.011),
    (replace(TUNED, first_step_iterations=5), 3.0): (0.020, 0.018),
    (FixedPoint(), 1.0): (2.6e-4, 1.2e-6),
    (FixedPoint(), 3.0): (0.0125, 1.4e-6),
    (FixedPoint(True, 3, 8, 3e-5, accelerate=False), 1.0): (1.7e-3, 6.5e-5),
    (FixedPoint(True, 3, 8, 3e-5, accelerate=False), 3.0): (0.036, 3.5e-4),
}
ALL = [DDIM(), DDIM(True), UniInv(), UniInv(False, 5), UniInv(True, 2), FixedPoint(tolerance=0.0)]
ALL += [
    FixedPoint(False, 2, 1, 0.0, False),
    LINE,
    TUNED,
    BDIA(),
    BDIA(first_step_iterations=1),
    EditFriendly(),
]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def relative_error(ours, theirs):
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize(("inverter", "shift"), list(ROUND_TRIP), ids=repr)
@pytest.mark.parametrize("kept", [False, True])
def test_round_trip(inverter, kept, shift, toy, clean, make_schedule):
    method = replace(inverter, keep_residual=kept)
    inversion = invert(toy, clean, make_schedule(50, shift), method, prompt="right")
    error = relative_error(reconstruct(toy, inversion), clean)
    assert error <= ROUND_TRIP[inverter, shift][kept]


@pytest.mark.parametrize("inverter", [BDIA(), BDIA(first_step_iterations=1), EditFriendly()], ids=repr)
@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("num_steps", [1, 2, 7, 50])
def test_exact_methods_come_back_exactly(num_steps, shift, inverter, toy, clean, make_schedule):
    inversion = invert(toy, clean, make_schedule(num_steps, shift), inverter, prompt="right", generator=seeded())
    assert relative_error(reconstruct(toy, inversion), clean) <= 1e-10


@pytest.mark.parametrize("num_steps", [7, 28, 30, 50])
@pytest.mark.parametrize("inverter", [UniInv(), TUNED], ids=repr)
def test_uni_inv_comes_back_far_better_than_ddim(inverter, num_steps, toy, clean, make_schedule):
    errors = [
        relative_error(reconstruct(toy, invert(toy, clean, make_schedule(num_steps), inverter)), clean)
        for inverter in (DDIM(), replace(inverter, keep_residual=False), inverter)
    ]
    assert errors[1] < errors[0]
    assert errors[2] < errors[0] / 15


def test_ddim_climbs_as_the_diffusers_formula(toy, clean, make_schedule, closed_form):
    schedule = make_schedule(10)
    inversion = invert(toy, clean, schedule, DDIM(), prompt="right")
    latents = clean
    for i in range(9, -1, -1):
        # Velocity of the cleaner latents at the noisier timestep, decoded at the cleaner level.
        velocity = closed_form(latents, schedule.angles[i], "right")
        low, high = schedule.angles[i + 1], schedule.angles[i]
        x0 = math.cos(low) * latents - math.sin(low) * velocity
        e = math.sin(low) * latents + math.cos(low) * velocity
        latents = math.cos(high) * x0 + math.sin(high) * e
        torch.testing.assert_close(inversion.levels[i], latents, rtol=0, atol=1e-13)
    assert inversion.residual is None and inversion.nfe == 10


@pytest.mark.parametrize("first_step_iterations", [0, 3])
def test_uni_inv_climbs_as_published(first_step_iterations, toy, clean, make_schedule, closed_form):
    """Algorithm 1 of arXiv:2504.13109 in rotation form, written again; the step from clean is repeated."""
    schedule = make_schedule(10)
    inverter = UniInv(first_step_iterations=first_step_iterations)
    inversion = invert(toy, clean, schedule, inverter, prompt="left")
    latents, velocity = clean, None
    for i in range(9, -1, -1):
        h = schedule.angles[i] - schedule.angles[i + 1]
        guess = latents if velocity is None else math.cos(h) * latents + math.sin(h) * velocity
        first, solved = velocity is None, latents
        velocity = closed_form(guess, schedule.angles[i], "left")
        solved = (latents + math.sin(h) * velocity) / math.cos(h)
        for _ in range(first_step_iterations if first else 0):
            velocity = closed_form(solved, schedule.angles[i], "left")
            solved = (latents + math.sin(h) * velocity) / math.cos(h)
        latents = solved
        torch.testing.assert_close(inversion.levels[i], latents, rtol=0, atol=1e-13)
    torch.testing.assert_close(inversion.state[0], latents, rtol=0, atol=1e-13)


def test_uni_inv_spends_its_extra_evaluations_where_a_prediction_was_poor(toy, clean, make_schedule, closed_form):
    """Written again: in the noisier half, while any are left, poor steps are evaluated once more, at the solution."""
    num_steps, tolerance = 20, 1.5e-4
    schedule = make_schedule(num_steps)
    inverter = UniInv(extra_evals=0.15, tolerance=tolerance)
    inversion = invert(toy, clean, schedule, inverter, prompt="left")
    latents, velocity, poor = clean, None, []
    for i in reversed(range(num_steps)):
        h = schedule.angles[i] - schedule.angles[i + 1]
        guess = latents if velocity is None else math.cos(h) * latents + math.sin(h) * velocity
        velocity = closed_form(guess, schedule.angles[i], "left")
        solved = (latents + math.sin(h) * velocity) / math.cos(h)
        if i < 10 and (solved - guess).norm() > tolerance * solved.norm():
            poor.append(i)
            if len(poor) <= 3:
                velocity = closed_form(solved, schedule.angles[i], "left")
                solved = (latents + math.sin(h) * velocity) / math.cos(h)
        latents = solved
        torch.testing.assert_close(inversion.levels[i], latents, rtol=0, atol=1e-13)
    assert 3 < len(poor) < 10  # some steps are good enough, and some poor ones come too late
    assert inversion.nfe == inverter.count_nfe(num_steps) == num_steps + 3 + 1


@pytest.mark.parametrize(("tolerance", "nfe"), [(1e6, 51), (1e-12, 57)])
def test_uni_inv_spends_no_more_than_it_needs(tolerance, nfe, toy, clean, make_schedule):
    inverter = replace(TUNED, tolerance=tolerance)
    assert invert(toy, clean, make_schedule(50), inverter).nfe == nfe
    assert inverter.count_nfe(50) == 57


def solve_exactly(latents, angle, angle_next, closed_form):
    """The toy's velocity is slope x + offset, so the implicit step is a division; and the iteration's contraction."""
    offset = closed_form(torch.zeros_like(latents), angle, "right")
    slope = float((closed_form(torch.ones_like(latents), angle, "right") - offset).flatten()[0])
    h = angle - angle_next
    return (latents + math.sin(h) * offset) / (math.cos(h) - math.sin(h) * slope), math.tan(h) * slope


def test_fixed_point_solves_the_implicit_step(toy, clean, make_schedule, closed_form):
    schedule = make_schedule(20)
    inversion = invert(
        toy,
        clean,
        schedule,
        FixedPoint(iterations=80, first_step_iterations=80, tolerance=0.0, accelerate=False),
        prompt="right",
    )
    for i in range(19, -1, -1):
        solved, _ = solve_exactly(inversion.levels[i + 1], *schedule.angles[i : i + 2], closed_form)
        torch.testing.assert_close(inversion.levels[i], solved, rtol=0, atol=1e-12)
    assert relative_error(reconstruct(toy, inversion), clean) <= 1e-11


@pytest.mark.parametrize("iterations", [1, 2, 3])
def test_fixed_point_contracts_from_the_prediction(iterations, toy, clean, make_schedule, closed_form):
    """Each iteration on an affine velocity multiplies the error of the start by tan(h) times the slope."""
    schedule = make_schedule(20)
    inverter = FixedPoint(iterations=iterations, first_step_iterations=iterations, tolerance=0.0, accelerate=False)
    inversion = invert(toy, clean, schedule, inverter, prompt="right")
    velocities = []  # the last first
    for i in range(19, -1, -1):
        below = inversion.levels[i + 1]
        start = predict(below, velocities, schedule, i)
        solved, factor = solve_exactly(below, *schedule.angles[i : i + 2], closed_form)
        expected = solved + factor**iterations * (start - solved)
        torch.testing.assert_close(inversion.levels[i], expected, rtol=0, atol=1e-12)
        last = solved + factor ** (iterations - 1) * (start - solved)
        velocities.insert(0, closed_form(last, schedule.angles[i], "right"))


def test_acceleration_solves_an_affine_step_at_its_second_evaluation(toy, clean, make_schedule, closed_form):
    """On an affine velocity, whose slope is one number, Anderson's mix of two iterates is the solution."""
    schedule = make_schedule(20)
    inversion = invert(
        toy, clean, schedule, FixedPoint(iterations=2, first_step_iterations=2, tolerance=0.0), prompt="right"
    )
    for i in range(18, -1, -1):
        solved, _ = solve_exactly(inversion.levels[i + 1], *schedule.angles[i : i + 2], closed_form)
        torch.testing.assert_close(inversion.levels[i], solved, rtol=0, atol=1e-12)


def test_acceleration_needs_fewer_evaluations_for_the_same_tolerance(trained):
    calls = [
        invert(trained.denoiser, trained.clean, trained.schedules[10], FixedPoint(accelerate=accelerate)).nfe
        for accelerate in (True, False)
    ]
    assert calls[0] < calls[1]


def predict(below, velocities, schedule, i):
    """Along the last velocity, or along the line through the last two, extended to the angle of level i."""
    h = schedule.angles[i] - schedule.angles[i + 1]
    if not velocities:
        return below
    if len(velocities) == 1:
        return math.cos(h) * below + math.sin(h) * velocities[0]
    share = (schedule.angles[i] - schedule.angles[i + 2]) / (schedule.angles[i + 1] - schedule.angles[i + 2])
    velocity = share * velocities[0] + (1 - share) * velocities[1]
    return (below + math.sin(h) * velocity) / math.cos(h)


def test_uni_inv_carries_the_last_two_velocities_on(toy, clean, make_schedule, closed_form):
    schedule = make_schedule(10)
    inversion = invert(toy, clean, schedule, replace(LINE, first_step_iterations=5), prompt="left")
    latents, velocities = clean, list[Tensor]()
    for i in range(9, -1, -1):
        h, point = schedule.angles[i] - schedule.angles[i + 1], predict(latents, velocities, schedule, i)
        for _ in range(1 if velocities else 6):
            velocity = closed_form(point, schedule.angles[i], "left")
            point = (latents + math.sin(h) * velocity) / math.cos(h)
        velocities.insert(0, velocity)
        latents = point
        torch.testing.assert_close(inversion.levels[i], latents, rtol=0, atol=1e-12)
    assert len(inversion.state) == 1


def test_fixed_point_stops_where_it_is_told(toy, clean, make_schedule):
    schedule, calls = make_schedule(20), []
    for tolerance in (0.0, 1e-8, 1e-4, 1e-2):
        inverter = FixedPoint(keep_residual=False, iterations=30, first_step_iterations=30, tolerance=tolerance)
        toy.seen.clear()
        inversion = invert(toy, clean, schedule, inverter, prompt="right")
        calls.append(inversion.nfe)
        assert inversion.nfe == len(toy.seen) <= inverter.count_nfe(20) == 600
        for i in range(20):
            points = [branches[0].latents for branches, step, _ in toy.seen if step.i == i] + [inversion.levels[i]]
            moved = [float((b - a).norm() / b.norm()) for a, b in pairwise(points)]
            assert tolerance == 0.0 or (moved[-1] <= tolerance and all(move > tolerance for move in moved[:-1]))
    assert 600 == calls[0] > calls[1] > calls[2] > calls[3] >= 20


def test_bdia_is_the_papers_recursion(toy, clean, make_schedule, closed_form):
    """Gamma 1 in the paper's alpha, sigma and predicted noise: arXiv:2307.10829, section 4."""
    schedule, gamma = make_schedule(10), 1.0
    alpha, sigma = [math.cos(p) for p in schedule.angles], [math.sin(p) for p in schedule.angles]
    inversion = invert(toy, clean, schedule, BDIA(first_step_iterations=4), prompt="left")
    z = inversion.levels

    def increment(i, j):
        """What a DDIM step from level i to level j adds, under the noise predicted at level i."""
        noise = sigma[i] * z[i] + alpha[i] * closed_form(z[i], schedule.angles[i], "left")
        return alpha[j] * (z[i] - sigma[i] * noise) / alpha[i] + sigma[j] * noise - z[i]

    for i in range(1, 10):
        cleaner = gamma * z[i - 1] + (1 - gamma) * z[i] + increment(i, i + 1) - gamma * increment(i, i - 1)
        torch.testing.assert_close(z[i + 1], cleaner, rtol=0, atol=1e-12)
    point = clean
    for _ in range(4):
        point = (clean + sigma[9] * closed_form(point, schedule.angles[9], "left")) / alpha[9]
    torch.testing.assert_close(z[9], point, rtol=0, atol=1e-13)
    assert torch.equal(inversion.state[0], z[0]) and torch.equal(inversion.state[1], z[1])


def sample_ddpm(x, z, abar, predict):
    """Equations 1 to 3 of arXiv:2304.06140 with eta 1: a DDPM sampler that is given its noise maps."""
    for i in range(len(abar) - 1):
        beta = 1 - abar[i] / abar[i + 1]
        sigma = math.sqrt(beta * (1 - abar[i + 1]) / (1 - abar[i]))
        clean, noise = predict(x, i)
        mean = math.sqrt(abar[i + 1]) * clean + math.sqrt(1 - abar[i + 1] - sigma**2) * noise
        x = mean + (sigma * z[i] if sigma > 0 else z[i])
    return x


def test_edit_friendly_is_ddpm_with_its_own_noise_maps(toy, clean, make_schedule, closed_form):
    schedule = make_schedule(10)
    abar = [math.cos(p) ** 2 for p in schedule.angles]
    inversion = invert(toy, clean, schedule, EditFriendly(), prompt="left", generator=seeded(4))
    levels = inversion.levels

    def predict(x, i, prompt="left"):
        velocity = closed_form(x, schedule.angles[i], prompt)
        return tuple(
            math.cos(p) * x - math.sin(p) * velocity for p in (schedule.angles[i], schedule.angles[i] - math.pi / 2)
        )

    maps = []
    for i in range(10):
        sigma = math.sqrt((1 - abar[i] / abar[i + 1]) * (1 - abar[i + 1]) / (1 - abar[i]))
        assert (sigma == 0) == (i == 9)
        x0, noise = predict(levels[i], i)
        mean = math.sqrt(abar[i + 1]) * x0 + math.sqrt(1 - abar[i + 1] - sigma**2) * noise
        maps.append((levels[i + 1] - mean) / (sigma or 1.0))
        torch.testing.assert_close(inversion.state[1][i], (sigma or 1.0) * maps[i], rtol=0, atol=1e-12)
    torch.testing.assert_close(sample_ddpm(levels[0], maps, abar, predict), clean, rtol=0, atol=1e-10)
    # The same maps under another prompt: the edit of the paper.
    edited = edit(toy, inversion, KVInjection(kv_scale=0.0), EditRequest("right", guidance_scale=1.0))
    theirs = sample_ddpm(levels[0], maps, abar, lambda x, i: predict(x, i, "right"))
    torch.testing.assert_close(edited, theirs, rtol=0, atol=1e-10)
    assert float((edited - clean).norm() / clean.norm()) > 0.5


def test_edit_friendly_noises_each_level_by_itself_from_the_generator(toy, make_schedule):
    clean, schedule = torch.randn(1, 4, 5, 16, 17, generator=seeded(9), dtype=torch.float64), make_schedule(6)
    first, again, other = (invert(toy, clean, schedule, EditFriendly(), generator=seeded(s)).levels for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first[:-1], other[:-1])
    cos, sin = (
        torch.tensor([f(p) for p in schedule.angles[:-1]]).view(-1, 1, 1, 1, 1, 1) for f in (math.cos, math.sin)
    )
    noises = torch.cat([(first[:-1] - cos * clean) / sin, clean[None]]).flatten(1)
    torch.testing.assert_close(torch.corrcoef(noises), torch.eye(7, dtype=torch.float64), rtol=0, atol=0.06)
    torch.testing.assert_close(noises.std(dim=1), torch.ones(7, dtype=torch.float64), rtol=0, atol=0.05)


def make_uniform_schedule(num_steps):
    """A smooth grid, on which an order shows; it stops short of both ends."""
    angles = [1.4 - 1.2 * i / num_steps for i in range(num_steps + 1)]
    return NoiseSchedule(tuple(range(num_steps, 0, -1)), tuple(angles))


@pytest.mark.parametrize("method", [DDIM, UniInv, FixedPoint])
def test_inverted_latent_converges_to_the_exact_flow(method, toy, clean, exact):
    """All are of first order against the ODE, as the DDIM step is."""
    errors = []
    for num_steps in (160, 320):
        schedule = make_uniform_schedule(num_steps)
        inverted = invert(toy, clean, schedule, method(), prompt="right").levels[0]
        errors.append(relative_error(inverted, exact(clean, schedule.angles[-1], schedule.angles[0], "right")))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(1.0, abs=0.05)


def test_bdia_is_of_second_order_against_the_exact_flow(toy, clean, exact):
    errors = []
    for num_steps in (160, 320):
        schedule = make_uniform_schedule(num_steps)
        inverted = invert(toy, clean, schedule, BDIA(), prompt="right").levels[0]
        errors.append(relative_error(inverted, exact(clean, schedule.angles[-1], schedule.angles[0], "right")))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(2.0, abs=0.1)


def test_round_trip_orders(toy, clean):
    """Undoing its own way down, DDIM is of first order, Uni-Inv of its predictor's; every iteration adds one."""
    orders = (
        (DDIM(), 1.0),
        (UniInv(), 2.0),
        (LINE, 3.0),
        (FixedPoint(iterations=2, tolerance=0.0, accelerate=False), 4.0),
    )
    for inverter, order in orders:
        errors = [
            relative_error(reconstruct(toy, invert(toy, clean, make_uniform_schedule(n), inverter)), clean)
            for n in (400, 800)
        ]
        assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.1)  # terms of the next order still show


@pytest.mark.parametrize("num_steps", [1, 7])
@pytest.mark.parametrize("inverter", ALL, ids=repr)
def test_stated_nfe_are_those_spent(inverter, num_steps, toy, clean, make_schedule):
    inversion = invert(toy, clean, make_schedule(num_steps), inverter, generator=seeded())
    assert inversion.nfe == toy.nfe == inverter.count_nfe(num_steps)


def test_residual_is_what_the_last_step_misses(toy, clean, make_schedule, closed_form):
    schedule = make_schedule(10)
    inversion = invert(toy, clean, schedule, UniInv(), prompt="right")
    angle = schedule.angles[9]
    velocity = closed_form(inversion.levels[9], angle, "right")
    landed = math.cos(angle) * inversion.levels[9] - math.sin(angle) * velocity
    torch.testing.assert_close(inversion.residual, clean - landed, rtol=0, atol=1e-14)


@pytest.mark.parametrize("inverter", ALL, ids=repr)
def test_reconstruction_uses_nothing_but_noise_state_and_residual(inverter, toy, clean, make_schedule):
    inversion = invert(toy, clean, make_schedule(10), inverter, prompt="left", generator=seeded())
    bare = replace(inversion, levels=inversion.levels[:1])
    whole = reconstruct(toy, inversion)
    assert whole.isfinite().all() and torch.equal(reconstruct(toy, bare), whole)
    assert all(torch.equal(level, kept) for level, kept in zip(inversion.levels[:1], inversion.state, strict=False))


def test_levels_run_from_noise_to_clean_and_the_callback_sees_each(toy, clean, make_schedule):
    seen = []
    schedule = make_schedule(10)
    inversion = invert(toy, clean, schedule, UniInv(), callback=lambda step, latents: seen.append((step, latents)))
    assert inversion.levels.shape == (11, *clean.shape)
    assert torch.equal(inversion.levels[10], clean)
    assert [step.i for step, _ in seen] == list(range(9, -1, -1))
    for step, latents in seen:
        assert torch.equal(inversion.levels[step.i], latents)


def test_a_method_of_ones_own_with_its_own_way_down(toy, clean, make_schedule):
    """A state of several tensors travels through both loops."""

    @dataclass(frozen=True)
    class Remembering(Inverter):
        def invert_step(self, velocity_fn, state, schedule, i):
            return (state[0] + 1.0, *state)

        def denoise_step(self, velocity_fn, state, schedule, i):
            return state[1:]

        def count_nfe(self, num_steps):
            return 0

    inversion = invert(toy, clean, make_schedule(5), Remembering(keep_residual=False))
    assert len(inversion.state) == 6
    assert torch.equal(reconstruct(toy, inversion), clean)
    assert toy.seen == []


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: UniInv(first_step_iterations=-1), "first_step_iterations: must be at least 0, got -1"),
        (lambda: UniInv(extra_evals=1.5), "extra_evals: .*0 .. 1, got 1.5"),
        (lambda: UniInv(tolerance=0.0), "tolerance: must be above 0, got 0.0"),
        (lambda: FixedPoint(iterations=0), "iterations: must be at least 1, got 0"),
        (lambda: FixedPoint(tolerance=-1e-3), "tolerance: must not be negative, got -0.001"),
        (lambda: BDIA(first_step_iterations=0), "first_step_iterations: must be at least 1, got 0"),
        (lambda: BDIA(keep_residual=True), "keep_residual: must be off for BDIA, .*, got True"),
        (lambda: EditFriendly(keep_residual=True), "keep_residual: must be off for EditFriendly, .*, got True"),
    ],
)
def test_bad_options_are_refused(make, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        make()


def test_defaults_are_those_of_the_papers():
    """None of what was tuned on the tiny model."""
    # Algorithm 1 of Uni-Inv evaluates each step once, at a prediction along one velocity.
    published = UniInv()
    assert (published.first_step_iterations, published.extrapolate, published.extra_evals) == (0, False, 0.0)
    # DDIM inversion keeps nothing; the exact methods have nothing to keep.
    assert not any(method().keep_residual for method in (DDIM, BDIA, EditFriendly))
    # AIDI accelerates its iteration.
    assert FixedPoint().accelerate
