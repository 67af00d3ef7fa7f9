"""Training losses compare predictions with what was mixed."""

from __future__ import annotations

from torch import Tensor

from ddim_lightning.diffusion.steps import make_velocity
from ddim_lightning.types import Latents


def velocity_loss(velocity: Latents, denoised: Latents, noise: Latents, angle: Tensor) -> Tensor:
    """Return the mean squared error of predicted velocities.

    Args:
        velocity: The model's prediction, (b, f, c, h, w).
        denoised: Clean latents, same shape.
        noise: The noise that was mixed in, same shape.
        angle: (b, 1, 1, 1, 1) radians, the level of each sample.

    Returns:
        A scalar.

    Source: Salimans and Ho 2022, "Progressive distillation", section 4 (v-prediction), unweighted.
    """
    return (velocity - make_velocity(denoised, noise, angle)).square().mean()
