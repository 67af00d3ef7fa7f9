"""The rotation and the three ways to write a prediction."""

from __future__ import annotations

import math

import torch

from ddim_lightning.diffusion import steps
from ddim_lightning.diffusion.objectives import velocity_loss
from ddim_lightning.types import Step

STEP = Step(0, 500, angle=1.1, angle_next=0.6)


def draw():
    return torch.randn(2, 2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def test_exact_prediction_steps_onto_the_exact_level():
    denoised, noise = draw()
    latents = steps.add_noise(denoised, noise, STEP.angle)
    velocity = steps.make_velocity(denoised, noise, STEP.angle)
    landed = steps.denoise_step(latents, velocity, STEP)
    torch.testing.assert_close(landed, math.cos(0.6) * denoised + math.sin(0.6) * noise, rtol=0, atol=1e-14)


def test_denoising_step_is_the_textbook_ddim_step():
    latents, velocity = draw()
    a, s, a_next, s_next = math.cos(1.1), math.sin(1.1), math.cos(0.6), math.sin(0.6)
    x0, e = a * latents - s * velocity, s * latents + a * velocity
    torch.testing.assert_close(steps.denoise_step(latents, velocity, STEP), a_next * x0 + s_next * e)


def test_inverse_step_rotates_from_the_cleaner_level():
    latents, velocity = draw()
    a, s, a_next, s_next = math.cos(0.6), math.sin(0.6), math.cos(1.1), math.sin(1.1)
    x0, e = a * latents - s * velocity, s * latents + a * velocity
    torch.testing.assert_close(steps.inverse_step(latents, velocity, STEP), a_next * x0 + s_next * e)


def test_solving_undoes_the_denoising_step():
    latents, velocity = draw()
    landed = steps.denoise_step(latents, velocity, STEP)
    torch.testing.assert_close(steps.solve_denoise_step(landed, velocity, STEP), latents, rtol=0, atol=1e-14)


def test_predictions_convert_into_each_other():
    denoised, noise = draw()
    latents, velocity = steps.add_noise(denoised, noise, 0.4), steps.make_velocity(denoised, noise, 0.4)
    torch.testing.assert_close(steps.get_denoised(latents, velocity, 0.4), denoised, rtol=0, atol=1e-14)
    torch.testing.assert_close(steps.get_noise(latents, velocity, 0.4), noise, rtol=0, atol=1e-14)


def test_angles_per_sample():
    denoised, noise = draw()
    angles = torch.tensor([0.2, 1.3], dtype=torch.float64).view(2, 1, 1, 1, 1)
    latents, velocity = steps.add_noise(denoised, noise, angles), steps.make_velocity(denoised, noise, angles)
    for k, angle in enumerate((0.2, 1.3)):
        torch.testing.assert_close(latents[k], steps.add_noise(denoised, noise, angle)[k])
        torch.testing.assert_close(velocity[k], steps.make_velocity(denoised, noise, angle)[k])


def test_velocity_loss_is_zero_for_the_truth_and_counts_every_element():
    denoised, noise = draw()
    angle = torch.tensor([0.2, 1.3], dtype=torch.float64).view(2, 1, 1, 1, 1)
    truth = angle.cos() * noise - angle.sin() * denoised
    assert velocity_loss(truth, denoised, noise, angle) == 0.0
    assert float(velocity_loss(truth + 0.5, denoised, noise, angle)) == 0.25
