"""DDIM inversion takes the explicit step of diffusers."""

from __future__ import annotations

from dataclasses import dataclass

from ddim_lightning.diffusion.inverters.base import Inverter, State
from ddim_lightning.diffusion.schedule import NoiseSchedule
from ddim_lightning.diffusion.steps import inverse_step
from ddim_lightning.types import VelocityFn


@dataclass(frozen=True)
class DDIM(Inverter):
    """`DDIM` takes the explicit step of `DDIMInverseScheduler`; it is the baseline for parity.

    The velocity is evaluated at level ``i + 1`` with the timestep of level ``i`` and the sample is rotated along it.
    For a model that predicts velocity that is one level off, and the round trip is only of first order in the step
    size: reconstructions wash out. It is here to be compared with.

    Args:
        keep_residual: See `Inverter`; off, because the baseline keeps nothing.

    Source: Song et al. 2021, "Denoising diffusion implicit models", section 4.3; diffusers `DDIMInverseScheduler.step`.
    """

    keep_residual: bool = False

    def invert_step(self, velocity_fn: VelocityFn, state: State, schedule: NoiseSchedule, i: int) -> State:  # noqa: D102
        latents = state[0]
        return (inverse_step(latents, velocity_fn(latents, schedule[i]), schedule[i]),)

    def count_nfe(self, num_steps: int) -> int:  # noqa: D102
        return num_steps + self.keep_residual
