"""BDIA inverts by a two-step recursion that can be run backwards exactly."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ddim_lightning.diffusion.inverters.base import Inverter, State
from ddim_lightning.diffusion.schedule import NoiseSchedule
from ddim_lightning.diffusion.steps import solve_denoise_step
from ddim_lightning.types import Latents, VelocityFn


@dataclass(frozen=True)
class BDIA(Inverter):
    """`BDIA` inverts by a leapfrog of rotations (gamma = 1) and is exact up to rounding.

    Each level follows from the two before it, ``z_{i+1} = z_{i-1} + (cos h_i - cos h_{i-1}) z_i - (sin h_i +
    sin h_{i-1}) v(z_i, t_i)``, and the same line solved for ``z_{i-1}`` is the inversion. The state at level ``i`` is
    the pair ``(z_i, z_{i+1})``. The first level from clean is found by iteration; whatever it is, the way back is
    exact. Smaller gammas, which the paper prefers for sampling, amplify without bound on this schedule.

    Its own levels serve editors, whose branches take DDIM steps.

    Args:
        keep_residual: Always off: there is nothing to keep.
        first_step_iterations: NFE that find the level next to clean, >= 1.

    Raises:
        ValueError: An iteration too few, or a residual asked for.

    Source: Zhang et al. 2023, "Exact diffusion inversion via bi-directional integration approximation",
    arXiv:2307.10829, equation 17 at gamma 1, in rotation form.
    """

    keep_residual: bool = False
    first_step_iterations: int = 6

    def __post_init__(self) -> None:
        if self.keep_residual:
            raise ValueError("keep_residual: must be off for BDIA, which is exact without, got True")
        if self.first_step_iterations < 1:
            raise ValueError(f"first_step_iterations: must be at least 1, got {self.first_step_iterations}")

    def init(self, latents: Latents, generator: torch.Generator | None) -> State:  # noqa: D102
        return (latents, latents)

    def invert_step(self, velocity_fn: VelocityFn, state: State, schedule: NoiseSchedule, i: int) -> State:  # noqa: D102
        latents, cleaner = state
        if i < len(schedule) - 1:
            cos, sin = _weights(schedule, i + 1)
            return (cleaner - cos * latents + sin * velocity_fn(latents, schedule[i + 1]), latents)
        point = latents
        for _ in range(self.first_step_iterations):
            point = solve_denoise_step(latents, velocity_fn(point, schedule[i]), schedule[i])
        return (point, latents)

    def denoise_step(self, velocity_fn: VelocityFn, state: State, schedule: NoiseSchedule, i: int) -> State:  # noqa: D102
        noisier, latents = state
        if i == len(schedule) - 1:
            return (latents, latents)
        cos, sin = _weights(schedule, i + 1)
        return (latents, noisier + cos * latents - sin * velocity_fn(latents, schedule[i + 1]))

    def count_nfe(self, num_steps: int) -> int:  # noqa: D102
        return num_steps - 1 + self.first_step_iterations


def _weights(schedule: NoiseSchedule, i: int) -> tuple[float, float]:
    """Return the weights of the latents and of the velocity of level ``i`` in the step from ``i - 1`` to ``i + 1``."""
    before, after = (step.angle - step.angle_next for step in (schedule[i - 1], schedule[i]))
    return math.cos(after) - math.cos(before), math.sin(after) + math.sin(before)
