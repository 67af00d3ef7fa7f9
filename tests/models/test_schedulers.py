"""The scheduler pair against diffusers' own classes, and noise schedules against their timesteps."""

from __future__ import annotations

import math
import warnings
from itertools import pairwise

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXDPMScheduler, DDIMInverseScheduler

from ddim_lightning.diffusion.steps import denoise_step, inverse_step
from ddim_lightning.models.schedulers import (
    COGVIDEOX_5B_SCHEDULER,
    check_schedulers,
    make_inverse_scheduler,
    make_noise_schedule,
    make_schedulers,
)

SHIFTED = {**COGVIDEOX_5B_SCHEDULER, "snr_shift_scale": 3.0}  # as CogVideoX-2B


@pytest.mark.parametrize("config", [COGVIDEOX_5B_SCHEDULER, SHIFTED], ids=["shift-1", "shift-3"])
def test_both_schedulers_have_the_published_schedule(config):
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    expected = torch.cumprod(1 - betas, 0)
    shift = config["snr_shift_scale"]
    expected = expected / (shift + (1 - shift) * expected)
    roots = expected.sqrt()
    expected = ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2

    scheduler, inverse = make_schedulers(config)

    torch.testing.assert_close(scheduler.alphas_cumprod, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(inverse.alphas_cumprod, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(torch.cumprod(1 - inverse.betas, 0), expected, rtol=0, atol=1e-12)
    assert inverse.initial_alpha_cumprod == scheduler.final_alpha_cumprod == 1
    assert type(scheduler) is CogVideoXDDIMScheduler
    assert type(inverse) is DDIMInverseScheduler
    for made in (scheduler, inverse):
        assert made.config.prediction_type == "v_prediction"
        assert made.config.timestep_spacing == "trailing"
        assert made.config.clip_sample is False


def test_a_dpm_config_gives_the_ddim_scheduler_on_its_schedule():
    dpm = CogVideoXDPMScheduler(**{**SHIFTED, "beta_end": 0.02, "set_alpha_to_one": False})
    scheduler, inverse = make_schedulers({"_class_name": "CogVideoXDPMScheduler", **dpm.config})
    assert type(scheduler) is CogVideoXDDIMScheduler
    assert torch.equal(scheduler.alphas_cumprod, dpm.alphas_cumprod)
    assert inverse.initial_alpha_cumprod == dpm.alphas_cumprod[0] != 1


@pytest.mark.parametrize("count", [10, 25, 50])
def test_inversion_walks_back_where_sampling_came_from(count):
    scheduler, inverse = make_schedulers(SHIFTED)
    scheduler.set_timesteps(count)
    inverse.set_timesteps(count)
    x0, noise = torch.randn(2, 2, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sample = noise  # the velocity keeps x0 and noise as they are, so DDIM has no error of its own
    for t in scheduler.timesteps:
        a = scheduler.alphas_cumprod[t]
        sample = scheduler.step(a.sqrt() * noise - (1 - a).sqrt() * x0, t, sample).prev_sample
    torch.testing.assert_close(sample, x0, rtol=0, atol=1e-7)
    levels = [1.0, *scheduler.alphas_cumprod[scheduler.timesteps].flip(0).tolist()]
    for t, level in zip(inverse.timesteps, levels[:-1], strict=True):
        sample = inverse.step(math.sqrt(level) * noise - math.sqrt(1 - level) * x0, t, sample).prev_sample
    torch.testing.assert_close(sample, noise, rtol=0, atol=1e-7)


def test_the_inverse_scheduler_of_diffusers_alone_is_caught():
    scheduler = CogVideoXDDIMScheduler.from_config(SHIFTED)
    plain = DDIMInverseScheduler.from_config({k: v for k, v in SHIFTED.items() if k != "snr_shift_scale"})
    with pytest.raises(ValueError, match=r"^scheduler: .*1e-05.*alphas_cumprod is 0\.26"):
        check_schedulers(scheduler, plain)


def test_schedules_may_be_apart_by_the_tolerance_and_no_more():
    scheduler = CogVideoXDDIMScheduler.from_config(COGVIDEOX_5B_SCHEDULER)
    inverse = make_inverse_scheduler(scheduler)
    inverse.alphas_cumprod[500] += 9e-6
    check_schedulers(scheduler, inverse)
    inverse.alphas_cumprod[500] += 2e-6
    with pytest.raises(ValueError, match=r"alphas_cumprod is 1\.1e-05"):
        check_schedulers(scheduler, inverse)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"set_alpha_to_one": False}, "alpha of a clean sample is"),
        ({"prediction_type": "epsilon"}, "prediction_type is v_prediction .*epsilon"),
        ({"clip_sample": True}, "the inversion step to timestep"),
        ({"timestep_spacing": "leading"}, "timesteps of inversion"),
        ({"num_train_timesteps": 500}, "alphas_cumprod .*different lengths"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_each_disagreement_is_told(change, message):
    scheduler = CogVideoXDDIMScheduler.from_config(COGVIDEOX_5B_SCHEDULER)
    config = {k: v for k, v in COGVIDEOX_5B_SCHEDULER.items() if k != "snr_shift_scale"}
    with pytest.raises(ValueError, match=message):
        check_schedulers(scheduler, DDIMInverseScheduler.from_config({**config, **change}))


class NoisyScheduler(CogVideoXDDIMScheduler):
    """A sampler with eta > 0."""

    def step(self, model_output, timestep, sample):
        stepped = super().step(model_output, timestep, sample)
        stepped.prev_sample = stepped.prev_sample + 1e-3 * torch.randn_like(sample)
        return stepped


def test_a_sampler_that_adds_noise_is_caught():
    scheduler = NoisyScheduler.from_config(COGVIDEOX_5B_SCHEDULER)
    with pytest.raises(ValueError, match="the sampling step at timestep 999 is"):
        check_schedulers(scheduler, make_inverse_scheduler(scheduler))


def test_another_schedulers_config_is_refused():
    with pytest.raises(ValueError, match=r"^scheduler: must be one of .*got EulerDiscreteScheduler"):
        make_schedulers({**COGVIDEOX_5B_SCHEDULER, "_class_name": "EulerDiscreteScheduler"})


def test_noise_prediction_is_refused():
    with pytest.raises(ValueError, match="prediction_type must be v_prediction, got epsilon"):
        make_schedulers({**COGVIDEOX_5B_SCHEDULER, "prediction_type": "epsilon"})


@pytest.mark.parametrize(
    ("key", "value", "used"), [("timestep_spacing", "leading", "trailing"), ("clip_sample", True, False)]
)
def test_ignored_settings_warn(key, value, used):
    with pytest.warns(UserWarning, match=f"scheduler: {key}={value} .*{used}"):
        scheduler, inverse = make_schedulers({**COGVIDEOX_5B_SCHEDULER, key: value})
    assert scheduler.config[key] == inverse.config[key] == used


def test_the_published_config_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_schedulers(COGVIDEOX_5B_SCHEDULER)


@pytest.mark.parametrize("config", [COGVIDEOX_5B_SCHEDULER, SHIFTED], ids=["shift-1", "shift-3"])
@pytest.mark.parametrize("count", [1, 7, 10, 25, 28, 30, 50])
def test_noise_schedules_hit_their_own_timesteps(count, config):
    scheduler, _ = make_schedulers(config)
    schedule = make_noise_schedule(scheduler, count)
    assert scheduler.num_inference_steps is None  # the caller's scheduler is left alone
    scheduler.set_timesteps(count)
    assert list(schedule.timesteps) == scheduler.timesteps.tolist()
    levels = [*scheduler.alphas_cumprod[scheduler.timesteps].tolist(), 1.0]
    assert schedule.angles == pytest.approx([math.acos(math.sqrt(level)) for level in levels], abs=1e-7)
    assert schedule.angles[0] == pytest.approx(math.pi / 2, abs=1e-12)


@pytest.mark.parametrize("count", [10, 25, 50])
def test_noise_schedules_step_as_the_scheduler_does(count):
    scheduler, _ = make_schedulers(SHIFTED)
    scheduler.set_timesteps(count)
    sample, velocity = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for step in make_noise_schedule(scheduler, count):
        turn = step.angle - step.angle_next
        rotated = math.cos(turn) * sample - math.sin(turn) * velocity
        torch.testing.assert_close(
            scheduler.step(velocity, step.timestep, sample).prev_sample, rotated, rtol=0, atol=1e-7
        )


@pytest.mark.parametrize("count", [61, 103, 999, 1000])
def test_counts_that_rounding_would_give_a_step_too_many(count):
    schedule = make_noise_schedule(make_schedulers(COGVIDEOX_5B_SCHEDULER)[0], count)
    assert len(schedule) == count
    assert min(schedule.timesteps) >= 0


@pytest.mark.parametrize("count", [0, -3, 1001])
def test_a_count_out_of_range_is_refused(count):
    with pytest.raises(ValueError, match=f"num_inference_steps: must be 1 .. 1000, got {count}"):
        make_noise_schedule(make_schedulers(COGVIDEOX_5B_SCHEDULER)[0], count)


@pytest.mark.parametrize("config", [COGVIDEOX_5B_SCHEDULER, SHIFTED], ids=["shift-1", "shift-3"])
@pytest.mark.parametrize("count", [1, 7, 10, 25])
def test_angle_spacing_makes_every_step_the_same_rotation(count, config):
    scheduler, _ = make_schedulers(config)
    schedule = make_noise_schedule(scheduler, count, spacing="angle")
    assert len(schedule) == count and schedule.angles[0] == math.pi / 2 and schedule.angles[-1] == 0.0
    angles = [math.acos(math.sqrt(float(alpha))) for alpha in scheduler.alphas_cumprod]
    for i, timestep in enumerate(schedule.timesteps):
        wanted = math.pi / 2 * (1 - i / count)
        assert abs(angles[timestep] - wanted) == min(abs(angle - wanted) for angle in angles)
        assert schedule.angles[i] == pytest.approx(angles[timestep], abs=1e-9)
    # A level is off by half a distance of timesteps at most, a step by twice that.
    resolution = max(abs(b - a) for a, b in pairwise(angles))
    for step in schedule:
        assert abs((step.angle - step.angle_next) - math.pi / 2 / count) <= resolution


def test_angle_spacing_divides_between_noise_and_a_last_level_that_is_not_clean():
    scheduler, _ = make_schedulers({**SHIFTED, "set_alpha_to_one": False})
    schedule = make_noise_schedule(scheduler, 9, spacing="angle")
    last = math.acos(math.sqrt(float(scheduler.final_alpha_cumprod)))
    assert schedule.angles[-1] == pytest.approx(last, abs=1e-9) and last > 0.01
    for i, angle in enumerate(schedule.angles):
        assert angle == pytest.approx(math.pi / 2 + (last - math.pi / 2) * i / 9, abs=0.005)


def test_angle_spacing_is_refused_where_a_timestep_would_come_twice():
    scheduler, _ = make_schedulers(COGVIDEOX_5B_SCHEDULER)
    assert len(set(make_noise_schedule(scheduler, 50, spacing="angle").timesteps)) == 50
    with pytest.raises(ValueError, match=r"^num_inference_steps: .*timestep twice.*0\.0292.*got 200"):
        make_noise_schedule(scheduler, 200, spacing="angle")


@pytest.mark.parametrize("spacing", ["trailing", "angle"])
def test_without_zero_snr_exactly_the_first_level_is_left_out(spacing):
    scheduler, _ = make_schedulers(COGVIDEOX_5B_SCHEDULER)
    whole, short = (make_noise_schedule(scheduler, 10, spacing=spacing, zero_snr=zero) for zero in (True, False))
    assert short.timesteps == whole.timesteps[1:] and short.angles == whole.angles[1:]
    assert short.angles[0] < math.pi / 2
    with pytest.raises(ValueError, match=r"^num_inference_steps: .*at least 2.*got 1"):
        make_noise_schedule(scheduler, 1, spacing=spacing, zero_snr=False)


@pytest.mark.parametrize("count", [n for n in range(1, 1001) if 1000 % n == 0])
def test_our_steps_are_those_of_the_two_schedulers(count):
    scheduler, inverse = make_schedulers(SHIFTED)
    schedule = make_noise_schedule(scheduler, count)
    scheduler.set_timesteps(count)
    inverse.set_timesteps(count)
    assert scheduler.timesteps.tolist() == inverse.timesteps.tolist()[::-1] == list(schedule.timesteps)
    latents, velocity = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(count), dtype=torch.float64)
    for step in schedule:
        theirs = scheduler.step(velocity, step.timestep, latents).prev_sample
        torch.testing.assert_close(denoise_step(latents, velocity, step), theirs, rtol=0, atol=1e-7)
        theirs = inverse.step(velocity, step.timestep, latents).prev_sample
        torch.testing.assert_close(inverse_step(latents, velocity, step), theirs, rtol=0, atol=1e-7)
