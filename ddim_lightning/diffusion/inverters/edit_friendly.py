"""Edit-friendly DDPM inversion noises each level by itself, and keeps what every step then misses."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ddim_lightning.diffusion.inverters.base import Inverter, State
from ddim_lightning.diffusion.schedule import NoiseSchedule
from ddim_lightning.diffusion.steps import add_noise, draw_noise, get_denoised, get_noise
from ddim_lightning.types import Latents, Step, VelocityFn


@dataclass(frozen=True)
class EditFriendly(Inverter):
    """`EditFriendly` noises the clean latents independently at every level and keeps one residual map a step.

    A DDPM step (eta 1) from one level does not reach the next, whose noise is another; the difference is kept for each
    step, the last one included, and added back when denoising: exact under any model. The maps hold the layout of the
    video, and a new prompt leaves them in place. The state is ``(latents, maps)``, maps (N, b, f, c, h, w): as much
    memory again as the trajectory.

    Args:
        keep_residual: Always off: the maps hold the residual of every step.

    Raises:
        ValueError: A residual asked for beside the maps.

    Source: Huberman-Spiegelglas et al. 2023, "An edit friendly DDPM noise space", arXiv:2304.06140, algorithm 1. The
    paper divides a map by the step's sigma and multiplies it again; the last step, whose sigma is 0, needs it not to.
    """

    keep_residual: bool = False

    def __post_init__(self) -> None:
        if self.keep_residual:
            raise ValueError("keep_residual: must be off for EditFriendly, whose maps hold it, got True")

    def init(self, latents: Latents, generator: torch.Generator | None) -> State:  # noqa: D102
        # While inverting: latents, clean latents, the seed of the noises, and the maps so far.
        return (latents, latents, torch.randint(2**62, (), generator=generator, device="cpu"))

    def invert_step(self, velocity_fn: VelocityFn, state: State, schedule: NoiseSchedule, i: int) -> State:  # noqa: D102
        cleaner, clean, seed, *maps = state
        step = schedule[i]
        noise = draw_noise(clean, torch.Generator().manual_seed(int(seed) + i))
        latents = add_noise(clean, noise, step.angle)
        maps = [cleaner - ddpm_mean(latents, velocity_fn(latents, step), step), *maps]
        return (latents, clean, seed, *maps) if i > 0 else (latents, torch.stack(maps))

    def step_with_velocity(self, latents: Latents, velocity: Latents, state: State, step: Step) -> Latents:  # noqa: D102
        return ddpm_mean(latents, velocity, step) + state[1][step.i]

    def count_nfe(self, num_steps: int) -> int:  # noqa: D102
        return num_steps


def ddpm_mean(latents: Latents, velocity: Latents, step: Step) -> Tensor:
    """Return the mean of a DDPM step, DDIM with eta 1, from level ``i`` to ``i + 1``.

    Args:
        latents: (b, f, c, h, w) at level ``i``.
        velocity: There.
        step: The step.

    Source: Song et al. 2021, "Denoising diffusion implicit models", equations 12 and 16.
    """
    denoised, noise = get_denoised(latents, velocity, step.angle), get_noise(latents, velocity, step.angle)
    ratio = math.cos(step.angle) / math.cos(step.angle_next)
    sigma = math.sin(step.angle_next) / math.sin(step.angle) * math.sqrt(1.0 - ratio**2)
    return math.cos(step.angle_next) * denoised + math.sqrt(math.sin(step.angle_next) ** 2 - sigma**2) * noise
