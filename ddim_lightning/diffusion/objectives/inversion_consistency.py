"""The inversion-consistency loss has a step towards noise and the step back meet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ddim_lightning.diffusion.objectives.base import Objective, Predict, Samples, check_steps, make_noise
from ddim_lightning.diffusion.objectives.levels import TrainingLevels
from ddim_lightning.diffusion.steps import add_noise
from ddim_lightning.types import Latents

Through = Literal["denoise", "both"]


def inversion_consistency_loss(
    predict: Predict,
    latents: Latents,
    prompts: Sequence[str],
    timesteps: Tensor,
    turn: Tensor,
    gradients: Through = "both",
) -> Tensor:
    """Return the mean squared distance between latents and what an inverse DDIM step and a denoising step make of them.

    Args:
        predict: The model; both steps ask it under ``timesteps``.
        latents: (b, f, c, h, w), at the cleaner level of each step.
        prompts: The text of each inversion.
        timesteps: (b,) int64 of the noisier level of each step.
        turn: (b, 1, 1, 1, 1) radians, > 0: by how much the step turns latents.
        gradients: ``both`` trains the velocities of both steps; ``denoise`` takes that of the inverse step as it is,
            which halves the memory, and trains the step back from where it leads.

    Returns:
        A scalar.

    Source: the step and its inverse are equation 12 of Song et al. 2021, "Denoising diffusion implicit models"; that
    they should meet is the cycle of ReNoise, Garibi et al. 2024, arXiv:2403.14602, as a loss.
    """
    cos, sin = turn.cos(), turn.sin()
    with torch.set_grad_enabled(torch.is_grad_enabled() and gradients == "both"):
        noisier = cos * latents + sin * predict(latents, prompts, timesteps)
    velocity = predict(noisier, prompts, timesteps)
    return (cos * noisier - sin * velocity - latents).square().mean()


@dataclass(frozen=True)
class InversionConsistency(Objective):
    """`InversionConsistency` has plain DDIM inversion come back: a step towards noise and the step back have to meet.

    It takes 2 NFE a clip, and stands beside `Velocity`; alone it would forget what it draws. In the trainings of this
    project it has not lowered the error of whole round trips, for it works against denoising: it is for research.

    Args:
        weight: See `Objective`.
        num_inference_steps: Of the inversions, >= 1; each of their steps is trained as often as it turns latents far.
        prompt: The text of the inversions; ``None`` takes each clip's caption.
        gradients: See `inversion_consistency_loss`.

    Source: see `inversion_consistency_loss`.
    """

    num_inference_steps: int = 50
    prompt: str | None = ""
    gradients: Through = "both"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_steps([self.num_inference_steps])
        if self.gradients not in ("denoise", "both"):
            raise ValueError(f"gradients: must be denoise or both, got {self.gradients!r}")

    def __call__(  # noqa: D102
        self,
        predict: Predict,
        samples: Samples,
        levels: TrainingLevels,
        generator: torch.Generator,
        caption_dropout: float = 0.0,
    ) -> Tensor:
        latents = samples.latents
        visited = torch.tensor(levels.list_timesteps(self.num_inference_steps), device="cpu")
        steps = levels.draw_steps(len(latents), generator, self.num_inference_steps)
        noise = make_noise(latents, generator)
        angles = torch.cat([levels.angles[visited], levels.angles.new_tensor([levels.clean])])
        noisier, cleaner = (angles[at].to(latents).view(-1, 1, 1, 1, 1) for at in (steps, steps + 1))
        prompts = samples.prompts if self.prompt is None else [self.prompt] * len(latents)
        return inversion_consistency_loss(
            predict, add_noise(latents, noise, cleaner), prompts, visited[steps], noisier - cleaner, self.gradients
        )
