"""The velocity loss is what CogVideoX was trained with."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ddim_lightning.diffusion.objectives.base import (
    Objective,
    Predict,
    Samples,
    check_steps,
    drop_captions,
    make_noise,
)
from ddim_lightning.diffusion.objectives.levels import TrainingLevels
from ddim_lightning.diffusion.steps import add_noise, make_velocity
from ddim_lightning.types import Latents


def velocity_loss(
    velocity: Latents, denoised: Latents, noise: Latents, angle: Tensor, min_snr_gamma: float | None = None
) -> Tensor:
    """Return the mean squared error of predicted velocities.

    Args:
        velocity: The model's prediction, (b, f, c, h, w).
        denoised: Clean latents, same shape.
        noise: The noise that was mixed in, same shape.
        angle: (b, 1, 1, 1, 1) radians, the level of each sample.
        min_snr_gamma: Weights each sample by ``min(SNR, gamma) / (SNR + 1)``; ``None`` weights all alike.

    Returns:
        A scalar.

    Source: Salimans and Ho 2022, "Progressive distillation", section 4 (v-prediction); the weights are those of Hang et
    al. 2023, "Efficient diffusion training via min-SNR weighting strategy", arXiv:2303.09556, for v-prediction.
    """
    error = (velocity - make_velocity(denoised, noise, angle)).square()
    if min_snr_gamma is not None:
        # SNR is cos^2 / sin^2, so that the weight is free of division: zero terminal SNR has the weight 0.
        error = error * torch.minimum(angle.cos().square(), min_snr_gamma * angle.sin().square())
    return error.mean()


@dataclass(frozen=True)
class Velocity(Objective):
    """`Velocity` has the model tell noise and clip apart: new subjects, motions and styles from captioned clips.

    It takes 1 NFE a clip.

    Args:
        weight: See `Objective`.
        num_inference_steps: Trains at the levels that samplings in so many steps visit; empty at all.
        min_snr_gamma: See `velocity_loss`; Hang et al. take 5. Pure noise has the weight 0 then, which a model that
            samples from pure noise forgets in a long training.

    Source: see `velocity_loss`.
    """

    num_inference_steps: tuple[int, ...] = ()
    min_snr_gamma: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_steps(self.num_inference_steps)
        if self.min_snr_gamma is not None and not 0.0 < self.min_snr_gamma < math.inf:
            raise ValueError(f"min_snr_gamma: must be > 0 and finite, got {self.min_snr_gamma}")

    def __call__(  # noqa: D102
        self,
        predict: Predict,
        samples: Samples,
        levels: TrainingLevels,
        generator: torch.Generator,
        caption_dropout: float = 0.0,
    ) -> Tensor:
        latents = samples.latents
        timesteps = levels.draw(len(latents), generator, self.num_inference_steps)
        noise = make_noise(latents, generator)
        prompts = drop_captions(samples.prompts, caption_dropout, generator)
        angle = levels.get_angles(timesteps, latents)
        velocity = predict(add_noise(latents, noise, angle), prompts, timesteps)
        return velocity_loss(velocity, latents, noise, angle, self.min_snr_gamma)
