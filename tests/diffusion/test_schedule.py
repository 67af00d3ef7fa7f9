"""The noise schedule: closed forms, and the diffusers schedulers as a second implementation."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler

from ddim_lightning.diffusion.schedule import NoiseSchedule, make_angle
from ddim_lightning.diffusion.steps import denoise_step, inverse_step
from ddim_lightning.models.schedulers import make_noise_schedule, make_schedulers

CONFIG = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "rescale_betas_zero_snr": True,
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "clip_sample": False,
    "set_alpha_to_one": True,
}


def test_angle_is_zero_when_clean_and_a_right_angle_at_zero_snr():
    assert make_angle(1.0) == 0.0
    assert make_angle(0.0) == math.pi / 2
    assert make_angle(0.25) == pytest.approx(math.pi / 3, abs=1e-15)


def test_schedule_joins_neighboring_levels():
    alphas = torch.tensor([0.9, 0.75, 0.25, 0.0], dtype=torch.float64)
    schedule = NoiseSchedule.make(alphas, [3, 1])
    assert len(schedule) == 2
    first, last = schedule
    assert (first.i, first.timestep, first.angle) == (0, 3, math.pi / 2)
    assert first.angle_next == last.angle == pytest.approx(math.pi / 6)
    assert (last.i, last.timestep, last.angle_next) == (1, 1, 0.0)
    assert schedule[1] == last and schedule[-1] == last
    with pytest.raises(IndexError):
        schedule[2]


def test_schedule_takes_a_final_level_that_is_not_clean():
    alphas = torch.tensor([0.9, 0.0], dtype=torch.float64)
    assert NoiseSchedule.make(alphas, [1], final_alpha_cumprod=0.9).angles[1] == make_angle(0.9)


@pytest.mark.parametrize(
    ("timesteps", "message"),
    [([], "timesteps: at least one"), ([1, 3], "timesteps: must descend"), ([3, 3], "timesteps: must descend")],
)
def test_bad_schedules_are_refused(timesteps, message):
    with pytest.raises(ValueError, match=message):
        NoiseSchedule.make(torch.tensor([0.9, 0.75, 0.25, 0.0]), timesteps)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("num_steps", [1, 10, 20, 25, 50])
def test_steps_equal_the_diffusers_schedulers(num_steps, shift):
    forward, inverse = make_schedulers(CONFIG | {"snr_shift_scale": shift})
    schedule = make_noise_schedule(forward, num_steps)
    forward.set_timesteps(num_steps)
    inverse.set_timesteps(num_steps)
    generator = torch.Generator().manual_seed(1)
    for step in schedule:
        latents, velocity = torch.randn(2, 1, 2, 3, 4, 5, generator=generator, dtype=torch.float64)
        assert step.timestep == int(inverse.timesteps[num_steps - 1 - step.i])
        theirs = forward.step(velocity, step.timestep, latents).prev_sample
        torch.testing.assert_close(denoise_step(latents, velocity, step), theirs, rtol=0, atol=1e-12)
        theirs = inverse.step(velocity, inverse.timesteps[num_steps - 1 - step.i], latents).prev_sample
        torch.testing.assert_close(inverse_step(latents, velocity, step), theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("num_steps", [7, 28, 30])
def test_odd_step_counts_hit_their_own_timesteps(num_steps):
    forward, _ = make_schedulers(CONFIG)
    schedule = make_noise_schedule(forward, num_steps)
    assert len(schedule) == num_steps
    for step, following in zip(schedule, list(schedule)[1:], strict=False):
        assert step.angle_next == make_angle(float(forward.alphas_cumprod[following.timestep]))
    # The diffusers scheduler subtracts 1000 // n instead, and misses.
    missed = [s.timestep - 1000 // num_steps != n.timestep for s, n in zip(schedule, list(schedule)[1:], strict=False)]
    assert any(missed)


def test_angles_of_the_published_schedule():
    """Angles worked out from the formula: scaled-linear betas, rescaled to zero terminal SNR."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    root = torch.cumprod(1 - betas, 0).sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    scheduler = CogVideoXDDIMScheduler(**CONFIG, snr_shift_scale=1.0)
    schedule = make_noise_schedule(scheduler, 50)
    assert schedule.angles[0] == math.pi / 2 and schedule.angles[-1] == 0.0
    for step in schedule:
        assert step.angle == pytest.approx(math.acos(float(root[step.timestep])), abs=1e-6)
    gaps = [math.degrees(step.angle - step.angle_next) for step in schedule]
    assert max(gaps) == gaps[-1] == pytest.approx(7.9, abs=0.05)
